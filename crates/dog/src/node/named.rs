//! Which node is meant: by its number, its address and port, or its address where no other node has the same.
//!
//! Numbers are places in the list of the nodes that are up, as they always were, so they change when a node comes or goes: who holds
//! one from before means another node by it. An address and port always mean the same, so commands that change something accept
//! both and say the address of what they are about to do it to.

use std::net::IpAddr;

use proto::NodeId;

use crate::failure::{Failure, Outcome};

/// `numbered`: the nodes that are up, in their order. `known`: all that may be meant.
pub fn find(text: &[u8], numbered: &[NodeId], known: &[NodeId]) -> Outcome<NodeId> {
    let shown = String::from_utf8_lossy(text);
    let invalid = || Failure::bad_value(format!("Invalid node id '{shown}'"));
    if !text.is_empty() && text.iter().all(u8::is_ascii_digit) {
        return shown
            .parse()
            .ok()
            .and_then(|number: usize| numbered.get(number).copied())
            .ok_or_else(invalid);
    }
    let exact = parse_address(&shown);
    if let Some(node) = exact.filter(|node| known.contains(node)) {
        return Ok(node);
    }
    let Ok(ip) = without_brackets(&shown).parse::<IpAddr>() else {
        return Err(exact.map_or_else(invalid, |node| unknown(&node.to_string(), known)));
    };
    let there: Vec<NodeId> =
        known.iter().copied().filter(|node| *node == NodeId::new(ip, node.port)).collect();
    match there.as_slice() {
        [node] => Ok(*node),
        [] => Err(unknown(&shown, known)),
        several => {
            Err(Failure::bad_value(format!("{shown} may be any of {}: give the port too", list(several))))
        }
    }
}

fn unknown(shown: &str, known: &[NodeId]) -> Failure {
    Failure::refused(format!("{shown} is no node of this cluster; its nodes are {}", list(known)))
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

/// As addresses of nodes are printed; brackets do no harm.
fn parse_address(text: &str) -> Option<NodeId> {
    let (host, port) = text.rsplit_once(':')?;
    Some(NodeId::new(without_brackets(host).parse().ok()?, port.parse().ok()?))
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str, port: u16) -> NodeId {
        NodeId::new(ip.parse().unwrap(), port)
    }

    #[test]
    fn a_node_is_named_by_number_or_address() {
        let up =
            [node("10.0.0.1", 7000), node("127.0.0.1", 7000), node("127.0.0.1", 7001), node("fe80::1", 7000)];
        let known = [&up[..], &[node("10.0.0.9", 7000)]].concat();
        for (text, expect) in [
            ("2", up[2]),
            ("127.0.0.1:7001", up[2]),
            ("10.0.0.1", up[0]),
            ("fe80::1", up[3]),
            ("[fe80::1]:7000", up[3]),
            ("fe80::1:7000", up[3]),
            ("10.0.0.9:7000", known[4]),
            ("10.0.0.9", known[4]),
        ] {
            assert_eq!(find(text.as_bytes(), &up, &known), Ok(expect), "{text}");
        }
        for (text, code, says) in [
            ("4", 64, "Invalid node id '4'"),
            ("-1", 64, "Invalid node id '-1'"),
            ("", 64, "Invalid node id ''"),
            ("x", 64, "Invalid node id 'x'"),
            ("99999999999999999999", 64, "Invalid node id"),
            ("127.0.0.1", 64, "127.0.0.1 may be any of 127.0.0.1:7000, 127.0.0.1:7001: give the port too"),
            ("127.0.0.1:7002", 1, "127.0.0.1:7002 is no node of this cluster; its nodes are 10.0.0.1:7000, "),
            ("10.0.0.2", 1, "10.0.0.2 is no node of this cluster"),
        ] {
            let failure = find(text.as_bytes(), &up, &known).unwrap_err();
            assert_eq!(failure.code, code, "{text}");
            assert!(failure.message.starts_with(says), "{}", failure.message);
        }
    }
}

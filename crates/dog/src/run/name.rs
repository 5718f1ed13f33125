//! How QEMU's old driver named a volume.
//!
//! ```text
//! sheepdog:NAME[:SNAP]                    sheepdog:HOST:PORT:NAME[:SNAP]
//! sheepdog://[HOST[:PORT]]/NAME[#SNAP]    sheepdog+tcp://...
//! sheepdog+unix:///NAME?socket=PATH[#SNAP]
//! driver=sheepdog,vdi=NAME[,snap-id=ID|,tag=TAG][,server.type=inet,server.host=HOST,server.port=PORT]
//! ```
//!
//! SNAP is an id if it is all digits, else a tag. In the forms with `//` characters may be written as `%20`.

use crate::failure::{Failure, Outcome};
use crate::sheep::Selector;
use crate::target::PORT_DEFAULT;
use crate::vdi::names::select;

/// Through which sheep the volume is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// None is named: the one that dog talks to.
    Chosen,
    Tcp {
        host: String,
        port: u16,
    },
    /// The path of a sheep's `sock`.
    Unix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub server: Server,
    pub vdi: String,
    /// Id or tag of a snapshot.
    pub snapshot: Option<String>,
}

impl Name {
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    pub fn selector(&self) -> Outcome<Selector> {
        self.snapshot.as_ref().map_or(Ok(Selector::default()), |snapshot| select(snapshot.as_bytes()))
    }

    /// The volume as NBD names it.
    pub fn export(&self) -> String {
        match &self.snapshot {
            None => self.vdi.clone(),
            Some(id) if is_id(id) => format!("{}:{id}", self.vdi),
            Some(tag) => format!("{}@{tag}", self.vdi),
        }
    }
}

fn is_id(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Does this name a volume of ours, well or badly?
pub fn is_name(text: &str) -> bool {
    text.starts_with("sheepdog:") || text.starts_with("sheepdog+")
}

pub fn parse(text: &str) -> Outcome<Name> {
    let wrong = |why: &str| {
        Failure::refused(format!(
            "'{text}' names no volume: {why}\nKnown forms are sheepdog:NAME[:SNAP], sheepdog:HOST:PORT:NAME[:SNAP], \
             sheepdog://[HOST[:PORT]]/NAME[#SNAP]\nand sheepdog+unix:///NAME?socket=PATH[#SNAP]"
        ))
    };
    let (scheme, rest) = text.split_once(':').ok_or_else(|| wrong("there is no ':'"))?;
    let name = match (scheme, rest.strip_prefix("//")) {
        ("sheepdog" | "sheepdog+tcp", Some(rest)) => parse_uri(rest).and_then(Uri::over_tcp),
        ("sheepdog+unix", Some(rest)) => parse_uri(rest).and_then(Uri::over_unix),
        ("sheepdog", None) => parse_colons(rest),
        ("sheepdog+tcp" | "sheepdog+unix", None) => Err("'//' is expected after the ':'"),
        _ => Err("the transport is neither tcp nor unix"),
    };
    let name = name.map_err(wrong)?;
    name.selector()?;
    Ok(name)
}

fn parse_colons(rest: &str) -> Result<Name, &'static str> {
    let parts: Vec<&str> = rest.split(':').collect();
    let (server, name, snapshot) = match parts[..] {
        [name] => (Server::Chosen, name, None),
        [name, snapshot] => (Server::Chosen, name, Some(snapshot)),
        [host, port, name] => (tcp(host, port)?, name, None),
        [host, port, name, snapshot] => (tcp(host, port)?, name, Some(snapshot)),
        _ => return Err("it has too many ':'; names and hosts that contain one need the form with '//'"),
    };
    named(server, name.to_string(), snapshot.map(str::to_string))
}

fn tcp(host: &str, port: &str) -> Result<Server, &'static str> {
    let port = parse_port(port).ok_or("the port is no number from 1 to 65535")?;
    if host.is_empty() {
        return Err("the host is empty");
    }
    Ok(Server::Tcp { host: host.to_string(), port })
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|b| b.is_ascii_digit()))
}

fn named(server: Server, vdi: String, snapshot: Option<String>) -> Result<Name, &'static str> {
    match (vdi.as_str(), snapshot.as_deref()) {
        ("", _) => Err("the volume's name is empty"),
        (_, Some("")) => Err("the snapshot's id or tag is empty"),
        _ => Ok(Name { server, vdi, snapshot }),
    }
}

/// What follows `scheme://`, decoded.
struct Uri<'a> {
    authority: &'a str,
    vdi: String,
    query: Option<&'a str>,
    snapshot: Option<String>,
}

fn parse_uri(rest: &str) -> Result<Uri<'_>, &'static str> {
    let split = |text, mark| match str::split_once(text, mark) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    };
    let (rest, fragment) = split(rest, '#');
    let (rest, query) = split(rest, '?');
    let (authority, path) = rest.split_once('/').ok_or("there is no '/' before the volume's name")?;
    let snapshot = fragment.map(percent_decoded).transpose()?;
    Ok(Uri { authority, vdi: percent_decoded(path)?, query, snapshot })
}

impl Uri<'_> {
    fn over_tcp(self) -> Result<Name, &'static str> {
        if self.query.is_some() {
            return Err("only sheepdog+unix takes something after '?'");
        }
        let server = if self.authority.is_empty() { Server::Chosen } else { host_and_port(self.authority)? };
        named(server, self.vdi, self.snapshot)
    }

    fn over_unix(self) -> Result<Name, &'static str> {
        if !self.authority.is_empty() {
            return Err("a host makes no sense with a unix socket: three '/' are expected");
        }
        let path = self.query.and_then(|query| query.strip_prefix("socket="));
        let path = path.filter(|path| !path.is_empty()).ok_or("?socket=PATH is expected after the name")?;
        named(Server::Unix(percent_decoded(path)?), self.vdi, self.snapshot)
    }
}

/// `HOST`, `HOST:PORT`, `[::1]` or `[::1]:PORT`.
fn host_and_port(text: &str) -> Result<Server, &'static str> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => {
            (host, Some(rest.strip_prefix(':').ok_or("after ']' only ':PORT' may follow")?))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    tcp(host, port.unwrap_or(&PORT_DEFAULT.to_string()))
}

fn percent_decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => (hex(*high, *low).ok_or("'%' needs two hex digits")?, tail),
            (b'%', _) => return Err("'%' needs two hex digits"),
            (byte, tail) => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8, which QEMU needs")
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

/// The fields of `driver=sheepdog`.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    pub vdi: Option<String>,
    pub snap_id: Option<String>,
    pub tag: Option<String>,
    pub server_type: Option<String>,
    pub host: Option<String>,
    pub port: Option<String>,
    pub path: Option<String>,
}

impl Fields {
    /// The place of a field, by its name in QEMU.
    pub fn slot(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "vdi" => &mut self.vdi,
            "snap-id" => &mut self.snap_id,
            "tag" => &mut self.tag,
            "server.type" => &mut self.server_type,
            "server.host" => &mut self.host,
            "server.port" => &mut self.port,
            "server.path" => &mut self.path,
            _ => return None,
        })
    }

    pub fn into_name(self) -> Outcome<Name> {
        let name = self.try_into_name();
        let name = name.map_err(|why| Failure::refused(format!("driver=sheepdog names no volume: {why}")))?;
        name.selector()?;
        Ok(name)
    }

    fn try_into_name(self) -> Result<Name, &'static str> {
        let server = match (self.server_type.as_deref(), self.host, self.port, self.path) {
            (None, None, None, None) => Server::Chosen,
            (Some("unix"), None, None, Some(path)) => Server::Unix(path),
            (Some("inet") | None, Some(host), port, None) => {
                tcp(&host, &port.unwrap_or(PORT_DEFAULT.to_string()))?
            }
            (Some("inet") | None, None, ..) => return Err("server.host is missing"),
            (Some("unix"), None, None, None) => return Err("server.path is missing"),
            _ => return Err("server is neither type=inet with host and port nor type=unix with path"),
        };
        let snapshot = match (self.snap_id, self.tag) {
            (Some(_), Some(_)) => return Err("both snap-id and tag are given"),
            // A number in `tag` could not be told from an id, and no tag is a number.
            (id, tag) => id.or(tag),
        };
        named(server, self.vdi.ok_or("vdi is missing")?, snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renders what was understood: server, name, snapshot.
    fn check(text: &str, expect: &str) {
        assert!(is_name(text), "{text}");
        let name = parse(text).unwrap();
        let server = match &name.server {
            Server::Chosen => "-".to_string(),
            Server::Tcp { host, port } => format!("{host} {port}"),
            Server::Unix(path) => path.clone(),
        };
        let snapshot = name.snapshot.as_deref().unwrap_or("-");
        assert_eq!(format!("{server} | {} | {snapshot} | {}", name.vdi, name.export()), expect, "{text}");
    }

    #[test]
    fn all_forms_are_understood() {
        check("sheepdog:Alice", "- | Alice | - | Alice");
        check("sheepdog:Alice:1", "- | Alice | 1 | Alice:1");
        check("sheepdog:Alice:snap 1", "- | Alice | snap 1 | Alice@snap 1");
        check("sheepdog:10.0.0.1:7001:Alice", "10.0.0.1 7001 | Alice | - | Alice");
        check("sheepdog:host:7001:Alice:1", "host 7001 | Alice | 1 | Alice:1");
        check("sheepdog:///Alice", "- | Alice | - | Alice");
        check("sheepdog://host/Alice#tag", "host 7000 | Alice | tag | Alice@tag");
        check("sheepdog://[::1]:7001/Alice#3", "::1 7001 | Alice | 3 | Alice:3");
        check("sheepdog+tcp://host:7001/a%20b%2f", "host 7001 | a b/ | - | a b/");
        check("sheepdog+unix:///Alice?socket=/run/s%20k#1", "/run/s k | Alice | 1 | Alice:1");
    }

    #[test]
    fn what_is_malformed_is_explained() {
        for (text, why) in [
            ("sheepdog:", "name is empty"),
            ("sheepdog::1", "name is empty"),
            ("sheepdog:Alice:", "id or tag is empty"),
            ("sheepdog:a:b:c:d:e", "too many ':'"),
            ("sheepdog:host:port:Alice", "port is no number"),
            ("sheepdog:host:0:Alice", "port is no number"),
            ("sheepdog::7000:Alice", "host is empty"),
            ("sheepdog://host", "no '/'"),
            ("sheepdog://host:x/Alice", "port is no number"),
            ("sheepdog://[::1]x/Alice", "after ']'"),
            ("sheepdog://host/", "name is empty"),
            ("sheepdog:///Alice?socket=/s", "only sheepdog+unix"),
            ("sheepdog:///Alice%2", "two hex digits"),
            ("sheepdog:///Alice%ff", "no UTF-8"),
            ("sheepdog+unix:///Alice", "?socket=PATH"),
            ("sheepdog+unix:///Alice?socket=", "?socket=PATH"),
            ("sheepdog+unix://host/Alice?socket=/s", "makes no sense"),
            ("sheepdog+unix:Alice", "'//' is expected"),
            ("sheepdog+rdma://host/Alice", "neither tcp nor unix"),
            ("sheepdog:Alice:0", "must be larger than zero"),
        ] {
            assert!(is_name(text), "{text}");
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(why), "{text}: {}", failure.message);
        }
        for text in ["sheep.raw", "nbd:sheepdog:a", "sheepdog", "./sheepdog:a"] {
            assert!(!is_name(text), "{text}");
        }
    }

    #[test]
    fn fields_make_a_name_or_say_what_is_missing() {
        let name = |pairs: &[(&str, &str)]| {
            let mut fields = Fields::default();
            for (key, value) in pairs {
                *fields.slot(key).unwrap() = Some(value.to_string());
            }
            fields.into_name()
        };
        let tcp = [("vdi", "a"), ("server.type", "inet"), ("server.host", "h"), ("server.port", "7")];
        assert_eq!(name(&tcp).unwrap(), parse("sheepdog:h:7:a").unwrap());
        let unix = [("vdi", "a"), ("server.type", "unix"), ("server.path", "/s"), ("tag", "t")];
        assert_eq!(name(&unix).unwrap(), parse("sheepdog+unix:///a?socket=/s#t").unwrap());
        assert_eq!(name(&[("vdi", "a"), ("snap-id", "2")]).unwrap(), parse("sheepdog:a:2").unwrap());
        for (pairs, why) in [
            (&[("tag", "t")][..], "vdi is missing"),
            (&[("vdi", "a"), ("server.type", "inet")], "server.host is missing"),
            (&[("vdi", "a"), ("server.type", "unix")], "server.path is missing"),
            (&[("vdi", "a"), ("server.type", "vsock"), ("server.port", "1")], "neither"),
            (&[("vdi", "a"), ("tag", "t"), ("snap-id", "1")], "both"),
        ] {
            assert!(name(pairs).unwrap_err().message.contains(why), "{why}");
        }
    }
}

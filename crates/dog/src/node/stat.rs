//! `dog node stat [-w]`: what the sheep that is asked has done since it started.
//!
//! ```text
//! Request  Active   Total    Write    Read     Remove   Flush    All WR   All RD
//! Client   0        772      685      81       0        0        392 MB   598 MB
//! Peer     0        89       2        81       1        0        392 MB   24 MB
//! ```
//!
//! `--json` also tells of the memory for blocks of snapshots (`sheep --cache`).
//! With `-w` again every second, with what the last second added: bytes written, bytes read, requests.

use std::thread;
use std::time::Duration;

use proto::client::CacheUse;
use proto::sd::structs::SdStat;
use serde_json::json;

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form};
use crate::failure::Outcome;
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::size;

pub const COMMAND: Command = Command {
    group: "node",
    name: "stat",
    summary: "show the requests a node has served",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::RAW,
        option::WATCH,
        option::HELP,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

const HEADER: &str = "Request\tActive\tTotal\tWrite\tRead\tRemove\tFlush\tAll WR\tAll RD";
const INTERVAL: Duration = Duration::from_secs(1);

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut sheep = context.connect()?;
    if context.form == Form::Json {
        return run_json(context, parsed, &mut sheep);
    }
    let mut last = sheep.stat()?;
    if !parsed.has("watch") {
        let text = render(&last, None, context.form);
        return context.print(&text);
    }
    // Ends with Ctrl-C, or when the sheep or the reader goes.
    loop {
        thread::sleep(INTERVAL);
        let now = sheep.stat()?;
        let text = render(&now, Some(&last), context.form);
        context.print(&text)?;
        context.out.flush()?;
        last = now;
    }
}

/// One document, or with `-w` one every second.
fn run_json(context: &mut Context, parsed: &Parsed, sheep: &mut Sheep) -> Outcome {
    loop {
        if parsed.has("watch") {
            thread::sleep(INTERVAL);
        }
        let text = render_json(&sheep.stat()?, sheep.node_stat()?.cache);
        context.print(&text)?;
        if !parsed.has("watch") {
            return Ok(());
        }
        context.out.flush()?;
    }
}

/// One line of the table.
struct Counters {
    title: &'static str,
    active: u64,
    total: u64,
    write: u64,
    read: u64,
    remove: u64,
    flush: u64,
    written_bytes: u64,
    read_bytes: u64,
}

fn lines(stat: &SdStat) -> [Counters; 2] {
    let client = Counters {
        title: "Client",
        active: stat.gateway_active,
        total: stat.gateway_total,
        write: stat.gateway_write,
        read: stat.gateway_read,
        remove: stat.gateway_remove,
        flush: stat.gateway_flush,
        written_bytes: stat.gateway_rx_bytes,
        read_bytes: stat.gateway_tx_bytes,
    };
    let peer = Counters {
        title: "Peer",
        active: stat.peer_active,
        total: stat.peer_total,
        write: stat.peer_write,
        read: stat.peer_read,
        remove: stat.peer_remove,
        // Peers are never asked to flush.
        flush: 0,
        written_bytes: stat.peer_rx_bytes,
        read_bytes: stat.peer_tx_bytes,
    };
    [client, peer]
}

/// `before`: the counters a second ago, for the three columns of rates.
fn render(stat: &SdStat, before: Option<&SdStat>, form: Form) -> String {
    let raw = form == Form::Raw;
    let mut text = String::new();
    if !raw {
        text += HEADER;
        text += if before.is_some() { "\tWRBW\tRDBW\tRPS\n" } else { "\n" };
    }
    let before = before.map(lines);
    for (at, line) in lines(stat).iter().enumerate() {
        let counts =
            [line.active, line.total, line.write, line.read, line.remove, line.flush].map(|n| n.to_string());
        let mut fields: Vec<String> = counts.into();
        fields.extend([line.written_bytes, line.read_bytes].map(|bytes| size::show(bytes, raw)));
        if let Some(before) = &before {
            let old = &before[at];
            fields.push(size::show(line.written_bytes.saturating_sub(old.written_bytes), raw));
            fields.push(size::show(line.read_bytes.saturating_sub(old.read_bytes), raw));
            fields.push(line.total.saturating_sub(old.total).to_string());
        }
        if !raw {
            fields.insert(0, line.title.to_string());
        }
        text += &fields.join("\t");
        text.push('\n');
    }
    text
}

fn render_json(stat: &SdStat, cache: CacheUse) -> String {
    let [client, peer] = lines(stat).map(|line| {
        json!({
            "active": line.active,
            "total": line.total,
            "writes": line.write,
            "reads": line.read,
            "removes": line.remove,
            "flushes": line.flush,
            "written_bytes": line.written_bytes,
            "read_bytes": line.read_bytes,
        })
    });
    let cache = json!({
        "limit_bytes": cache.limit_bytes,
        "used_bytes": cache.used_bytes,
        "hits": cache.hits,
        "misses": cache.misses,
    });
    format!("{:#}\n", json!({ "client": client, "peer": peer, "cache": cache }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat() -> SdStat {
        SdStat {
            gateway_total: 1151,
            gateway_write: 876,
            gateway_read: 224,
            gateway_flush: 14,
            gateway_rx_bytes: 761223581,
            gateway_tx_bytes: 1151327804,
            peer_total: 246,
            peer_read: 208,
            peer_remove: 20,
            peer_rx_bytes: 706538573,
            ..SdStat::default()
        }
    }

    #[test]
    fn counters_stand_under_their_headers() {
        assert_eq!(
            render(&stat(), None, Form::Human),
            "Request\tActive\tTotal\tWrite\tRead\tRemove\tFlush\tAll WR\tAll RD
Client\t0\t1151\t876\t224\t0\t14\t726 MB\t1.1 GB
Peer\t0\t246\t0\t208\t20\t0\t674 MB\t0.0 MB
"
        );
        assert_eq!(
            render(&stat(), None, Form::Raw),
            "0\t1151\t876\t224\t0\t14\t761223581\t1151327804\n0\t246\t0\t208\t20\t0\t706538573\t0\n"
        );
    }

    #[test]
    fn watching_adds_what_the_last_second_brought() {
        let mut before = stat();
        before.gateway_total -= 7;
        before.gateway_rx_bytes -= 8 << 20;
        let text = render(&stat(), Some(&before), Form::Human);
        assert!(text.lines().next().unwrap().ends_with("\tWRBW\tRDBW\tRPS"));
        assert!(text.lines().nth(1).unwrap().ends_with("\t8.0 MB\t0.0 MB\t7"));
    }
}

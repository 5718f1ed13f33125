//! `dog node scrub [-r | --json]`: how far each node is with reading what it holds, and what it has found.
//!
//! ```text
//!   Id   Host:Port            State      Pass       Read      Total   Last Ended             Found   Mended  Damaged Differing
//!    0   127.0.0.1:7000       running   37.5%     3.0 GB     8.0 GB   2026-11-22 11:23:11        2        2        0         0
//! ```
//!
//! Blocks are counted since the sheep was started. Below the table those are named that are still damaged, or that copies still have differently, and how
//! many records of a node's journal were damaged: no start needs them any more.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::Oid;
use proto::client::{DifferingBlocks, ScrubStatus};
use proto::object::BlockRange;
use serde_json::json;

use crate::clock::LocalTime;
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use crate::size;
use crate::vdi::names::{lossy, shown};

pub const COMMAND: Command = Command {
    group: "node",
    name: "scrub",
    summary: "show how far nodes are with looking for rotten blocks",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Pass, Read and Total are those of the present pass, or of the last where a node rests; while it is counting they are not\n\
            known yet (raw and JSON have what was counted so far). Exit code 2 if a node does not answer\n\
            within 10 s.\n\
            Raw: number, address, state, objects done and all, bytes done and all, when the last pass ended (- if none has since the\n\
            start of the sheep), blocks found, mended, still damaged, and lost on all copies; blocks that copies had differently though\n\
            each passes its checksum, and that they still have so; records of the journal that were damaged, which cost nothing, as\n\
            all that they said was still in memory and is stored elsewhere now.\n\
            To switch, bound or begin it: dog cluster scrub.",
};

const HEADER: &str = "  Id   Host:Port            State       Pass       Read      Total   Last Ended              Found   Mended  Damaged Differing\n";

struct Row {
    id: usize,
    node: String,
    status: ScrubStatus,
}

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let (mut rows, mut unheard) = (Vec::new(), false);
    let heard = ask_all(&context.node_ids(), Sheep::scrub);
    for ((id, node), heard) in context.nodes.iter().enumerate().zip(heard) {
        match heard {
            Ok(status) => rows.push(Row { id, node: node.id.to_string(), status }),
            Err(error) => {
                notice(&format!("Node {id} does not answer: {}", Failure::from(error).message));
                unheard = true;
            }
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let text = render(&rows, now, context.form);
    context.print(&text)?;
    if unheard { Err(Failure::silent(exit::SYSTEM)) } else { Ok(()) }
}

fn state(status: &ScrubStatus) -> &'static str {
    match status {
        ScrubStatus { is_counting: true, .. } => "counting",
        ScrubStatus { is_asked: true, .. } => "asked for",
        ScrubStatus { is_running: true, .. } => "running",
        ScrubStatus { is_enabled: false, .. } => "disabled",
        _ => "resting",
    }
}

/// Of the pass, or of the last where there is none; `None` where there was none either, or its length is not known yet.
fn percent(status: &ScrubStatus) -> Option<f64> {
    if !status.is_running {
        return (status.passes > 0).then_some(100.0);
    }
    let (done, total) = match status.bytes_total {
        0 => (status.objects_done, status.objects_total),
        total => (status.bytes_done, total),
    };
    (!status.is_counting && total > 0).then(|| (done as f64 * 100.0 / total as f64).min(100.0))
}

fn render(rows: &[Row], now: u64, form: Form) -> String {
    match form {
        Form::Human => {
            let lines = rows.iter().map(|row| render_row(row, now));
            std::iter::once(HEADER.to_string()).chain(lines).chain(rows.iter().map(render_damage)).collect()
        }
        Form::Raw => rows.iter().map(|row| render_raw(row, now)).collect(),
        Form::Json => {
            let rows: Vec<_> = rows.iter().map(to_json).collect();
            format!("{:#}\n", json!(rows))
        }
    }
}

fn render_row(row: &Row, now: u64) -> String {
    let status = &row.status;
    let percent = percent(status).map_or("-".to_string(), |percent| format!("{percent:.1}%"));
    // While objects are counted the sum is of those that were counted so far.
    let bytes = |bytes| if status.is_counting { "-".to_string() } else { size::human(bytes) };
    let ended = status
        .last_ended_s
        .map_or("-".to_string(), |ago| LocalTime::from_seconds(now.saturating_sub(ago)).seconds());
    format!(
        "{:4}   {:<20} {:<9}{percent:>7}{:>11}{:>11}   {ended:<20}{:9}{:9}{:9}{:10}\n",
        row.id,
        row.node,
        state(status),
        bytes(status.bytes_done),
        bytes(status.bytes_total),
        status.found,
        status.mended,
        status.damaged,
        status.differed,
    )
}

/// Each line once: what objects share may be told of several times.
fn render_damage(row: &Row) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in damage_of(row).lines() {
        if lines.iter().all(|known| known != line) {
            lines.push(line.to_string());
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn damage_of(row: &Row) -> String {
    let mut text: String = row
        .status
        .told
        .iter()
        .map(|damage| {
            let so_far = if damage.is_lost { "no copy is good" } else { "not mended so far" };
            format!("node {}: {}: {so_far}\n", row.id, describe(&damage.vdi, damage.oid, damage.blocks))
        })
        .collect();
    let told: u64 = row.status.told.iter().map(|damage| u64::from(damage.blocks.count)).sum();
    if row.status.damaged > told {
        text += &format!("node {}: {} more blocks are damaged\n", row.id, row.status.damaged - told);
    }
    match row.status.journal_records {
        0 => {}
        1 => {
            text +=
                &format!("node {}: a record of the journal was damaged; nothing needs it any more\n", row.id)
        }
        n => {
            text += &format!(
                "node {}: {n} records of the journal were damaged; nothing needs them any more\n",
                row.id
            )
        }
    }
    for DifferingBlocks { vdi, oid, blocks } in &row.status.told_differing {
        text += &format!("node {}: {}: copies differ\n", row.id, describe(vdi, *oid, *blocks));
    }
    let told: u64 = row.status.told_differing.iter().map(|told| u64::from(told.blocks.count)).sum();
    if row.status.differing > told {
        text += &format!("node {}: copies of {} more blocks differ\n", row.id, row.status.differing - told);
    }
    text
}

/// `block 7 of object 007c2b2500000003 of VDI alice`
pub fn describe(vdi: &[u8], oid: Oid, blocks: BlockRange) -> String {
    format!("{} of object {oid} of VDI {}", name_of(blocks), shown(vdi))
}

/// `block 7`, `blocks 7 to 9`
pub fn name_of(blocks: BlockRange) -> String {
    match blocks.count {
        1 => format!("block {}", blocks.first),
        _ => format!("blocks {} to {}", blocks.first, blocks.end().saturating_sub(1)),
    }
}

fn render_raw(row: &Row, now: u64) -> String {
    let ScrubStatus {
        objects_done,
        objects_total,
        bytes_done,
        bytes_total,
        found,
        mended,
        damaged,
        lost,
        differed,
        differing,
        journal_records,
        ..
    } = row.status;
    let ended = row.status.last_ended_s.map_or("-".to_string(), |ago| now.saturating_sub(ago).to_string());
    let state = state(&row.status).replace(' ', "-");
    format!(
        "{} {} {state} {objects_done} {objects_total} {bytes_done} {bytes_total} {ended} {found} {mended} {damaged} {lost} {differed} {differing} {journal_records}\n",
        row.id, row.node
    )
}

fn to_json(row: &Row) -> serde_json::Value {
    let status = &row.status;
    let told: Vec<_> = status
        .told
        .iter()
        .map(|damage| {
            json!({
                "vdi": lossy(&damage.vdi),
                "object": damage.oid.to_string(),
                "first_block": damage.blocks.first,
                "blocks": damage.blocks.count,
                "lost": damage.is_lost,
            })
        })
        .collect();
    let told_differing: Vec<_> = status
        .told_differing
        .iter()
        .map(|told| {
            json!({
                "vdi": lossy(&told.vdi),
                "object": told.oid.to_string(),
                "first_block": told.blocks.first,
                "blocks": told.blocks.count,
            })
        })
        .collect();
    json!({
        "id": row.id,
        "node": row.node,
        "enabled": status.is_enabled,
        "state": state(status),
        "rate_bytes": status.rate_bytes,
        "objects_done": status.objects_done,
        "objects_total": status.objects_total,
        "bytes_done": status.bytes_done,
        "bytes_total": status.bytes_total,
        "last_ended_s": status.last_ended_s,
        "next_in_s": status.next_in_s,
        "found": status.found,
        "mended": status.mended,
        "damaged": status.damaged,
        "lost": status.lost,
        "damaged_blocks": told,
        "differed": status.differed,
        "differing": status.differing,
        "differing_blocks": told_differing,
        "journal_records": status.journal_records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Vid;
    use proto::client::DamagedBlocks;

    fn row() -> Row {
        let damage = DamagedBlocks {
            vdi: b"alice".to_vec(),
            oid: Oid::data(Vid(0x7c2b25), 3),
            blocks: BlockRange::new(7, 2),
            is_lost: true,
        };
        let status = ScrubStatus {
            is_enabled: true,
            is_running: true,
            objects_done: 3,
            objects_total: 8,
            bytes_done: 3 << 30,
            bytes_total: 8 << 30,
            last_ended_s: Some(86400),
            found: 5,
            mended: 2,
            damaged: 3,
            lost: 2,
            differed: 7,
            differing: 6,
            journal_records: 8,
            told_differing: vec![DifferingBlocks {
                vdi: b"bob".to_vec(),
                oid: damage.oid,
                blocks: BlockRange::new(4, 1),
            }],
            told: vec![damage],
            ..ScrubStatus::default()
        };
        Row { id: 1, node: "127.0.0.1:7001".into(), status }
    }

    #[test]
    fn a_node_tells_how_far_it_is_and_what_is_still_damaged() {
        let text = render(&[row()], 86400 * 20_000, Form::Human);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7);
        assert!(lines[1].starts_with("   1   127.0.0.1:7001       running    37.5%"), "{}", lines[1]);
        assert!(lines[1].ends_with("        5        2        3         7"), "{}", lines[1]);
        assert_eq!(lines[0].len(), lines[1].len());
        assert_eq!(
            lines[2],
            "node 1: blocks 7 to 8 of object 007c2b2500000003 of VDI alice: no copy is good"
        );
        assert_eq!(lines[3], "node 1: 1 more blocks are damaged");
        assert_eq!(lines[4], "node 1: 8 records of the journal were damaged; nothing needs them any more");
        assert_eq!(lines[5], "node 1: block 4 of object 007c2b2500000003 of VDI bob: copies differ");
        assert_eq!(lines[6], "node 1: copies of 5 more blocks differ");
        assert_eq!(
            render(&[row()], 86500, Form::Raw),
            "1 127.0.0.1:7001 running 3 8 3221225472 8589934592 100 5 2 3 2 7 6 8\n"
        );
    }

    #[test]
    fn a_pass_that_has_not_begun_or_counts_has_no_percentage() {
        let counting = ScrubStatus { is_counting: true, ..row().status };
        assert_eq!((state(&counting), percent(&counting)), ("counting", None));
        let line = render_row(&Row { status: counting, ..row() }, 86500);
        assert!(line.contains("counting       -          -          -   "), "{line}");
        assert_eq!(percent(&ScrubStatus::default()), None);
        assert_eq!(state(&ScrubStatus::default()), "disabled");
        let rests = ScrubStatus { is_running: false, passes: 1, ..row().status };
        assert_eq!((state(&rests), percent(&rests)), ("resting", Some(100.0)));
        let empty = ScrubStatus { is_running: true, ..ScrubStatus::default() };
        assert_eq!(percent(&empty), None);
    }
}

//! `dog vdi check [-e] [-s SNAP] NAME`: compares all copies of a VDI's objects and mends what differs.
//!
//! ```text
//! fixed missing 007c2b2500000003
//! fixed replica 807c2b2500000000
//! finish check&repair test
//! ```
//!
//! The sheep that is asked does the comparing, by checksum and version. With `-e` it is only asked what is
//! missing, and the exit code tells whether anything is.

use std::io::Write;

use proto::client::CheckReport;
use proto::object::BlockRange;
use proto::sd::ResultCode;
use proto::{NodeId, Oid};

use super::names::{lossy, name_at, open, selector};
use super::table;
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::CallError;
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "check",
    summary: "check and repair an image's consistency",
    args: "<vdiname>",
    args_min: 1,
    options: &[option::SNAPSHOT, option::EXIST, option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run),
    notes: "",
};

/// What is to be said about one object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// For stdout.
    mended: Vec<String>,
    /// For stderr.
    beyond_repair: Vec<String>,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let exist_only = parsed.has("exist");
    let name = name_at(parsed, 0)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let entries = table::fetch(&mut sheep, vid)?;
    let oids: Vec<Oid> =
        table::pages(vid, &entries).into_iter().chain(entries.iter().map(|entry| entry.oid())).collect();
    let object_bytes = 1 << u32::from(header.block_size_shift).min(40);
    let mut progress = Progress::new(oids.len() as u64 * object_bytes, context.is_terminal);
    let mut lost_objects = 0;
    for oid in oids {
        let report = match sheep.check_object(oid, !exist_only) {
            Ok(report) => Some(report),
            Err(CallError::Refused(ResultCode::NO_OBJ)) => None,
            Err(error) => {
                return Err(error.or_refused(|reason| format!("Failed to check object {oid}: {reason}")));
            }
        };
        let findings = if exist_only { find_missing(oid, report) } else { find_differences(oid, report) };
        if findings != Findings::default() {
            lost_objects += 1;
            progress.make_way(&mut context.out)?;
        }
        for line in &findings.mended {
            writeln!(context.out, "{line}")?;
        }
        findings.beyond_repair.iter().for_each(|line| notice(line));
        progress.advance(object_bytes, &mut context.out)?;
    }
    if !exist_only {
        return context.print(&format!("finish check&repair {}\n", lossy(&name)));
    }
    context.print(&render_lost(&lossy(&name), lost_objects))?;
    if lost_objects > 0 { Err(Failure::silent(exit::FAILURE)) } else { Ok(()) }
}

fn find_differences(oid: Oid, report: Option<CheckReport>) -> Findings {
    let Some(report) = report else {
        return Findings { beyond_repair: vec![format!("no node has {oid}")], ..Findings::default() };
    };
    let mut findings = Findings::default();
    let damage: Vec<(&str, NodeId)> = (report.missing.iter().map(|node| ("missing", *node)))
        .chain(differing_nodes(&report).map(|node| ("replica", node)))
        .collect();
    for (kind, node) in damage {
        if report.repaired {
            findings.mended.push(format!("fixed {kind} {oid}"));
        } else {
            findings.beyond_repair.push(format!("could not fix {kind} {oid} on {node}"));
        }
    }
    findings.beyond_repair.extend(report.lost.iter().map(|range| render_loss(oid, *range)));
    findings
}

/// Each node once, however many of its blocks differ.
fn differing_nodes(report: &CheckReport) -> impl Iterator<Item = NodeId> {
    let mut nodes: Vec<NodeId> = report.differing.iter().map(|(node, _)| *node).collect();
    nodes.dedup();
    nodes.into_iter()
}

fn find_missing(oid: Oid, report: Option<CheckReport>) -> Findings {
    let mended = match report {
        None => vec![format!("no node has {oid}")],
        Some(report) => report.missing.iter().map(|node| format!("[{node}] oid {oid} is missing.")).collect(),
    };
    Findings { mended, ..Findings::default() }
}

fn render_loss(oid: Oid, range: BlockRange) -> String {
    format!("no good copy of {oid}, blocks {} to {}", range.first, range.end().saturating_sub(1))
}

fn render_lost(name: &str, lost_objects: u64) -> String {
    match lost_objects {
        0 => format!("{name} is fine, no object is missing.\n"),
        n => format!("{name} lost {n} object(s).\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Vid;
    use std::net::Ipv4Addr;

    fn node(port: u16) -> NodeId {
        NodeId::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    fn oid() -> Oid {
        Oid::data(Vid(0x7c2b25), 3)
    }

    fn damage() -> CheckReport {
        let differing = [0, 9].map(|first| (node(7002), BlockRange::new(first, 1)));
        CheckReport { missing: vec![node(7001)], differing: differing.into(), repaired: true, lost: vec![] }
    }

    #[test]
    fn mended_copies_are_named_once_each() {
        let findings = find_differences(oid(), Some(damage()));
        assert_eq!(findings.mended, ["fixed missing 007c2b2500000003", "fixed replica 007c2b2500000003"]);
        assert_eq!(findings.beyond_repair, [""; 0]);
        assert_eq!(find_differences(oid(), Some(CheckReport::default())), Findings::default());
    }

    #[test]
    fn what_could_not_be_mended_is_told() {
        let report = CheckReport {
            repaired: false,
            lost: vec![BlockRange::new(4, 2), BlockRange::new(u32::MAX, 0)],
            ..damage()
        };
        let findings = find_differences(oid(), Some(report));
        assert_eq!(findings.mended, [""; 0]);
        assert_eq!(
            findings.beyond_repair,
            [
                "could not fix missing 007c2b2500000003 on 127.0.0.1:7001",
                "could not fix replica 007c2b2500000003 on 127.0.0.1:7002",
                "no good copy of 007c2b2500000003, blocks 4 to 5",
                "no good copy of 007c2b2500000003, blocks 4294967295 to 4294967294",
            ]
        );
        assert_eq!(find_differences(oid(), None).beyond_repair, ["no node has 007c2b2500000003"]);
    }

    #[test]
    fn missing_copies_are_only_told_about() {
        let findings = find_missing(oid(), Some(damage()));
        assert_eq!(findings.mended, ["[127.0.0.1:7001] oid 007c2b2500000003 is missing."]);
        assert_eq!(render_lost("test", 2), "test lost 2 object(s).\n");
        assert_eq!(render_lost("test", 0), "test is fine, no object is missing.\n");
    }
}

//! `dog vdi check [-e] [-s SNAP] NAME`: compares all copies of a VDI's objects and mends what differs.
//!
//! ```text
//! fixed missing 007c2b2500000003
//! fixed replica 807c2b2500000000
//! finish check&repair test
//! ```
//!
//! The sheep that is asked does the comparing, by checksum and version, under the locks that writes take: a VDI may be used meanwhile. With `-e` it
//! is only asked what is missing or lost, and the exit code tells whether anything is. With `-v` it is said on stderr what was compared.
//!
//! What is wrong with an object counts only if the VDI still is there afterwards and its table still names the object: a VDI that is deleted
//! meanwhile loses its objects one by one, on one sheep after the other.

use std::collections::BTreeSet;
use std::io::Write;

use proto::client::{CheckReport, PoolHealth};
use proto::inode::TABLE_ENTRIES;
use proto::object::BlockRange;
use proto::sd::ResultCode;
use proto::{CopyPolicy, NodeId, Oid, Vid};

use super::names::{name_at, open, selector, shown};
use super::table::{self, Entry};
use crate::command::{Action, Command, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::node::scrub::name_of;
use crate::sheep::{CallError, Sheep};
use crate::size;
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "check",
    summary: "check and repair an image's consistency",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::SNAPSHOT,
        option::EXIST,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::VERBOSE,
    ],
    needs_nodes: true,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run),
    notes: "Exit code 0 also if something could not be mended, as ever; with -e 1 if an object lacks a copy, or has blocks of which no\n\
            copy is good.",
};

/// What is to be said about one object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// For stdout.
    mended: Vec<String>,
    /// For stderr.
    beyond_repair: Vec<String>,
}

/// What is done with what is found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Repair,
    /// Only look for missing copies.
    Exist,
}

/// How the check of a VDI has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// All of it was looked at.
    Whole,
    /// The VDI was deleted before that.
    Deleted,
}

/// What a check has looked at so far. Objects that several VDIs share are compared once.
#[derive(Default)]
pub struct Tally {
    seen: BTreeSet<Oid>,
    objects: u64,
    copies: u64,
    bytes: u64,
    /// Objects of which there was something to say.
    conspicuous: u64,
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let selector = selector(parsed)?;
    let mode = if parsed.has("exist") { Mode::Exist } else { Mode::Repair };
    let name = name_at(parsed, 0)?;
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &selector)?;
    let mut tally = Tally::default();
    let checked = check_vdi(context, &mut sheep, vid, header.block_size_shift, mode, &mut tally)?;
    if context.verbose {
        notice(&tally.render());
    }
    notice_of_unchecked(&mut sheep, Some(header.policy));
    match (checked, mode) {
        (Checked::Deleted, _) => notice(&render_deleted(&name, vid)),
        (Checked::Whole, Mode::Repair) => {
            context.print(&format!("finish check&repair {}\n", shown(&name)))?;
        }
        (Checked::Whole, Mode::Exist) => context.print(&render_lost(&shown(&name), tally.conspicuous))?,
    }
    if mode == Mode::Exist && tally.conspicuous > 0 { Err(Failure::silent(exit::FAILURE)) } else { Ok(()) }
}

/// Copies that are away, or not complete, are compared by nobody: whoever believes that all is well should know.
///
/// `policy`: of VDIs with this one only.
pub fn notice_of_unchecked(sheep: &mut Sheep, policy: Option<CopyPolicy>) {
    let Ok(health) = sheep.health() else { return };
    let is_meant = |pool: &&PoolHealth| pool.vdis > 0 && policy.is_none_or(|policy| policy == pool.policy);
    let lacking: u32 = health.pools.iter().filter(is_meant).map(|pool| pool.degraded).sum();
    let down = health.members.iter().filter(|member| !member.is_up && member.out.is_none());
    let down: Vec<NodeId> = down.map(|member| member.id).collect();
    if lacking > 0 {
        notice(&render_unchecked(lacking, &down));
    }
}

fn render_unchecked(lacking: u32, down: &[NodeId]) -> String {
    let names: Vec<String> = down.iter().map(NodeId::to_string).collect();
    let copies = match names.is_empty() {
        true => "copies that are complete".to_string(),
        false => format!("copies on {}, down", names.join(", ")),
    };
    format!(
        "Not all copies were compared: {lacking} placement groups lack {copies}; see dog cluster health, and check again later"
    )
}

/// Checks all objects that a VDI's table names, and those that hold the table.
pub fn check_vdi(
    context: &mut Context,
    sheep: &mut Sheep,
    vid: Vid,
    block_size_shift: u8,
    mode: Mode,
    tally: &mut Tally,
) -> Outcome<Checked> {
    let checked = check_objects(context, sheep, vid, block_size_shift, mode, tally);
    // Whatever is asked of a deleted VDI is refused.
    match checked {
        Err(_) if is_deleted(sheep, vid).unwrap_or(false) => Ok(Checked::Deleted),
        checked => checked,
    }
}

fn check_objects(
    context: &mut Context,
    sheep: &mut Sheep,
    vid: Vid,
    block_size_shift: u8,
    mode: Mode,
    tally: &mut Tally,
) -> Outcome<Checked> {
    let entries = table::fetch(sheep, vid)?;
    let pages = table::pages(vid, &entries).into_iter().map(|oid| (oid, None));
    let objects: Vec<(Oid, Option<Entry>)> =
        pages.chain(entries.iter().map(|entry| (entry.oid(), Some(*entry)))).collect();
    let object_bytes = 1 << u32::from(block_size_shift).min(40);
    let mut progress = Progress::new(objects.len() as u64 * object_bytes, context.is_terminal);
    for (oid, entry) in objects {
        if tally.seen.insert(oid) {
            let report = check_object(sheep, oid, mode)?;
            let mut findings = match mode {
                Mode::Exist => find_missing(oid, report.as_ref()),
                Mode::Repair => find_differences(oid, report.as_ref()),
            };
            if findings.are_bad(mode) {
                let standing = standing(sheep, vid, oid, entry)?;
                if standing != Standing::Named {
                    // Another VDI may name it still.
                    tally.seen.remove(&oid);
                    findings = Findings::default();
                }
                if standing == Standing::Deleted {
                    return Ok(Checked::Deleted);
                }
            }
            tally.add(report.as_ref(), &findings);
            if findings != Findings::default() {
                progress.make_way(&mut context.out)?;
            }
            for line in &findings.mended {
                writeln!(context.out, "{line}")?;
            }
            findings.beyond_repair.iter().for_each(|line| notice(line));
        }
        progress.advance(object_bytes, &mut context.out)?;
    }
    Ok(Checked::Whole)
}

/// `None`: there is no such object.
fn check_object(sheep: &mut Sheep, oid: Oid, mode: Mode) -> Outcome<Option<CheckReport>> {
    match sheep.check_object(oid, mode == Mode::Repair) {
        Ok(report) => Ok(Some(report)),
        Err(CallError::Refused(ResultCode::NO_OBJ)) => Ok(None),
        Err(error) => Err(error.or_refused(|reason| format!("Failed to check object {oid}: {reason}"))),
    }
}

/// What has become of an object since the table was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Named,
    /// A client has discarded or rewritten it, or the VDI is smaller now.
    GivenUp,
    /// With its VDI.
    Deleted,
}

/// The table is asked first: of a deleted VDI it may still be told, but a VDI that is there afterwards was there when it was told.
fn standing(sheep: &mut Sheep, vid: Vid, oid: Oid, entry: Option<Entry>) -> Outcome<Standing> {
    let is_named = match entry {
        Some(entry) => sheep.owner_at(vid, entry.index)? == entry.owner,
        None => is_page_in_use(sheep, vid, oid.index())?,
    };
    Ok(match (is_deleted(sheep, vid)?, is_named) {
        (true, _) => Standing::Deleted,
        (false, true) => Standing::Named,
        (false, false) => Standing::GivenUp,
    })
}

fn is_page_in_use(sheep: &mut Sheep, vid: Vid, page: u32) -> Outcome<bool> {
    let table = sheep.table(vid, page * TABLE_ENTRIES)?;
    Ok(page == 0 || table.entries.iter().any(|(index, ..)| index / TABLE_ENTRIES == page))
}

fn is_deleted(sheep: &mut Sheep, vid: Vid) -> Outcome<bool> {
    Ok(sheep.vdis()?.iter().all(|info| info.vid != vid))
}

pub fn render_deleted(name: &[u8], vid: Vid) -> String {
    format!("VDI {} ({vid}) was deleted meanwhile", shown(name))
}

impl Findings {
    /// Is anything still wrong?
    fn are_bad(&self, mode: Mode) -> bool {
        !self.beyond_repair.is_empty() || (mode == Mode::Exist && !self.mended.is_empty())
    }
}

impl Tally {
    fn add(&mut self, report: Option<&CheckReport>, findings: &Findings) {
        let is_conspicuous = *findings != Findings::default();
        // One that was given up was none of the VDI's.
        self.objects += u64::from(report.is_some() || is_conspicuous);
        self.conspicuous += u64::from(is_conspicuous);
        self.copies += report.map_or(0, |report| u64::from(report.copies));
        self.bytes += report.map_or(0, |report| report.compared_bytes);
    }

    pub fn render(&self) -> String {
        format!("Compared {} of {} objects in {} copies", size::human(self.bytes), self.objects, self.copies)
    }
}

fn find_differences(oid: Oid, report: Option<&CheckReport>) -> Findings {
    let Some(report) = report else {
        return Findings { beyond_repair: vec![format!("no node has {oid}")], ..Findings::default() };
    };
    let mut findings = Findings::default();
    let damage: Vec<(&str, NodeId)> = (report.missing.iter().map(|node| ("missing", *node)))
        .chain(differing_nodes(report).map(|node| ("replica", node)))
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

fn find_missing(oid: Oid, report: Option<&CheckReport>) -> Findings {
    let mended = match report {
        None => vec![format!("no node has {oid}")],
        Some(report) => report.missing.iter().map(|node| format!("[{node}] oid {oid} is missing.")).collect(),
    };
    let lost = report.into_iter().flat_map(|report| &report.lost);
    Findings { mended, beyond_repair: lost.map(|range| render_loss(oid, *range)).collect() }
}

fn render_loss(oid: Oid, range: BlockRange) -> String {
    format!("no good copy of {oid}, {}", name_of(range))
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
    use std::net::Ipv4Addr;

    fn node(port: u16) -> NodeId {
        NodeId::new(Ipv4Addr::LOCALHOST.into(), port)
    }

    #[test]
    fn copies_that_nobody_compared_are_told_of() {
        let text = render_unchecked(3, &[node(7001), node(7002)]);
        assert!(
            text.contains("3 placement groups lack copies on 127.0.0.1:7001, 127.0.0.1:7002, down"),
            "{text}"
        );
        assert!(render_unchecked(3, &[]).contains("lack copies that are complete"));
    }

    fn oid() -> Oid {
        Oid::data(Vid(0x7c2b25), 3)
    }

    fn damage() -> CheckReport {
        let differing = [0, 9].map(|first| (node(7002), BlockRange::new(first, 1)));
        CheckReport {
            missing: vec![node(7001)],
            differing: differing.into(),
            repaired: true,
            ..CheckReport::default()
        }
    }

    #[test]
    fn mended_copies_are_named_once_each() {
        let findings = find_differences(oid(), Some(&damage()));
        assert_eq!(findings.mended, ["fixed missing 007c2b2500000003", "fixed replica 007c2b2500000003"]);
        assert_eq!(findings.beyond_repair, [""; 0]);
        assert_eq!(find_differences(oid(), Some(&CheckReport::default())), Findings::default());
    }

    #[test]
    fn what_could_not_be_mended_is_told() {
        let report = CheckReport {
            repaired: false,
            lost: vec![BlockRange::new(4, 2), BlockRange::new(u32::MAX, 0)],
            ..damage()
        };
        let findings = find_differences(oid(), Some(&report));
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
        let findings = find_missing(oid(), Some(&damage()));
        assert_eq!(findings.mended, ["[127.0.0.1:7001] oid 007c2b2500000003 is missing."]);
        assert_eq!(findings.beyond_repair, [""; 0]);
        let report = CheckReport { lost: vec![BlockRange::new(4, 2)], ..CheckReport::default() };
        let lost = "no good copy of 007c2b2500000003, blocks 4 to 5";
        assert_eq!(find_missing(oid(), Some(&report)).beyond_repair, [lost]);
        assert_eq!(render_lost("test", 2), "test lost 2 object(s).\n");
        assert_eq!(render_lost("test", 0), "test is fine, no object is missing.\n");
    }
}

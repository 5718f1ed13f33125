//! `dog cluster health [-r | --json]`: one word, and the reasons for it.
//!
//! ```text
//! degraded
//!
//! 1024 of 1024 placement groups of VDIs with 3 copies lack complete copies; the worst have 2: alice, bob
//!     start the nodes that are down
//! node 127.0.0.1:7002 in zone 2 is down since epoch 2 (2026-11-22 11:23:11); 1024 placement groups have a place on it
//!     start its sheep again; it fetches what it has missed
//! ```
//!
//! The view of the sheep that is talked to counts, and what the others say of themselves. Raw: the word, then a line for each reason: its
//! severity (a word like the first), what is so, and what to do, separated by tabs.

pub mod verdict;

use proto::NodeId;
use serde_json::json;

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::node::list::name_of_out;
use crate::sheep::Sheep;

use verdict::{Heard, NodeHeard, Reason, Word};

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "health",
    summary: "tell whether all data are safe and served",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: false,
    check: no_values,
    action: Action::Run(run),
    notes: "The first line is one word. Exit code 0: ok. 1: degraded: everything is served, but something lacks copies or\n\
            room. 2: full (a disk has no room, so writes that need some are refused now), unresponsive (a member does not answer), blocked (writes wait), waiting (reads wait too), stopping,\n\
            unformatted, lost (blocks of which no good copy is left), or unreachable (the sheep that was asked).",
};

/// Where no sheep answers there is no verdict, but there is a word.
const UNREACHABLE: &str = "unreachable";

fn run(context: &mut Context, _: &Parsed) -> Outcome {
    let heard = match hear(context) {
        Ok(heard) => heard,
        Err(failure) => {
            let text = match context.form {
                Form::Json => format!("{:#}\n", json!({ "health": UNREACHABLE, "reasons": [] })),
                _ => format!("{UNREACHABLE}\n"),
            };
            context.print(&text)?;
            return Err(Failure::system(failure.message));
        }
    };
    let text = match context.form {
        Form::Human => render(heard.word(), &heard.reasons()),
        Form::Raw => render_raw(heard.word(), &heard.reasons()),
        Form::Json => render_json(&heard),
    };
    context.print(&text)?;
    match heard.word() {
        Word::Ok => Ok(()),
        Word::Degraded => Err(Failure::silent(exit::FAILURE)),
        _ => Err(Failure::silent(exit::SYSTEM)),
    }
}

fn hear(context: &mut Context) -> Outcome<Heard> {
    let mut sheep = Sheep::connect(&context.target)?;
    let info = sheep.cluster_info()?;
    let health = sheep.health()?;
    let vdis = if info.format.is_some() { sheep.vdis()? } else { vec![] };
    let nodes: Vec<NodeId> = info.nodes.iter().map(|node| node.id).collect();
    let heard = ask_all(&nodes, |sheep| Ok(NodeHeard { stat: sheep.node_stat()?, scrub: sheep.scrub()? }));
    let why = |error| Failure::from(error).message.lines().next().unwrap_or_default().to_string();
    let heard = heard.into_iter().map(|heard| heard.map_err(why));
    let stats = nodes.into_iter().zip(heard).collect();
    Ok(Heard { info, health, stats, vdis })
}

fn render(word: Word, reasons: &[Reason]) -> String {
    let mut text = format!("{}\n", word.text());
    if !reasons.is_empty() {
        text.push('\n');
    }
    for reason in reasons {
        text += &format!("{}\n    {}\n", reason.text, reason.advice);
    }
    text
}

fn render_raw(word: Word, reasons: &[Reason]) -> String {
    let lines = reasons
        .iter()
        .map(|reason| format!("{}\t{}\t{}\n", reason.severity.text(), reason.text, reason.advice));
    std::iter::once(format!("{}\n", word.text())).chain(lines).collect()
}

fn render_json(heard: &Heard) -> String {
    let reasons: Vec<_> = heard
        .reasons()
        .iter()
        .map(|reason| json!({ "severity": reason.severity.text(), "text": reason.text, "advice": reason.advice }))
        .collect();
    let members: Vec<_> = heard
        .health
        .members
        .iter()
        .map(|member| {
            json!({
                "node": member.id.to_string(),
                "zone": member.zone.0,
                "space_bytes": member.space_bytes,
                "up": member.is_up,
                "pgs": member.pgs,
                "pgs_in_sync": member.pgs_in_sync,
                "pgs_awaiting": member.pgs_awaiting,
                "pgs_unreadable": member.pgs_unreadable,
                "disk_failed": member.disk_failed,
                "out": member.out.map(name_of_out),
            })
        })
        .collect();
    let pools: Vec<_> = heard
        .health
        .pools
        .iter()
        .map(|pool| {
            json!({
                "copies": pool.policy.to_string(),
                "default": pool.is_default,
                "vdis": pool.vdis,
                "pgs": pool.pgs,
                "places_min": pool.targets_min,
                "copies_min": pool.copies_min,
                "degraded": pool.degraded,
                "moving": pool.moving,
                "unwritable": pool.unwritable,
                "unreadable": pool.unreadable,
            })
        })
        .collect();
    let document = json!({
        "health": heard.word().text(),
        "reasons": reasons,
        "members": members,
        "pools": pools,
    });
    format!("{document:#}\n")
}

//! `dog node safe-to-stop ID|HOST:PORT... [--wait]`: may these machines be switched off?
//!
//! ```text
//! short
//!
//! 512 placement groups would have fewer complete copies than there are places for them
//!     wait, copies are being made: dog node recovery
//! ```
//!
//! One word, and the reasons for it, as `dog cluster health` has them. Every sheep that is up is asked what its view tells, those that are to be
//! stopped as well, and the worst answer counts: one that lags behind may make the answer "not yet" for longer, never "yes" too early. The nodes that
//! stay may all lag behind, while one that is to go has taken writes alone; so what it says counts if it says something. It need not: it
//! may be down already.

mod verdict;

use std::thread;
use std::time::{Duration, Instant};

use proto::NodeId;
use serde_json::json;

use super::named;
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form, notice};
use crate::everyone::ask_all;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::sheep::Sheep;
use verdict::{Heard, Leaving, Told, Word};

pub const COMMAND: Command = Command {
    group: "node",
    name: "safe-to-stop",
    summary: "tell whether nodes may be switched off",
    args: "<node id | host:port>...",
    args_min: 1,
    args_max: 64,
    options: &[
        option::ADDRESS,
        option::PORT,
        option::RAW,
        option::HELP,
        option::WAIT,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "Of all these nodes together, as those of one machine. Exit code 0: safe: every placement group has all its copies without them.\n\
            6: short: everything is served without them, but with fewer copies: for a restart, not for good; also where there are\n\
            too few zones for the copies that VDIs want: add nodes in other zones. 7: held (writes would wait) or lost (reads\n\
            too, as nobody else has a complete copy). 2: unknown: a node does not answer. 1 and 64 are errors.\n\
            Copies that are still being made, or are on nodes that are down, do not count. It holds for the moment: nodes that\n\
            are to go for good are put out first (dog node out), so that nothing new is stored there.\n\
            --wait: until it is safe; not where that cannot come by itself, as for a node that is not out, or once nothing but\n\
            zones is lacking. With a bound: timeout 2h dog ...",
};

/// Between looks while it waits.
const LOOK: Duration = Duration::from_secs(1);
/// Between words to whom it waits for.
const NOTICE: Duration = Duration::from_secs(60);

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let health = context.connect()?.health()?;
    let known: Vec<NodeId> = health.members.iter().map(|member| member.id).collect();
    let up = context.node_ids();
    let mut nodes = Vec::new();
    for text in &parsed.positionals {
        let node = named::find(text, &up, &known)?;
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    let heard = if parsed.has("wait") { wait(context, nodes)? } else { hear(context, nodes)? };
    tell(context, &heard)
}

/// Prints the verdict. Its word is the exit code.
pub fn tell(context: &mut Context, heard: &Heard) -> Outcome {
    let text = match context.form {
        Form::Human => render(heard),
        Form::Raw => render_raw(heard),
        Form::Json => render_json(heard),
    };
    context.print(&text)?;
    match heard.word() {
        Word::Safe => Ok(()),
        Word::Short => Err(Failure::silent(exit::SHORT)),
        Word::Held | Word::Lost => Err(Failure::silent(exit::NEEDED)),
        Word::Unknown => Err(Failure::silent(exit::SYSTEM)),
    }
}

/// Until nothing is needed there any more, or waiting is of no use.
pub fn wait(context: &Context, nodes: Vec<NodeId>) -> Outcome<Heard> {
    let mut told: Option<Instant> = None;
    loop {
        let heard = hear(context, nodes.clone())?;
        if heard.word() == Word::Safe || !heard.may_improve() {
            return Ok(heard);
        }
        if told.is_none_or(|at| at.elapsed() >= NOTICE) {
            let why = heard.reasons().into_iter().next().map_or(String::new(), |reason| reason.text);
            notice(&format!("Waiting: {why}"));
            told = Some(Instant::now());
        }
        thread::sleep(LOOK);
    }
}

fn hear(context: &Context, nodes: Vec<NodeId>) -> Outcome<Heard> {
    let mut sheep = Sheep::connect(&context.target)?;
    let health = sheep.health()?;
    let info = sheep.cluster_info()?;
    let own = sheep.stop_risk(&nodes)?;
    let (leaving, others): (Vec<NodeId>, Vec<NodeId>) =
        info.nodes.iter().map(|node| node.id).partition(|node| nodes.contains(node));
    let ask = |sheep: &mut Sheep| Ok(Told { risk: sheep.stop_risk(&nodes)?, scrub: sheep.scrub()? });
    let why = |error| Failure::from(error).message.lines().next().unwrap_or_default().to_string();
    let told = ask_all(&others, ask).into_iter().map(|told| told.map_err(why));
    let told = others.iter().copied().zip(told).collect();
    let ask = |sheep: &mut Sheep| {
        Ok(Leaving {
            risk: sheep.stop_risk(&nodes)?,
            guests: sheep.access().map_or(0, |access| access.guests.len()),
        })
    };
    // Who is down or hangs is to be stopped anyway: what it would have told is in the views of those that stay, who must all answer.
    let leaving = ask_all(&leaving, ask).into_iter().flatten().collect();
    Ok(Heard { nodes, is_enabled: info.repair.enabled, health, own, told, leaving })
}

fn render(heard: &Heard) -> String {
    let reasons = heard.reasons();
    let blank = if reasons.is_empty() { "" } else { "\n" };
    let lines: String =
        reasons.iter().map(|reason| format!("{}\n    {}\n", reason.text, reason.advice)).collect();
    format!("{}\n{blank}{lines}", heard.word().text())
}

fn render_raw(heard: &Heard) -> String {
    let lines = heard.reasons().into_iter();
    let lines = lines.map(|reason| format!("{}\t{}\t{}\n", reason.word.text(), reason.text, reason.advice));
    std::iter::once(format!("{}\n", heard.word().text())).chain(lines).collect()
}

fn render_json(heard: &Heard) -> String {
    let reasons: Vec<_> = heard
        .reasons()
        .into_iter()
        .map(|reason| json!({ "severity": reason.word.text(), "text": reason.text, "advice": reason.advice }))
        .collect();
    let risk = heard.worst();
    let document = json!({
        "verdict": heard.word().text(),
        "nodes": heard.nodes.iter().map(NodeId::to_string).collect::<Vec<_>>(),
        "reasons": reasons,
        "pgs": risk.pgs,
        "pgs_lost": risk.lost.pgs,
        "pgs_lost_already": risk.lost.already,
        "pgs_held": risk.held.pgs,
        "pgs_held_already": risk.held.already,
        "pgs_short": risk.short.pgs,
        "pgs_short_already": risk.short.already,
        "pgs_few": risk.few.pgs,
        "guests": heard.guests(),
    });
    format!("{document:#}\n")
}

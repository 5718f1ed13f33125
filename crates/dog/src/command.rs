//! The table of subcommands and everything printed from it: overview, lists, usage blocks.
//!
//! Completion scripts and man-page generators parse the two-space lines, so their form is fixed. A
//! subcommand that is not in the table does not exist: there are no stubs.

use std::fmt::Write;

use crate::context::Context;
use crate::failure::Outcome;
use crate::getopt::{Opt, Parsed};

/// One subcommand.
pub struct Command {
    /// `vdi`, `vm`, `node` or `cluster`; a command that stands alone is its own group.
    pub group: &'static str,
    /// Empty for one that stands alone.
    pub name: &'static str,
    pub summary: &'static str,
    /// Positionals as the usage line shows them.
    pub args: &'static str,
    pub args_min: usize,
    /// Of one with subcommands: what they take says that.
    pub args_max: usize,
    pub options: &'static [Opt],
    /// Whether the node list is fetched before the positionals are looked at. So an unreachable sheep is
    /// reported first, which scripts know.
    pub needs_nodes: bool,
    /// Refuses wrong option values before anything is connected.
    pub check: fn(&Parsed) -> Outcome,
    pub action: Action,
    /// Further paragraphs for the usage block.
    pub notes: &'static str,
}

pub enum Action {
    Run(fn(&mut Context, &Parsed) -> Outcome),
    /// The first positional chooses.
    Sub(&'static [SubCommand]),
}

pub struct SubCommand {
    pub name: &'static str,
    pub summary: &'static str,
    /// Positionals, its own name not counted.
    pub args_min: usize,
    pub args_max: usize,
    /// Needs no sheep, so none is looked for.
    pub is_local: bool,
    pub run: fn(&mut Context, &Parsed) -> Outcome,
}

impl Command {
    /// As one types it after `dog`.
    pub fn title(&self) -> String {
        format!("{} {}", self.group, self.name).trim_end().to_string()
    }

    /// Does the first positional end the options? It is a command with options of its own.
    pub fn runs_another(&self) -> bool {
        self.name.is_empty()
    }

    /// What the first positional chooses.
    pub fn chosen(&self, parsed: &Parsed) -> Option<&SubCommand> {
        let Action::Sub(subs) = &self.action else { return None };
        let word = parsed.positionals.first()?;
        subs.iter().find(|sub| sub.name.as_bytes() == word.as_slice())
    }
}

/// All subcommands, in the order of the overview.
pub const COMMANDS: &[&Command] = &[
    &crate::vdi::check::COMMAND,
    &crate::vdi::create::COMMAND,
    &crate::vdi::snapshot::COMMAND,
    &crate::vdi::clone::COMMAND,
    &crate::vdi::delete::COMMAND,
    &crate::vdi::rollback::COMMAND,
    &crate::vdi::list::COMMAND,
    &crate::vdi::tree::COMMAND,
    &crate::vdi::graph::COMMAND,
    &crate::vdi::object::COMMAND,
    &crate::vdi::track::COMMAND,
    &crate::vdi::attribute::SET,
    &crate::vdi::attribute::GET,
    &crate::vdi::resize::COMMAND,
    &crate::vdi::read::COMMAND,
    &crate::vdi::write::COMMAND,
    &crate::vdi::backup::COMMAND,
    &crate::vdi::restore::COMMAND,
    &crate::vdi::export::COMMAND,
    &crate::vdi::import::COMMAND,
    &crate::vdi::alter_copy::COMMAND,
    &crate::vdi::lock::COMMAND,
    &crate::vdi::attach::ATTACH,
    &crate::vdi::attach::DETACH,
    &crate::vdi::attach::ATTACHED,
    &crate::vm::list::COMMAND,
    &crate::run::COMMAND,
    &crate::node::kill::COMMAND,
    &crate::node::list::COMMAND,
    &crate::node::info::COMMAND,
    &crate::node::recovery::COMMAND,
    &crate::node::scrub::COMMAND,
    &crate::node::out::OUT,
    &crate::node::out::IN,
    &crate::node::safe_to_stop::COMMAND,
    &crate::node::md::COMMAND,
    &crate::node::stat::COMMAND,
    &crate::cluster::health::COMMAND,
    &crate::cluster::info::COMMAND,
    &crate::cluster::format::COMMAND,
    &crate::cluster::out_time::COMMAND,
    &crate::cluster::recover::COMMAND,
    &crate::cluster::scrub::COMMAND,
    &crate::cluster::shutdown::COMMAND,
    &crate::cluster::check::COMMAND,
    &crate::cluster::alter_copy::COMMAND,
];

pub fn no_values(_: &Parsed) -> Outcome {
    Ok(())
}

const fn flag(short: char, long: &'static str, help: &'static str) -> Opt {
    Opt { short: Some(short), long, has_value: false, help }
}

const fn value(short: char, long: &'static str, help: &'static str) -> Opt {
    Opt { short: Some(short), long, has_value: true, help }
}

/// The options, each named by its letter. Letters that mean different things have a word added.
pub mod option {
    use super::{Opt, flag, value};

    pub const ADDRESS: Opt = value(
        'a',
        "address",
        "the sheep to talk to: a host, or the path of\na sheep's socket (default: localhost)",
    );
    pub const PORT: Opt = value('p', "port", "its port (default: 7000)");
    pub const RAW: Opt = flag(
        'r',
        "raw",
        "for programs: no headers, single spaces, sizes in\nbytes, times in seconds since 1970",
    );
    pub const VERBOSE: Opt = flag('v', "verbose", "say more");
    pub const TIME: Opt = flag('T', "time", "say at the end how long it took");
    pub const HELP: Opt = flag('h', "help", "show this help and exit");
    pub const JSON: Opt =
        Opt { short: None, long: "json", has_value: false, help: "print one JSON document" };

    pub const SNAPSHOT: Opt = value('s', "snapshot", "a snapshot's id or tag");
    pub const TAG: Opt = value('s', "snapshot", "the tag of the new snapshot; not all digits");
    pub const REDUCE: Opt =
        flag('R', "reduce-identical-snapshots", "no snapshot where nothing was written since the last");
    pub const COPY_ALL: Opt = flag('P', "prealloc", "copy all objects now");
    pub const NO_SHARE: Opt = flag('n', "no-share", "share nothing: an image of its own");
    pub const BATCH: Opt =
        value('B', "nr-batched-reclamation", "accepted for old scripts: the sheep pace\nthemselves");
    pub const INTERVAL: Opt = value('I', "reclamation-interval", "accepted for old scripts, as -B");
    pub const MAX_RECLAIM: Opt =
        value('m', "max-reclaim", "only discard up to this many objects, and keep the\nimage");
    pub const EXIST: Opt = flag('e', "exist", "only look for missing objects, repair nothing");
    pub const PREALLOC: Opt = flag('P', "prealloc", "allocate all objects now, filled with zeros");
    pub const COPIES: Opt = value('c', "copies", "number of copies, 1 to 31");
    pub const SHIFT: Opt =
        value('z', "block_size_shift", "object size as a power of two, 20 (1 MiB)\nto 31 (2 GiB)");
    pub const INDEX: Opt = value('i', "index", "index of a data object, decimal or 0x hex");
    pub const OID: Opt = value('o', "oid", "only VDIs that use this data object (hex)");
    pub const OBJECT: Opt = value('o', "oid", "a data object of the image (hex)");
    pub const FROM: Opt = value('F', "from", "the snapshot that the backup starts from");
    pub const OUTPUT: Opt =
        value('o', "output", "write to this file, or go on with it after an\ninterruption");
    pub const FORMAT: Opt =
        value('f', "format", "raw (default), or any that qemu-img knows: qcow2,\nvmdk, vdi, vpc, vhdx ...");
    pub const SOCKET: Opt = Opt {
        short: None,
        long: "socket",
        has_value: true,
        help: "the sheep's nbd.sock, for formats other than raw",
    };
    pub const NBD: Opt = Opt {
        short: None,
        long: "nbd",
        has_value: true,
        help: "the same as HOST:PORT. Without both: SHEEPDOG_NBD, or\nwhat the sheep tells",
    };
    pub const VHOST_USER: Opt = Opt {
        short: None,
        long: "vhost-user",
        has_value: true,
        help: "the socket: a path, or a name in the sheep's directory\nof sockets",
    };
    pub const DELETE: Opt = flag('d', "delete", "delete the attribute");
    pub const EXCLUSIVE: Opt = flag('x', "exclusive", "only if there is no such attribute yet");
    pub const WRITEBACK: Opt =
        flag('w', "writeback", "allow the sheep to acknowledge before the data is\ndurable");

    pub const LOCAL: Opt = flag('l', "local", "the sheep that is talked to");
    pub const ALL: Opt = flag('A', "all", "disks of all nodes");
    pub const PROGRESS: Opt =
        flag('P', "progress", "a bar of the node that is talked to, until it lacks\nnothing");
    pub const WAIT: Opt =
        Opt { short: None, long: "wait", has_value: false, help: "until it is safe to stop" };
    pub const WATCH: Opt = flag('w', "watch", "again every second, with rates");

    pub const STORE: Opt = value(
        'b',
        "store",
        "name of the object store: plain (default) or tree.\nBoth stand for the one layout there is",
    );
    pub const LOCK: Opt = flag('l', "lock", "one client at a time may open a VDI");
    pub const STRICT: Opt = flag(
        't',
        "strict",
        "hold writes while not all copies that are wanted\nare there, until they are; reads go on",
    );
    pub const DIFF: Opt = flag('d', "diff", "show each epoch as a change of the one before");
    pub const HYPER: Opt =
        flag('y', "hyper", "a hyper volume: up to 16 PiB, but not for clients\nof the native protocol");
    pub const FIXED_VNODES: Opt = flag('V', "fixedvnodes", "fixed vnodes (not supported yet: refused)");
    pub const RECYCLE: Opt = flag('R', "recyclevid", "use VDI ids again (not supported yet: refused)");
    pub const AVOID_FULL: Opt =
        flag('F', "avoid-diskfull", "start no recovery that would fill disks (not\nsupported yet: refused)");
    pub const OUT_TIME: Opt = Opt {
        short: None,
        long: "out-time",
        has_value: true,
        help: "a node that is down is given up after this time:\n10m (default), 90s, 1h; 0: never",
    };
    pub const PRINT: Opt = flag('P', "print", "print the commands instead of running them");
    pub const FORCE: Opt = flag('f', "force", "do not ask");
}

/// What `dog` alone prints.
pub fn overview() -> String {
    let mut text = format!(
        "Sheepdog administrator utility (version {})\nUsage: dog <command> <subcommand> [options]\n\nAvailable \
         commands:\n",
        env!("CARGO_PKG_VERSION")
    );
    for command in COMMANDS {
        let _ = writeln!(text, "  {:<24}{}", command.title(), command.summary);
    }
    text.push_str(
        "\nFor help on one of them: dog <command> <subcommand> --help\nEnvironment: SHEEPDOG_DOG_ADDR and \
         SHEEPDOG_DOG_PORT name the sheep to talk to; SHEEPDOG_DOG_LOG logs\neach invocation to syslog, or to the \
         file that SHEEPDOG_DOG_LOG_PATH names.\n",
    );
    text
}

/// The subcommands of a group, or nothing if there is no such group.
pub fn group_list(group: &str) -> Option<String> {
    let mut members = COMMANDS.iter().filter(|command| command.group == group).peekable();
    members.peek()?;
    let lines: String = members.map(|command| format!("  {group} {}\n", command.name)).collect();
    Some(format!("Available {group} commands:\n{lines}"))
}

pub fn find(group: &str, name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.group == group && command.name == name).copied()
}

/// `Usage: dog vdi create [-P] [-c copies] ... <vdiname> <size>` and the options, one line each.
pub fn usage(command: &Command) -> String {
    let mut text = format!("Usage: dog {}", command.title());
    if let Action::Sub(subs) = &command.action {
        let names: Vec<&str> = subs.iter().map(|sub| sub.name).collect();
        let _ = write!(text, " {{{}}}", names.join("|"));
    }
    for opt in command.options {
        let name = opt.short.map_or(format!("--{}", opt.long), |short| format!("-{short}"));
        let value = if opt.has_value { format!(" {}", opt.long) } else { String::new() };
        let _ = write!(text, " [{name}{value}]");
    }
    if !command.args.is_empty() {
        let _ = write!(text, " {}", command.args);
    }
    text.push('\n');
    if let Action::Sub(subs) = &command.action {
        text.push_str("Available subcommands:\n");
        for sub in *subs {
            let _ = writeln!(text, "  {:<24}{}", sub.name, sub.summary);
        }
    }
    text.push_str("Options:\n");
    for opt in command.options {
        let name =
            opt.short.map_or(format!("    --{}", opt.long), |short| format!("-{short}, --{}", opt.long));
        // Names that fill their column keep a space before the description.
        let _ = writeln!(text, "  {name:<23} {}", opt.help.replace('\n', &format!("\n{:26}", "")));
    }
    if !command.notes.is_empty() {
        let _ = write!(text, "\n{}\n", command.notes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(command: &Command) -> String {
        command.options.iter().filter_map(|opt| opt.short).collect()
    }

    /// The table of the specification.
    #[test]
    fn each_subcommand_offers_exactly_its_letters() {
        for (name, expect) in [
            // -v is ours.
            ("vdi check", "seaphTv"),
            ("vdi create", "PycaphrvzT"),
            ("vdi snapshot", "saphrvTR"),
            ("vdi clone", "sPnaphrvT"),
            ("vdi delete", "fsaphTBIm"),
            ("vdi rollback", "saphfrvTBI"),
            ("vdi list", "aprhoT"),
            // -v is ours.
            ("vdi tree", "aphTv"),
            ("vdi graph", "aphT"),
            ("vdi object", "isaphT"),
            ("vdi track", "isaphoT"),
            ("vdi setattr", "dxaphT"),
            ("vdi getattr", "aphT"),
            ("vdi resize", "yaphT"),
            ("vdi read", "saphT"),
            ("vdi write", "apwhT"),
            // -o is ours.
            ("vdi backup", "sFoaphT"),
            ("vdi restore", "saphTBI"),
            // Ours.
            ("vdi export", "sfaphT"),
            ("vdi import", "faphT"),
            ("vdi alter-copy", "caphTf"),
            ("vdi lock", "saphT"),
            // Ours.
            ("vdi attach", "saphT"),
            ("vdi detach", "saphT"),
            ("vdi attached", "aprhT"),
            ("vm list", "aprhT"),
            ("run ", "Paph"),
            ("node kill", "aprhlT"),
            ("node list", "aprhT"),
            ("node info", "aprhT"),
            ("node recovery", "aphPrT"),
            // Ours.
            ("node out", "aphfT"),
            ("node in", "aphT"),
            ("node safe-to-stop", "aprhT"),
            ("cluster out-time", "aprhT"),
            ("cluster recover", "afphT"),
            // Ours.
            ("cluster scrub", "aprhT"),
            ("node scrub", "aprhT"),
            ("node md", "aprAhT"),
            ("node stat", "aprwhT"),
            ("cluster info", "aprhvTd"),
            // Ours.
            ("cluster health", "aprhT"),
            ("cluster format", "bcltaphzTVRfF"),
            ("cluster shutdown", "aphT"),
            ("cluster alter-copy", "aphTcf"),
            // -v is ours.
            ("cluster check", "aphTv"),
        ] {
            let (group, subcommand) = name.split_once(' ').unwrap();
            let command = find(group, subcommand).expect(name);
            assert_eq!(letters(command), expect, "{name}");
        }
        assert_eq!(COMMANDS.len(), 46);
    }

    #[test]
    fn options_of_a_subcommand_do_not_clash() {
        for command in COMMANDS {
            for (at, opt) in command.options.iter().enumerate() {
                let clash = command.options[..at].iter().any(|other| {
                    other.long == opt.long || (other.short.is_some() && other.short == opt.short)
                });
                assert!(!clash, "{} {}: {}", command.group, command.name, opt.long);
            }
        }
    }

    #[test]
    fn every_option_line_separates_name_and_description() {
        for command in COMMANDS {
            let text = usage(command);
            assert!(text.starts_with(&format!("Usage: dog {}", command.title())));
            for line in text.lines().filter(|line| line.starts_with("  -") || line.starts_with("      --")) {
                let description = line.trim_start().split_once("--").unwrap().1;
                assert!(description.contains(' '), "{line}");
            }
        }
    }

    #[test]
    fn groups_list_their_subcommands() {
        assert_eq!(
            group_list("cluster").unwrap(),
            "Available cluster commands:\n  cluster health\n  cluster info\n  cluster format\n  cluster out-time\n  cluster recover\n  cluster scrub\n  cluster shutdown\n  cluster check\n  cluster alter-copy\n"
        );
        assert_eq!(group_list("nosuch"), None);
    }
}

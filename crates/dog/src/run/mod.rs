//! `dog run [-a HOST] [-p PORT] [-P] -- COMMAND ARGS...`: QEMU's programs with the names that volumes had in QEMU's old driver.
//!
//! Today's QEMU has no such driver. Its arguments are rewritten so that volumes are reached over NBD, what the driver did besides
//! reading and writing is done here, and then the command takes this process's place: signals, streams and the exit code
//! are its own.
//!
//! [`name`] has the forms of names, [`find`] asks where a volume is; [`machine`], [`tool`] and [`img`] rewrite; a [`deed`] is
//! what dog does itself.

pub mod deed;
pub mod find;
pub mod img;
pub mod json;
pub mod machine;
pub mod name;
pub mod options;
pub mod report;
pub mod tool;
pub mod words;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command as Process, ExitStatus};

use deed::Deed;
use find::{Finder, Flock};
use words::{as_text, quoted};

use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, exit, reason};
use crate::getopt::Parsed;
use crate::sheep::Selector;

pub const COMMAND: Command = Command {
    group: "run",
    name: "",
    summary: "run QEMU's programs with sheepdog: names",
    args: "[--] <command> [<argument>...]",
    args_min: 1,
    args_max: usize::MAX,
    options: &[option::PRINT, option::ADDRESS, option::PORT, option::HELP],
    needs_nodes: false,
    check: no_values,
    action: Action::Run(run),
    notes: "The command is qemu-img, qemu-io, qemu-nbd, qemu-storage-daemon, qemu-system-* or kvm, with a path or without.\n\
            Its arguments may name volumes as QEMU's old driver did:\n\
            \x20 sheepdog:NAME[:SNAP]                    sheepdog:HOST:PORT:NAME[:SNAP]\n\
            \x20 sheepdog://[HOST[:PORT]]/NAME[#SNAP]    sheepdog+unix:///NAME?socket=PATH[#SNAP]\n\
            \x20 driver=sheepdog,vdi=NAME[,snap-id=ID|,tag=TAG][,server.type=...]\n\
            SNAP is the id of a snapshot if it is a number, else its tag. Volumes are reached through the NBD server of the\n\
            sheep that is named, or else of the one that dog talks to; SHEEPDOG_NBD (a path, or HOST:PORT) names another.\n\
            A machine that is started from a snapshot writes to a temporary file, which is gone when it ends.",
};

/// How a command line comes true.
#[derive(Debug, PartialEq, Eq)]
pub enum Job {
    Exec(Vec<Vec<u8>>),
    /// Nothing is left for the command to do.
    Deed(Deed),
    /// A volume is made, and the command fills it. If it fails, the volume goes.
    Fill {
        make: Deed,
        words: Vec<Vec<u8>>,
    },
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let mut flock = Flock::new(context.target.clone(), context.nbd.clone());
    let job = plan(&parsed.positionals, &mut flock)?;
    if parsed.has("print") {
        return context.print(&describe(&job));
    }
    match job {
        Job::Exec(words) => exec(context, &words),
        Job::Deed(deed) => deed.carry_out(context, &mut flock),
        Job::Fill { make, words } => {
            make.carry_out(context, &mut flock)?;
            fill(&words).inspect_err(|_| remove(&make, &mut flock))
        }
    }
}

fn plan(words: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Job> {
    let (program, args) = words.split_first().expect("at least one positional");
    let rewritten = match as_text(program).rsplit('/').next().unwrap_or_default() {
        "qemu-img" => return img::plan(program, args, finder),
        "qemu-io" | "qemu-nbd" => tool::rewrite_opener(args, finder)?,
        name if machine::is_machine(name) => machine::rewrite(args, finder)?,
        _ => {
            return Err(Failure::bad_value(format!(
                "'{}' is no program that dog run knows: qemu-img, qemu-io, qemu-nbd, qemu-storage-daemon, qemu-system-* and \
                 kvm are",
                String::from_utf8_lossy(program)
            )));
        }
    };
    Ok(Job::Exec([vec![program.clone()], rewritten].concat()))
}

fn describe(job: &Job) -> String {
    match job {
        Job::Exec(words) => format!("{}\n", quoted(words)),
        Job::Deed(deed) => deed.describe(),
        Job::Fill { make, words } => format!("{}{}\n", make.describe(), quoted(words)),
    }
}

fn process(words: &[Vec<u8>]) -> Process {
    let (program, args) = words.split_first().expect("a command begins with its program");
    let mut process = Process::new(OsStr::from_bytes(program));
    process.args(args.iter().map(|arg| OsStr::from_bytes(arg)));
    process
}

/// Returns only if it fails.
fn exec(context: &mut Context, words: &[Vec<u8>]) -> Outcome {
    context.out.flush()?;
    Err(not_started(words, &process(words).exec()))
}

fn not_started(words: &[Vec<u8>], error: &io::Error) -> Failure {
    Failure::system(format!("Cannot run {}: {}", String::from_utf8_lossy(&words[0]), reason(error)))
}

fn fill(words: &[Vec<u8>]) -> Outcome {
    outlive_the_terminal();
    let status = process(words).status().map_err(|error| not_started(words, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::silent(code_of(status))) }
}

/// The terminal's interrupt goes to the command as well: it ends, and then the incomplete volume has to be removed.
fn outlive_the_terminal() {
    extern "C" fn ignore(_: libc::c_int) {}
    let handler = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: the handler does nothing. Unlike SIG_IGN it is not inherited by the command.
        unsafe { libc::signal(signal, handler) };
    }
}

/// As a shell tells it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILURE)
}

/// A new volume that has only a part of the image is of no use.
fn remove(make: &Deed, flock: &mut Flock) {
    let removed = flock.sheep(&make.name.server).and_then(|sheep| {
        sheep.delete(make.name.vdi.as_bytes(), &Selector::default()).map_err(Failure::from)
    });
    if let Err(failure) = removed {
        notice(&format!("Failed to remove the incomplete VDI {}: {}", make.name.vdi, failure.message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use find::testing::Canned;
    use words::split;

    #[test]
    fn programs_are_known_by_their_base_names() {
        for line in [
            "qemu-img info a",
            "/usr/bin/qemu-img info a",
            "qemu-io -c read a",
            "qemu-nbd -p 1 a",
            "./qemu-system-x86_64 -m 1G",
            "kvm -hda a",
            "qemu-storage-daemon --blockdev file,filename=a,node-name=n",
        ] {
            let job = plan(&split(line), &mut Canned::default()).unwrap();
            assert_eq!(job, Job::Exec(split(line)), "{line}");
        }
        for line in ["cp a b", "qemu-img-2 info", "/usr/bin/qemu-img/"] {
            let failure = plan(&split(line), &mut Canned::default()).unwrap_err();
            assert_eq!(failure.code, 64);
            assert!(failure.message.contains("qemu-system-*"), "{line}");
        }
    }
}

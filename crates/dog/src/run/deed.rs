//! What dog does itself, through a sheep, of the things that QEMU's old driver did.

use proto::CopyPolicy;

use super::find::Flock;
use super::name::{Name, Server};
use super::report;
use super::words::{bytes, quoted};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::sheep::{Selector, Sheep};
use crate::vdi::create::{self, Wanted};
use crate::vdi::names::{create_failure, open, open_failure, shown};
use crate::vdi::{ranges, resize, snapshot};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    pub name: Name,
    /// As it was typed, for what is printed.
    pub typed: String,
    pub quiet: bool,
    pub act: Act,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Create {
        size: u64,
        policy: Option<CopyPolicy>,
        shift: Option<u8>,
        prealloc: bool,
    },
    /// `base` is a snapshot. Without a size the clone has the snapshot's.
    Clone {
        base: Name,
        size: Option<u64>,
    },
    TakeSnapshot {
        tag: String,
    },
    /// The volume becomes what the snapshot is.
    ApplySnapshot {
        snapshot: String,
    },
    DeleteSnapshot {
        snapshot: String,
    },
    ListSnapshots,
    Resize {
        size: NewSize,
    },
    Info {
        as_json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    Exactly(u64),
    Larger(u64),
    Smaller(u64),
}

impl Deed {
    /// Command lines of dog that do the same, or nearly, for `--print`.
    pub fn describe(&self) -> String {
        let name = self.name.vdi.as_str();
        let lines: Vec<Vec<String>> = match &self.act {
            Act::Create { size, policy, shift, prealloc } => {
                let mut line = vec!["create".to_string()];
                line.extend(policy.map(|policy| format!("--copies={policy}")));
                line.extend(shift.map(|shift| format!("--block_size_shift={shift}")));
                line.extend(prealloc.then(|| "--prealloc".to_string()));
                line.extend([name.to_string(), size.to_string()]);
                vec![line]
            }
            Act::Clone { base, size } => {
                let snapshot = base.snapshot.clone().unwrap_or_default();
                let mut lines = vec![line(["clone", "-s", &snapshot, &base.vdi, name])];
                lines.extend(size.map(|size| line(["resize", name, &size.to_string()])));
                lines
            }
            Act::TakeSnapshot { tag } => vec![line(["snapshot", "-s", tag, name])],
            Act::ApplySnapshot { snapshot } => {
                vec![line(["snapshot", "-R", name]), line(["rollback", "-s", snapshot, name])]
            }
            Act::DeleteSnapshot { snapshot } => vec![line(["delete", "-s", snapshot, name])],
            Act::Resize { size: NewSize::Exactly(size) } => vec![line(["resize", name, &size.to_string()])],
            Act::Resize { size: NewSize::Larger(size) } => {
                vec![line(["resize", name, &format!("SIZE+{size}")])]
            }
            Act::Resize { size: NewSize::Smaller(size) } => {
                vec![line(["resize", name, &format!("SIZE-{size}")])]
            }
            Act::ListSnapshots | Act::Info { .. } => vec![line(["list", name])],
        };
        let reach = match &self.name.server {
            Server::Chosen => vec![],
            Server::Tcp { host, port } => line(["-a", host, "-p", &port.to_string()]),
            Server::Unix(path) => line(["-a", path]),
        };
        let whole = |line: Vec<String>| {
            let words = [line_of("dog"), line_of("vdi"), line, reach.clone()].concat();
            format!("{}\n", quoted(&words.iter().map(|word| bytes(word)).collect::<Vec<_>>()))
        };
        lines.into_iter().map(whole).collect()
    }

    pub fn carry_out(&self, context: &mut Context, flock: &mut Flock) -> Outcome {
        // What would be a wrong command line of dog is a refusal of the tool; and the usage block of dog run would explain nothing.
        self.try_carry_out(context, flock).map_err(|failure| match failure.code {
            exit::USAGE => Failure::refused(failure.message),
            _ => failure,
        })
    }

    fn try_carry_out(&self, context: &mut Context, flock: &mut Flock) -> Outcome {
        let sheep = flock.sheep(&self.name.server)?;
        let name = self.name.vdi.as_bytes();
        match &self.act {
            Act::Create { size, policy, shift, prealloc } => {
                let wanted =
                    Wanted { size: *size, policy: *policy, shift: *shift, prealloc: *prealloc, hyper: false };
                self.say(context, &format!("Formatting '{}', fmt=raw size={size}\n", self.typed))?;
                create::make(context, sheep, name, &wanted).map(drop)
            }
            Act::Clone { base, size } => self.clone_from(context, sheep, base, *size),
            Act::TakeSnapshot { tag } => take_snapshot(sheep, name, tag),
            Act::ApplySnapshot { snapshot } => apply_snapshot(sheep, &self.snapshot(snapshot)),
            Act::DeleteSnapshot { snapshot } => {
                let selector = self.snapshot(snapshot).selector()?;
                sheep.delete(name, &selector).map_err(|error| open_failure(name, &selector, error)).map(drop)
            }
            Act::ListSnapshots => {
                open(sheep, name, &Selector::default())?;
                let text = report::snapshot_list(&report::snapshots_of(&sheep.vdis()?, name));
                Ok(context.out.write_all(&text)?)
            }
            Act::Resize { size } => {
                let (vid, header) = open(sheep, name, &Selector::default())?;
                resize::grow(sheep, name, vid, &header, size.from(header.vdi_size)?, false)?;
                self.say(context, "Image resized.\n")
            }
            Act::Info { as_json } => {
                let text = report::info(sheep, &self.name, &self.typed, *as_json)?;
                Ok(context.out.write_all(&text)?)
            }
        }
    }

    fn say(&self, context: &mut Context, text: &str) -> Outcome {
        if self.quiet { Ok(()) } else { context.print(text) }
    }

    fn snapshot(&self, snapshot: &str) -> Name {
        Name { snapshot: Some(snapshot.to_string()), ..self.name.clone() }
    }

    fn clone_from(
        &self,
        context: &mut Context,
        sheep: &mut Sheep,
        base: &Name,
        size: Option<u64>,
    ) -> Outcome {
        let (name, base_name) = (self.name.vdi.as_bytes(), base.vdi.as_bytes());
        let (from, header) = open(sheep, base_name, &base.selector()?)?;
        let wanted = size.unwrap_or(header.vdi_size);
        if wanted < header.vdi_size {
            return Err(Failure::refused(format!(
                "A clone cannot be smaller than its snapshot: it has {} bytes, {wanted} are wanted",
                header.vdi_size
            )));
        }
        let backing = format!("backing_file={} backing_fmt=raw", base.export());
        self.say(context, &format!("Formatting '{}', fmt=raw size={wanted} {backing}\n", self.typed))?;
        let made = sheep.clone_vdi(from, name).map_err(|error| create_failure(sheep, name, error))?;
        if wanted == header.vdi_size {
            return Ok(());
        }
        resize::grow(sheep, name, made.vid, &header, wanted, false).inspect_err(|_| {
            // One of the wrong size is of no use.
            if let Err(error) = sheep.delete_vid(made.vid) {
                let failure = Failure::from(error);
                notice(&format!("Failed to remove the clone {}: {}", shown(name), failure.message));
            }
        })
    }
}

fn line<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn line_of(word: &str) -> Vec<String> {
    vec![word.to_string()]
}

impl NewSize {
    fn from(self, present: u64) -> Outcome<u64> {
        let size = match self {
            NewSize::Exactly(size) => Some(size),
            NewSize::Larger(by) => present.checked_add(by),
            NewSize::Smaller(by) => present.checked_sub(by),
        };
        size.ok_or_else(|| {
            Failure::refused(format!("The new size is out of range: the volume has {present} bytes"))
        })
    }
}

fn take_snapshot(sheep: &mut Sheep, name: &[u8], tag: &str) -> Outcome {
    let selector = Selector::default();
    let vid = sheep.lookup(name, &selector).map_err(|error| open_failure(name, &selector, error))?;
    snapshot::take(sheep, &[(vid, name.to_vec())], tag.as_bytes()).map(drop)
}

/// What the volume holds becomes a snapshot first, unless nothing was written since the last one: nothing is lost.
fn apply_snapshot(sheep: &mut Sheep, to: &Name) -> Outcome {
    let name = to.vdi.as_bytes();
    let selector = to.selector()?;
    let target = sheep.lookup(name, &selector).map_err(|error| open_failure(name, &selector, error))?;
    if let Ok(vid) = sheep.lookup(name, &Selector::default()) {
        let header = sheep.inode_header(vid)?;
        if !ranges::is_same_as_parent(sheep, vid, &header)? {
            snapshot::take(sheep, &[(vid, name.to_vec())], b"")?;
            notice(&format!("What {} held until now is its snapshot {}", shown(name), header.snap_id));
        }
    }
    sheep.roll_back(target, false).map(drop).map_err(|error| {
        error.or_refused(|reason| {
            format!(
                "Failed to apply the snapshot to VDI {}: {reason}; is it in use? dog vm list tells",
                shown(name)
            )
        })
    })
}

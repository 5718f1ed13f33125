//! `qemu-img`: what dog does itself, and how the rest is rewritten.
//!
//! `create`, `snapshot`, `resize` and `info` of a volume are done through the sheep, as QEMU's old driver did them; so is the
//! making of a volume that `convert` writes. Everything else reads or writes bytes, and goes over NBD.

mod convert;
mod create;

use super::Job;
use super::deed::{Act, Deed, NewSize};
use super::find::Finder;
use super::name::{self, Name, is_name};
use super::options::name_in_image_opts;
use super::tool;
use super::words::{as_text, bytes};
use crate::failure::{Failure, Outcome};
use crate::getopt::{self, Opt, Parsed};
use crate::size;
use crate::vdi::names::select;
use crate::vdi::snapshot::check_tag;

pub fn plan(program: &[u8], args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Job> {
    let Some((command, rest)) = args.split_first() else { return Ok(Job::Exec(vec![program.to_vec()])) };
    let exec = |args: Vec<Vec<u8>>| Ok(Job::Exec([vec![program.to_vec(), command.clone()], args].concat()));
    let deed = match as_text(command) {
        "create" => create::plan(rest)?,
        "snapshot" => plan_snapshot(rest)?,
        "resize" => plan_resize(rest)?,
        "info" => plan_info(rest)?,
        "convert" => return convert::plan(program, rest, finder),
        "dd" => return exec(tool::rewrite_dd(rest, finder)?),
        _ => None,
    };
    match (deed, as_text(command)) {
        (Some(deed), _) => Ok(Job::Deed(deed)),
        (None, "create" | "rebase") => exec(tool::rewrite_with_backing(rest, finder)?),
        (None, _) => exec(tool::rewrite(rest, finder)?.args),
    }
}

const fn flag(short: Option<char>, long: &'static str) -> Opt {
    Opt { short, long, has_value: false, help: "" }
}

const fn value(short: Option<char>, long: &'static str) -> Opt {
    Opt { short, long, has_value: true, help: "" }
}

const SNAPSHOT: &[Opt] = &[
    value(Some('c'), "create"),
    flag(Some('l'), "list"),
    value(Some('a'), "apply"),
    value(Some('d'), "delete"),
    flag(Some('q'), "quiet"),
    flag(Some('U'), "force-share"),
    value(Some('f'), "format"),
    value(None, "object"),
    flag(None, "image-opts"),
];

const RESIZE: &[Opt] = &[
    flag(Some('q'), "quiet"),
    value(Some('f'), "format"),
    value(None, "preallocation"),
    flag(None, "shrink"),
    value(None, "object"),
    flag(None, "image-opts"),
];

const INFO: &[Opt] = &[
    value(Some('f'), "format"),
    value(None, "output"),
    flag(None, "backing-chain"),
    flag(Some('U'), "force-share"),
    value(None, "object"),
    flag(None, "image-opts"),
];

/// The volume that an image argument names; `None` for other images.
fn volume(parsed: &Parsed, at: usize) -> Outcome<Option<(Name, String)>> {
    let Some(text) = parsed.positionals.get(at).map(|word| as_text(word)) else { return Ok(None) };
    let name = if is_name(text) {
        Some(name::parse(text)?)
    } else if parsed.has("image-opts") {
        name_in_image_opts(text)?
    } else {
        None
    };
    let Some(name) = name else { return Ok(None) };
    for option in ["format", "backing-format", "target-format"] {
        if let Some(format) = parsed.text(option).filter(|format| !is_raw(format)) {
            return Err(Failure::refused(format!(
                "A volume holds a raw image: {format} is not possible here"
            )));
        }
    }
    Ok(Some((name, text.to_string())))
}

fn is_raw(format: &str) -> bool {
    ["raw", "sheepdog"].contains(&format)
}

/// What QEMU would complain about, it may complain about itself; but not about volumes, which it does not know.
fn parse(offered: &[Opt], args: &[Vec<u8>]) -> Outcome<Option<Parsed>> {
    let parsed = getopt::parse(offered, args);
    match &parsed.error {
        None => Ok(Some(parsed)),
        Some(_) if !args.iter().any(|arg| is_name(as_text(arg))) => Ok(None),
        Some(error) => Err(Failure::refused(error.to_string().replacen("dog: ", "qemu-img: ", 1))),
    }
}

fn deed((name, typed): (Name, String), parsed: &Parsed, act: Act) -> Deed {
    Deed { name, typed, quiet: parsed.has("quiet"), act }
}

fn refuse_snapshot(name: &Name) -> Outcome {
    match name.is_snapshot() {
        true => Err(Failure::refused(format!("{} is a snapshot and cannot be changed", name.export()))),
        false => Ok(()),
    }
}

fn plan_snapshot(args: &[Vec<u8>]) -> Outcome<Option<Deed>> {
    let Some(parsed) = parse(SNAPSHOT, args)? else { return Ok(None) };
    let Some(volume) = volume(&parsed, 0)? else { return Ok(None) };
    refuse_snapshot(&volume.0)?;
    let picked = |option: &str| -> Outcome<String> {
        let text = parsed.text(option).unwrap_or_default();
        select(text.as_bytes())?;
        Ok(text)
    };
    let mut acts = Vec::new();
    for (option, _) in &parsed.options {
        match *option {
            "list" => acts.push(Act::ListSnapshots),
            "create" => {
                let tag = parsed.text("create").unwrap_or_default();
                check_tag(tag.as_bytes()).map_err(|failure| Failure::refused(failure.message))?;
                acts.push(Act::TakeSnapshot { tag });
            }
            "apply" => acts.push(Act::ApplySnapshot { snapshot: picked("apply")? }),
            "delete" => acts.push(Act::DeleteSnapshot { snapshot: picked("delete")? }),
            _ => {}
        }
    }
    match (acts.pop(), acts.is_empty()) {
        (Some(act), true) => Ok(Some(deed(volume, &parsed, act))),
        (None, _) => Ok(Some(deed(volume, &parsed, Act::ListSnapshots))),
        (Some(_), false) => Err(Failure::refused("Only one of -a, -c, -d and -l can be done at a time")),
    }
}

fn plan_resize(args: &[Vec<u8>]) -> Outcome<Option<Deed>> {
    // The size comes last and may begin with '-'.
    let Some((size, args)) = args.split_last() else { return Ok(None) };
    let Some(parsed) = parse(RESIZE, args)? else { return Ok(None) };
    let Some(volume) = volume(&parsed, 0)? else { return Ok(None) };
    refuse_snapshot(&volume.0)?;
    if parsed.text("preallocation").is_some_and(|mode| mode != "off") {
        return Err(Failure::refused(
            "What a volume grows by cannot be preallocated: leave --preallocation out",
        ));
    }
    let size = match size.as_slice() {
        [b'+', by @ ..] => NewSize::Larger(parse_size(by)?),
        [b'-', by @ ..] => NewSize::Smaller(parse_size(by)?),
        size => NewSize::Exactly(parse_size(size)?),
    };
    Ok(Some(deed(volume, &parsed, Act::Resize { size })))
}

fn plan_info(args: &[Vec<u8>]) -> Outcome<Option<Deed>> {
    let Some(parsed) = parse(INFO, args)? else { return Ok(None) };
    // Other formats may lie in a volume: QEMU looks into them.
    if parsed.text("format").is_some_and(|format| !is_raw(&format)) {
        return Ok(None);
    }
    let Some(volume) = volume(&parsed, 0)? else { return Ok(None) };
    let as_json = match parsed.text("output").as_deref() {
        None | Some("human") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::refused(format!("--output is human or json, not '{other}'"))),
    };
    Ok(Some(deed(volume, &parsed, Act::Info { as_json })))
}

/// As qemu-img reads sizes: those of dog, and E.
fn parse_size(text: &[u8]) -> Outcome<u64> {
    let exabytes = text.strip_suffix(b"E").or(text.strip_suffix(b"e"));
    let size = match exabytes {
        Some(digits) => size::parse(&[digits, b"P"].concat()).and_then(|size| size.checked_mul(1024)),
        None => size::parse(text),
    };
    size.ok_or_else(|| {
        Failure::refused(format!(
            "Invalid size '{}': a number with at most one of the suffixes K, M, G, T, P and E is expected",
            String::from_utf8_lossy(text)
        ))
    })
}

/// Options as they are given to qemu-img again.
fn render(
    offered: &[Opt],
    parsed: &Parsed,
    mut keep: impl FnMut(&str, &[u8]) -> Option<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    for (long, given) in &parsed.options {
        let opt = offered.iter().find(|opt| opt.long == *long).expect("parsed from these");
        let Some(given) = keep(long, given) else { continue };
        words.push(bytes(&opt.short.map_or(format!("--{long}"), |short| format!("-{short}"))));
        if opt.has_value {
            words.push(given);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;
    use crate::run::words::{join, split};

    fn planned(line: &str) -> Outcome<String> {
        plan(b"qemu-img", &split(line), &mut Canned::default()).map(|job| match job {
            Job::Deed(deed) => deed.describe(),
            Job::Exec(words) => Canned::abbreviated(&join(&words)),
            Job::Fill { make, words } => format!("{}{}", make.describe(), Canned::abbreviated(&join(&words))),
        })
    }

    #[test]
    fn what_the_old_driver_did_dog_does() {
        for (line, expect) in [
            ("create sheepdog:Carol 256G", "dog vdi create Carol 274877906944"),
            ("create -f sheepdog sheepdog:h:7001:Carol 1M", "dog vdi create Carol 1048576 -a h -p 7001"),
            (
                "create -f raw -o preallocation=full,redundancy=2,object_size=8M sheepdog+unix:///Carol?socket=/s 1M",
                "dog vdi create --copies=2 --block_size_shift=23 --prealloc Carol 1048576 -a /s",
            ),
            ("create -b sheepdog:Alice:1 sheepdog:Carol", "dog vdi clone -s 1 Alice Carol"),
            (
                "create -b sheepdog:Alice:t -F raw sheepdog:Carol 2E",
                "dog vdi clone -s t Alice Carol\ndog vdi resize Carol 2305843009213693952",
            ),
            (
                "create -o backing_file=sheepdog:Alice:1,backing_fmt=raw sheepdog:Carol",
                "dog vdi clone -s 1 Alice Carol",
            ),
            ("snapshot -c name sheepdog:Alice", "dog vdi snapshot -s name Alice"),
            ("snapshot sheepdog:Alice -l", "dog vdi list Alice"),
            ("snapshot sheepdog:Alice", "dog vdi list Alice"),
            ("snapshot -a 1 sheepdog:Alice", "dog vdi snapshot -R Alice\ndog vdi rollback -s 1 Alice"),
            ("snapshot -d t sheepdog:Alice", "dog vdi delete -s t Alice"),
            ("snapshot -c t --image-opts driver=sheepdog,vdi=Alice", "dog vdi snapshot -s t Alice"),
            ("resize sheepdog:Alice 512G", "dog vdi resize Alice 549755813888"),
            ("resize -f raw sheepdog:Alice +1K", "dog vdi resize Alice SIZE+1024"),
            ("resize --shrink sheepdog:Alice -1K", "dog vdi resize Alice SIZE-1024"),
            ("info --output=json sheepdog:Alice:1", "dog vdi list Alice"),
        ] {
            assert_eq!(planned(line).unwrap().trim_end(), expect, "{line}");
        }
    }

    #[test]
    fn other_images_are_left_to_qemu_img() {
        for line in [
            "",
            "--help",
            "create -f qcow2 a.qcow2 1G",
            "create -f qcow2 -b a.raw -F raw a.qcow2",
            "snapshot -c t a.qcow2",
            "resize a.raw -- -1G",
            "info a.raw",
            "info --nosuch a.raw",
            "convert -O qcow2 a.raw b.qcow2",
            "convert --help",
            "check a.qcow2",
        ] {
            assert_eq!(planned(line).unwrap(), format!("qemu-img {line}").trim_end(), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        for (line, why) in [
            ("create sheepdog:Carol", "needs a size"),
            ("create -f qcow2 sheepdog:Carol 1G", "raw image"),
            ("create sheepdog:Carol 1X", "Invalid size '1X'"),
            ("create sheepdog:Carol:1 1G", "is a snapshot"),
            ("create -o cluster_size=1M sheepdog:Carol 1G", "cluster_size"),
            ("create -o preallocation=metadata sheepdog:Carol 1G", "off or full"),
            ("create -o object_size=5M sheepdog:Carol 1G", "power of two"),
            ("create -o redundancy=4:2 sheepdog:Carol 1G", "not supported yet"),
            ("create -b sheepdog:Alice sheepdog:Carol", "Only snapshots"),
            ("create -b a.raw sheepdog:Carol", "Only snapshots"),
            ("create -b sheepdog:Alice:1 -o redundancy=2 sheepdog:Carol", "has the copies"),
            ("snapshot -c 12 sheepdog:Alice", "is a number"),
            ("snapshot -c a -d b sheepdog:Alice", "Only one of"),
            ("snapshot -l sheepdog:Alice:1", "is a snapshot"),
            ("snapshot -a 0 sheepdog:Alice", "larger than zero"),
            ("snapshot --nosuch sheepdog:Alice", "qemu-img: unrecognized option"),
            ("resize --preallocation=full sheepdog:Alice 1G", "cannot be preallocated"),
            ("info --output=xml sheepdog:Alice", "human or json"),
            ("info sheepdog:a:b:c:d:e", "too many ':'"),
            ("check sheepdog:Carol", "no such volume"),
            ("convert a.raw sheepdog:Alice", "exists already"),
            ("convert a.raw sheepdog:Alice:1", "is a snapshot"),
            ("convert -O qcow2 a.raw sheepdog:Carol", "raw image"),
            ("convert -c a.raw sheepdog:Carol", "-c is not possible"),
            ("convert -B sheepdog:Alice:1 a.raw sheepdog:Carol", "-B is not possible"),
            ("convert -n -o redundancy=2 a.raw sheepdog:Alice", "-o says how a new volume"),
        ] {
            let failure = planned(line).unwrap_err();
            assert!(failure.message.contains(why), "{line}: {}", failure.message);
        }
    }
}

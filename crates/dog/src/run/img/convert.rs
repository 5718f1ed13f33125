//! `qemu-img convert` from and to volumes.
//!
//! A volume that is converted to is made first, as large as the sources together, and then filled over NBD (`-n`), where nothing
//! is sent for what is zero. One that exists is written to only with `-n`: so it always was.

use super::create::NewVolume;
use super::{flag, is_raw, parse, render, value};
use crate::failure::{Failure, Outcome};
use crate::getopt::{Opt, Parsed};
use crate::run::Job;
use crate::run::deed::Deed;
use crate::run::find::Finder;
use crate::run::json;
use crate::run::name::{self, Name, is_name};
use crate::run::options::{Options, name_in_image_opts, rewrite_image_opts};
use crate::run::words::{as_text, bytes};

const CONVERT: &[Opt] = &[
    value(Some('f'), "format"),
    value(Some('O'), "target-format"),
    value(Some('B'), "backing"),
    value(Some('F'), "backing-format"),
    flag(Some('C'), "copy-range"),
    flag(Some('c'), "compress"),
    value(Some('o'), "options"),
    value(Some('l'), "snapshot"),
    value(Some('s'), "old-snapshot"),
    value(Some('S'), "sparse-size"),
    flag(Some('p'), "progress"),
    value(Some('t'), "cache"),
    value(Some('T'), "source-cache"),
    flag(Some('q'), "quiet"),
    flag(Some('n'), "no-create"),
    value(Some('m'), "coroutines"),
    flag(Some('W'), "out-of-order"),
    flag(Some('U'), "force-share"),
    value(Some('r'), "rate-limit"),
    value(None, "object"),
    flag(None, "image-opts"),
    flag(None, "target-image-opts"),
    flag(None, "target-is-zero"),
    flag(None, "salvage"),
    flag(None, "bitmaps"),
    flag(None, "skip-broken-bitmaps"),
];

pub fn plan(program: &[u8], args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Job> {
    let exec = |args: Vec<Vec<u8>>| Job::Exec([vec![program.to_vec(), bytes("convert")], args].concat());
    let Some(parsed) = parse(CONVERT, args)?.filter(|parsed| parsed.positionals.len() >= 2) else {
        return Ok(exec(args.to_vec()));
    };
    let (target, sources) = parsed.positionals.split_last().expect("there are two");
    let sources = Sources::rewrite(&parsed, sources, finder)?;
    match target_name(&parsed, as_text(target))? {
        None => {
            let options = options(&parsed, &sources, |option, given| match option {
                "backing" if is_name(as_text(given)) => Some(bytes("")),
                _ => Some(given.to_vec()),
            });
            let options = with_backing(options, &parsed, finder)?;
            Ok(exec([options, sources.words, vec![target.clone()]].concat()))
        }
        Some(name) => into_volume(program, &parsed, sources, name, as_text(target), finder),
    }
}

fn target_name(parsed: &Parsed, text: &str) -> Outcome<Option<Name>> {
    match is_name(text) {
        true => name::parse(text).map(Some),
        false if parsed.has("target-image-opts") => name_in_image_opts(text),
        false => Ok(None),
    }
}

/// The images that are read, rewritten.
struct Sources {
    words: Vec<Vec<u8>>,
    /// `-l` has been put into their names.
    has_chosen_snapshot: bool,
}

impl Sources {
    fn rewrite(parsed: &Parsed, sources: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Sources> {
        let snapshot = parsed.text("snapshot").or(parsed.text("old-snapshot")).map(|text| snapshot_of(&text));
        let mut rewritten = Sources { words: Vec::new(), has_chosen_snapshot: false };
        for source in sources {
            let text = as_text(source);
            let word = if is_name(text) {
                let mut name = name::parse(text)?;
                if let (None, Some(snapshot)) = (&name.snapshot, &snapshot) {
                    name.snapshot = Some(snapshot.clone());
                    rewritten.has_chosen_snapshot = true;
                }
                bytes(&json::filename(&finder.find(&name)?))
            } else if parsed.has("image-opts") {
                rewrite_image_opts(text, finder)?.map_or_else(|| source.clone(), |text| bytes(&text))
            } else {
                json::rewrite_filename_bytes(source, finder)?.0
            };
            rewritten.words.push(word);
        }
        Ok(rewritten)
    }

    /// Of all together.
    fn size(&self, parsed: &Parsed, finder: &mut dyn Finder) -> Outcome<u64> {
        let options = options(parsed, self, |option, given| {
            matches!(option, "format" | "object" | "image-opts" | "force-share").then(|| given.to_vec())
        });
        let mut size = 0u64;
        for word in &self.words {
            size = size
                .saturating_add(finder.virtual_size(&[&options[..], std::slice::from_ref(word)].concat())?);
        }
        Ok(size)
    }
}

/// `ID_OR_TAG`, `snapshot.id=ID` or `snapshot.name=TAG`.
fn snapshot_of(text: &str) -> String {
    let options = Options::parse(text);
    let named = options.get("snapshot.id").or(options.get("snapshot.name"));
    named.unwrap_or(text).to_string()
}

/// The options that `keep` gives a value, with formats that QEMU knows.
fn options(
    parsed: &Parsed,
    sources: &Sources,
    mut keep: impl FnMut(&str, &[u8]) -> Option<Vec<u8>>,
) -> Vec<Vec<u8>> {
    render(CONVERT, parsed, |option, given| match (option, given) {
        ("format" | "target-format" | "backing-format", b"sheepdog") => keep(option, b"raw"),
        ("snapshot" | "old-snapshot", _) if sources.has_chosen_snapshot => None,
        _ => keep(option, given),
    })
}

/// Fills the place of a backing file that is a volume.
fn with_backing(mut words: Vec<Vec<u8>>, parsed: &Parsed, finder: &mut dyn Finder) -> Outcome<Vec<Vec<u8>>> {
    let backing = parsed.text("backing").filter(|backing| is_name(backing));
    if let (Some(backing), Some(at)) = (backing, words.iter().position(|word| word == b"-B")) {
        words[at + 1] = bytes(&json::filename(&finder.find(&name::parse(&backing)?)?));
        if !parsed.has("backing-format") {
            words.splice(at..at, [bytes("-F"), bytes("raw")]);
        }
    }
    Ok(words)
}

fn into_volume(
    program: &[u8],
    parsed: &Parsed,
    sources: Sources,
    name: Name,
    typed: &str,
    finder: &mut dyn Finder,
) -> Outcome<Job> {
    super::refuse_snapshot(&name)?;
    if let Some(format) = parsed.text("target-format").filter(|format| !is_raw(format)) {
        return Err(Failure::refused(format!(
            "A volume holds a raw image: -O {format} is not possible here"
        )));
    }
    for (option, letter) in [("compress", "-c"), ("backing", "-B")] {
        if parsed.has(option) {
            return Err(Failure::refused(format!(
                "{letter} is not possible with a volume; to convert into a clone, make it with qemu-img create -b and \
                 convert with -n"
            )));
        }
    }
    let mut new = NewVolume::default();
    for (option, text) in &parsed.options {
        if *option == "options" {
            new.read(&String::from_utf8_lossy(text))?;
        }
    }
    let mut words = vec![program.to_vec(), bytes("convert")];
    words.extend(options(parsed, &sources, |option, given| {
        let is_said_below = matches!(
            option,
            "target-format" | "options" | "target-image-opts" | "no-create" | "target-is-zero"
        );
        (!is_said_below).then(|| given.to_vec())
    }));
    words.extend(["-n", "-O", "raw"].map(bytes));
    let place = finder.place(&name)?;
    if parsed.has("no-create") {
        if parsed.has("options") {
            return Err(Failure::refused("-o says how a new volume is made: with -n there is none"));
        }
        finder.find(&name)?;
        words.extend(parsed.has("target-is-zero").then(|| bytes("--target-is-zero")));
        return Ok(Job::Exec([words, sources.words, vec![bytes(&json::filename(&place))]].concat()));
    }
    if finder.exists(&name)? {
        return Err(Failure::refused(format!(
            "The volume {} exists already: with -n it is written to",
            name.export()
        )));
    }
    new.size = Some(new.size.unwrap_or(0).max(sources.size(parsed, finder)?));
    let make = Deed { name, typed: typed.to_string(), quiet: true, act: new.act()? };
    words.push(bytes("--target-is-zero"));
    Ok(Job::Fill { make, words: [words, sources.words, vec![bytes(&json::filename(&place))]].concat() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;
    use crate::run::words::{join, split};

    fn check(line: &str, measured: &[&str], expect: &str) {
        let mut canned = Canned::default();
        let job = plan(b"qemu-img", &split(line), &mut canned).unwrap();
        let (make, words) = match job {
            Job::Exec(words) => (String::new(), words),
            Job::Fill { make, words } => (make.describe(), words),
            Job::Deed(_) => panic!("{line}"),
        };
        let found = format!("{make}{}", Canned::abbreviated(&join(&words)));
        let volume = |export: &str| {
            format!(r#"json:{{"driver":"raw","file":{{"driver":"nbd","export":"{export}",SERVER}}}}"#)
        };
        let expect = ["Alice:1", "Alice@t", "Alice", "Carol"]
            .iter()
            .fold(expect.to_string(), |text, export| text.replace(&format!("<{export}>"), &volume(export)));
        assert_eq!(found, expect, "{line}");
        let measured: Vec<String> =
            measured.iter().map(|words| words.replace("<Alice>", &volume("Alice"))).collect();
        let asked: Vec<String> = canned.measured.iter().map(|words| Canned::abbreviated(words)).collect();
        assert_eq!(asked, measured, "{line}");
    }

    #[test]
    fn a_new_volume_is_made_as_large_as_the_sources() {
        check(
            "a.raw sheepdog:Carol",
            &["a.raw"],
            "dog vdi create Carol 1048576\nqemu-img convert -n -O raw --target-is-zero a.raw <Carol>",
        );
        check(
            "-p -f qcow2 -O sheepdog -o redundancy=2,preallocation=full a.qcow2 b.qcow2 sheepdog:Carol",
            &["-f qcow2 a.qcow2", "-f qcow2 b.qcow2"],
            "dog vdi create --copies=2 --prealloc Carol 2097152\n\
             qemu-img convert -p -f qcow2 -n -O raw --target-is-zero a.qcow2 b.qcow2 <Carol>",
        );
        check(
            "-f sheepdog sheepdog:Alice sheepdog:Carol",
            &["-f raw <Alice>"],
            "dog vdi create Carol 1048576\nqemu-img convert -f raw -n -O raw --target-is-zero <Alice> <Carol>",
        );
        check(
            "--target-image-opts a.raw driver=sheepdog,vdi=Carol",
            &["a.raw"],
            "dog vdi create Carol 1048576\nqemu-img convert -n -O raw --target-is-zero a.raw <Carol>",
        );
    }

    #[test]
    fn what_exists_is_written_to_as_it_is() {
        check("-n -O raw a.raw sheepdog:Alice", &[], "qemu-img convert -n -O raw a.raw <Alice>");
        check(
            "-n --target-is-zero a.raw sheepdog:Alice",
            &[],
            "qemu-img convert -n -O raw --target-is-zero a.raw <Alice>",
        );
    }

    #[test]
    fn volumes_are_read_with_the_snapshot_that_was_chosen() {
        check("-O qcow2 sheepdog:Alice b.qcow2", &[], "qemu-img convert -O qcow2 <Alice> b.qcow2");
        check("-l 1 -O qcow2 sheepdog:Alice b", &[], "qemu-img convert -O qcow2 <Alice:1> b");
        check("-l snapshot.name=t sheepdog:Alice b", &[], "qemu-img convert <Alice@t> b");
        check("-l 1 a.qcow2 b", &[], "qemu-img convert -l 1 a.qcow2 b");
        check(
            "-O qcow2 -B sheepdog:Alice:1 a b.qcow2",
            &[],
            "qemu-img convert -O qcow2 -F raw -B <Alice:1> a b.qcow2",
        );
        check(
            "--image-opts driver=sheepdog,vdi=Alice b",
            &[],
            "qemu-img convert --image-opts driver=nbd,export=Alice,SERVER() b",
        );
    }
}

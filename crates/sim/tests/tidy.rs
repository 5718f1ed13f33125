//! The tree is what ARCHITECTURE.md says: crates, arrows, and which of them may touch the world.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose code decides and must not act.
const SANS_IO: [&str; 4] = ["proto", "placement", "volume", "node"];
/// What a crate that opens files, sockets or clocks would need.
const WORLDLY: [&str; 6] = ["tokio", "rustix", "libc", "io-uring", "rand", "socket2"];
/// A file beyond this holds more than one concept.
const LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

/// Names under `[dependencies]` of each crate.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let crates = fs::read_dir(root().join("crates")).expect("crates/");
    crates
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let manifest = fs::read_to_string(path.join("Cargo.toml")).expect("every crate has a manifest");
            let section =
                manifest.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
            let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
            let names = names.filter(|n| !n.is_empty() && !n.starts_with('#')).map(str::to_owned).collect();
            (path.file_name().unwrap().to_string_lossy().into_owned(), names)
        })
        .collect()
}

/// The table "Crates and arrows": crate and what it may depend on.
fn documented() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let section =
        text.split("## Crates and arrows").nth(1).expect("the section").split("\n## ").next().unwrap();
    let rows = section.lines().filter(|l| l.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn architecture_lists_every_crate_and_every_arrow() {
    let (found, documented) = (dependencies(), documented());
    let names: BTreeSet<_> = found.keys().cloned().collect();
    assert_eq!(names, documented.keys().cloned().collect(), "crates in the tree and in ARCHITECTURE.md");
    for (name, dependencies) in &found {
        let arrows: BTreeSet<String> = dependencies.intersection(&names).cloned().collect();
        let allowed: BTreeSet<String> = match documented[name].as_str() {
            "-" => BTreeSet::new(),
            "all above" => {
                names.iter().filter(|n| !["sheep", "dog", "sim"].contains(&n.as_str())).cloned().collect()
            }
            "all but sheep and dog" => {
                names.iter().filter(|n| !["sheep", "dog"].contains(&n.as_str())).cloned().collect()
            }
            list => list.split(',').map(|n| n.trim().to_owned()).collect(),
        };
        assert!(
            arrows.is_subset(&allowed),
            "{name} depends on {arrows:?}, ARCHITECTURE.md allows {allowed:?}"
        );
    }
}

#[test]
fn crates_that_decide_cannot_act() {
    let found = dependencies();
    for name in SANS_IO {
        for worldly in WORLDLY {
            assert!(!found[name].contains(worldly), "{name} must not depend on {worldly}");
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    let mut files = Vec::new();
    ["crates", "fuzz"].iter().for_each(|folder| collect(&root().join(folder), &mut files));
    assert!(files.len() > 50, "the tree was found");
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        assert!(
            text.starts_with("//!") || text.starts_with("#!"),
            "{} has no //! at its top",
            file.display()
        );
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_none_or(|n| n != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

//! Whole runs of the program against fake sheep: command line in, both outputs and the exit code out.
//!
//! A file of `tests/cases` holds several cases. Each names a scenario and some commands that run one after the
//! other against the same sheep:
//!
//! ```text
//! ## what this shows
//! sheep running
//! $ dog vdi write test 0 3
//! 0|abc            what is typed; `0/` and `1/` and `2/` mark a line without newline
//! exit 0           not written for 0
//! 1|a line of stdout
//! 2|a line of stderr
//! ```
//!
//! `DIR` in a command is a directory that is empty at the start of a scenario; `> DIR/file` and `< DIR/file` at the end of
//! a command redirect stdout and stdin, `damage DIR/file 1024` flips a bit of that byte, `cut DIR/file 1024` leaves so many
//! bytes, `old DIR/file` makes a backup as the original wrote it, `same DIR/a DIR/b` must be true.
//!
//! `ESC` and `LF` in a command are those characters.
//!
//! Ports of fakes show as `:P0000`, `:P0001`, ..., the unix socket of the first as `SOCKET` (also in commands),
//! elapsed times as `N`. With `UPDATE_CASES=1` the files are rewritten with what was found, for review with
//! `git diff`.

mod fake;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use fake::Flock;

#[test]
fn commands_print_and_exit_as_the_cases_say() {
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    // Some wait for sheep that never answer.
    let runs: Vec<(String, String)> = thread::scope(|scope| {
        let run = |path: &PathBuf| {
            let expected = fs::read_to_string(path).unwrap();
            scope.spawn(move || (run_file(&expected), expected))
        };
        let begun: Vec<_> = paths.iter().map(run).collect();
        begun.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for (path, (found, expected)) in paths.into_iter().zip(runs) {
        if found == expected {
            continue;
        }
        if update {
            fs::write(&path, &found).unwrap();
        }
        wrong.push(format!("{}:\n{}", path.display(), first_difference(&expected, &found)));
    }
    assert!(update || wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn invocations_are_logged_where_the_environment_says() {
    let flock = Flock::start("down");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let environment = [("SHEEPDOG_DOG_LOG", "1"), ("SHEEPDOG_DOG_LOG_PATH", path.to_str().unwrap())]
        .map(|(name, value)| (name.to_string(), value.to_string()));
    run_command("", &[], &flock, &environment);
    run_command("node nosuch -x \"a b\"", &[], &flock, &environment);
    let text = fs::read_to_string(&path).unwrap();
    let ends: Vec<bool> = text
        .lines()
        .zip(["/dog", "/dog node nosuch -x a b"])
        .map(|(line, end)| line.ends_with(end))
        .collect();
    assert_eq!(ends, [true, true], "{text}");
}

/// Runs the commands of a file and returns the file as it should be.
fn run_file(text: &str) -> String {
    let mut out = String::new();
    let mut flock: Option<Flock> = None;
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(command) = line.strip_prefix("$ dog") {
            let mut input = Vec::new();
            writeln!(out, "{line}").unwrap();
            while let Some(typed) = lines.next_if(|line| line.starts_with("0|") || line.starts_with("0/")) {
                writeln!(out, "{typed}").unwrap();
                input.extend(typed[2..].bytes());
                input.extend(typed.starts_with("0|").then_some(b'\n'));
            }
            while lines.next_if(|line| is_output(line)).is_some() {}
            let flock = flock.as_ref().expect("a case starts with its scenario");
            out += &run_command(command, &input, flock, &environment);
            continue;
        }
        if let Some(scenario) = line.strip_prefix("sheep ") {
            (flock, environment) = (Some(Flock::start(scenario)), Vec::new());
        } else if let Some((name, value)) = line.strip_prefix("env ").and_then(|rest| rest.split_once('=')) {
            environment.push((name.to_string(), value.to_string()));
        }
        if let Some(flock) = &flock {
            tamper(line, flock);
        }
        writeln!(out, "{line}").unwrap();
    }
    out
}

/// Carries out a line about files.
fn tamper(line: &str, flock: &Flock) {
    let words = split_words(&line.replace("DIR", flock.dir().to_str().unwrap()));
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["damage", path, at] => {
            let mut bytes = fs::read(path).unwrap();
            bytes[at.parse::<usize>().unwrap()] ^= 0x10;
            fs::write(path, bytes).unwrap();
        }
        ["cut", path, len] => {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len.parse().unwrap()).unwrap();
        }
        ["old", path] => fs::write(path, stream_of_the_original()).unwrap(),
        ["same", one, other] => assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{line}"),
        _ => {}
    }
}

/// Version 1: "hello" at the beginning of object 1.
fn stream_of_the_original() -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let header = words(&[1, 0x1192_1192]);
    [header, words(&[1, 0, 5, 0]), b"hello".to_vec(), words(&[u32::MAX, 0, 0, 0])].concat()
}

fn is_output(line: &str) -> bool {
    ["1|", "1/", "2|", "2/", "exit "].iter().any(|mark| line.starts_with(mark))
}

fn run_command(command: &str, input: &[u8], flock: &Flock, environment: &[(String, String)]) -> String {
    let command = command.replace("SOCKET", flock.socket.to_str().unwrap());
    let command = command.replace("DIR", flock.dir().to_str().unwrap());
    let command = command.replace("ESC", "\x1b").replace("LF", "\n");
    let (command, stdout) = match command.split_once(" > ") {
        Some((command, path)) => (command, Some(path)),
        None => (command.as_str(), None),
    };
    let (command, stdin) = match command.split_once(" < ") {
        Some((command, path)) => (command, fs::read(path).unwrap()),
        None => (command, input.to_vec()),
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_dog"))
        .args(split_words(command))
        .env("TZ", "UTC")
        .env("SHEEPDOG_DOG_ADDR", "127.0.0.1")
        .env("SHEEPDOG_DOG_PORT", flock.ports[0].to_string())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses may not read what is typed.
    let _ = child.stdin.take().unwrap().write_all(&stdin);
    let mut output = child.wait_with_output().unwrap();
    if let Some(path) = stdout {
        fs::write(path, std::mem::take(&mut output.stdout)).unwrap();
    }
    let mut text = match output.status.code() {
        Some(0) => String::new(),
        Some(code) => format!("exit {code}\n"),
        None => format!("exit by signal: {}\n", output.status),
    };
    text += &marked('2', &output.stderr, flock);
    text += &marked('1', &output.stdout, flock);
    text
}

/// Words of a command line; double quotes keep blanks together.
fn split_words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    let mut begun = false;
    for c in command.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(String::new());
                }
                begun = false;
            }
            c => {
                words.last_mut().unwrap().push(c);
                begun = true;
            }
        }
    }
    if !begun {
        words.pop();
    }
    words
}

fn marked(stream: char, bytes: &[u8], flock: &Flock) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for (index, port) in flock.ports.iter().enumerate() {
        text = text.replace(&format!(":{port}"), &format!(":P{index:04}"));
    }
    text = text.replace(flock.socket.to_str().unwrap(), "SOCKET");
    text = text.replace(flock.dir().to_str().unwrap(), "DIR");
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let mark = if line.ends_with('\n') { '|' } else { '/' };
        let line = line.trim_end_matches('\n');
        let line = if line.starts_with("Elapsed time: ") { "Elapsed time: N seconds" } else { line };
        writeln!(out, "{stream}{mark}{line}").unwrap();
    }
    out
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut expected_lines, mut found_lines) = (expected.lines(), found.lines());
    for number in 1.. {
        match (expected_lines.next(), found_lines.next()) {
            (None, None) => break,
            (wanted, got) if wanted == got => {}
            (wanted, got) => return format!("  line {number}\n  expected {wanted:?}\n  found    {got:?}"),
        }
    }
    "  only the last newline differs".to_string()
}

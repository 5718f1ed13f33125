//! The log of invocations that `SHEEPDOG_DOG_LOG` asks for.
//!
//! Either to syslog, or appended to the file that `SHEEPDOG_DOG_LOG_PATH` names. A log that cannot be
//! written is reported but stops nothing: the operator's command matters more.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::clock::LocalTime;

/// Facility user (1), level info (6).
const SYSLOG_PRIORITY: u8 = 1 << 3 | 6;
const IDENTITY: &str = "sheepdog admin operation";

/// Appends one line: time, colon, then each argument after a space.
pub fn append_to_file(path: &Path, seconds: u64, args: &[Vec<u8>]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let line = [LocalTime::from_seconds(seconds).log().as_bytes(), b":", &render_args(args), b"\n"].concat();
    // One write, so that lines of commands that run at the same time stay whole.
    file.write_all(&line)
}

pub fn send_to_syslog(args: &[Vec<u8>]) -> io::Result<()> {
    let head = format!("<{SYSLOG_PRIORITY}>{IDENTITY}[{}]:", std::process::id());
    UnixDatagram::unbound()?.send_to(&[head.as_bytes(), &render_args(args)].concat(), "/dev/log").map(drop)
}

fn render_args(args: &[Vec<u8>]) -> Vec<u8> {
    args.iter().flat_map(|arg| [b" ", arg.as_slice()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn invocations_are_appended_to_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let args = ["dog", "vdi", "list"].map(|arg| arg.as_bytes().to_vec());
        append_to_file(&path, 0, &args).unwrap();
        append_to_file(&path, 0, &args[..2]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with(" : dog vdi list"), "{text}");
        assert!(lines[1].ends_with(" : dog vdi"), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

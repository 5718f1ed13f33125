//! Images in files: which format, and qemu-img for those that are not raw.
//!
//! dog moves raw images itself, by the native protocol. For every other format qemu-img reads or writes the file and a sheep's
//! NBD server has the VDI.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::names::{lossy, shown};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit, reason};
use crate::getopt::Parsed;
use crate::nbd::{self, Nbd};
use crate::sheep::Sheep;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    /// As qemu-img names it.
    Other(String),
}

pub fn format(parsed: &Parsed) -> Outcome<Format> {
    let Some(text) = parsed.text("format") else { return Ok(Format::Raw) };
    let is_word = !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    match text.as_str() {
        "raw" => Ok(Format::Raw),
        _ if is_word => Ok(Format::Other(text)),
        _ => Err(Failure::refused(format!("Invalid format '{text}'"))),
    }
}

/// What the first bytes of an image say of its format, if that is clearly not raw.
pub fn guess(begin: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 5] = [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"<<< ", "vdi"),
    ];
    magics.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, name)| *name)
}

pub fn path_of(argument: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(argument))
}

/// Up to `buffer.len()` bytes from the beginning of a file.
pub fn read_begin(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

/// From the options, else from the environment, else from the sheep.
pub fn find_nbd(context: &Context, parsed: &Parsed, sheep: &mut Sheep) -> Outcome<Nbd> {
    if let Some(path) = parsed.text("socket") {
        return nbd::unix(&path);
    }
    match parsed.value("nbd").or(context.nbd.as_ref().map(|text| text.as_bytes())) {
        Some(text) => nbd::parse(&lossy(text)),
        None => nbd::ask(sheep, &context.target),
    }
}

/// The VDI as qemu-img names it. In JSON, where no character of a name means anything else.
pub fn vdi_for_qemu(nbd: &Nbd, export: &[u8]) -> Outcome<String> {
    let export =
        std::str::from_utf8(export).map_err(|_| Failure::refused("qemu-img takes only names in UTF-8"))?;
    let server = match nbd {
        Nbd::Unix(path) => json!({ "type": "unix", "path": path }),
        Nbd::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port }),
    };
    let file = json!({ "driver": "nbd", "export": export, "server": server });
    Ok(format!("json:{}", json!({ "driver": "raw", "file": file })))
}

/// An existing image, of this format and no other.
pub fn file_for_qemu(path: &Path, format: &str) -> Outcome<String> {
    let filename = path.to_str().ok_or_else(|| Failure::refused("qemu-img takes only paths in UTF-8"))?;
    let file = json!({ "driver": "file", "filename": filename });
    Ok(format!("json:{}", json!({ "driver": format, "file": file })))
}

/// Bytes of the disk in an image.
pub fn virtual_size(image: &str, path: &Path) -> Outcome<u64> {
    measure([image.as_ref()]).map_err(|failure| match failure.message.is_empty() {
        true => Failure::refused(format!("qemu-img cannot tell the size of {}", path.display())),
        false => failure,
    })
}

/// The same, of what these words name to `qemu-img info`; the image is the last one.
pub fn virtual_size_of(words: &[Vec<u8>]) -> Outcome<u64> {
    measure(words.iter().map(|word| OsStr::from_bytes(word))).map_err(|failure| {
        match failure.message.is_empty() {
            true => {
                let image = words.last().map_or(String::new(), |word| shown(word));
                Failure::refused(format!("qemu-img cannot tell the size of {image}"))
            }
            false => failure,
        }
    })
}

/// Fails silently where qemu-img has complained.
fn measure<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Outcome<u64> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(not_started)?;
    let info: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let size = info.and_then(|info| info["virtual-size"].as_u64());
    size.filter(|_| output.status.success()).ok_or_else(|| Failure::silent(exit::FAILURE))
}

/// Runs `qemu-img convert`. Its complaints go where ours do.
pub fn convert(args: &[&OsStr], with_progress: bool) -> Outcome {
    let mut command = Command::new("qemu-img");
    command.arg("convert").args(with_progress.then_some("-p")).args(args).stdin(Stdio::null());
    let status = command.status().map_err(not_started)?;
    if status.success() { Ok(()) } else { Err(Failure::refused("qemu-img convert failed")) }
}

fn not_started(error: io::Error) -> Failure {
    Failure::refused(format!(
        "Formats other than raw need qemu-img, which cannot be started: {}",
        reason(&error)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_their_place() {
        let name = vdi_for_qemu(&Nbd::Unix("/s".into()), b"a\",\"x\":1,,b").unwrap();
        let parsed: Value = serde_json::from_str(name.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(parsed["file"]["export"], "a\",\"x\":1,,b");
        assert_eq!(parsed["file"]["server"], json!({ "type": "unix", "path": "/s" }));
    }

    #[test]
    fn formats_are_words() {
        let parse =
            |text: &str| format(&Parsed { options: vec![("format", text.into())], ..Parsed::default() });
        assert_eq!(parse("raw").unwrap(), Format::Raw);
        assert_eq!(parse("qcow2").unwrap(), Format::Other("qcow2".into()));
        for text in ["", "-O", "a b", "json:{}"] {
            assert_eq!(parse(text).unwrap_err().code, 1, "{text}");
        }
        assert_eq!(guess(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(guess(b"\xeb\x63\x90"), None);
    }
}

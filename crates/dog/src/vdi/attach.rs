//! `dog vdi attach --vhost-user PATH NAME`, `dog vdi detach [--vhost-user PATH] NAME`, `dog vdi attached`: which VDIs a sheep serves by
//! vhost-user sockets. `attach` and `detach` print the sockets, one path a line.
//!
//! ```text
//! Name            |Guest    | Socket
//! ----------------+---------+------------
//! alice           |connected| /run/sheepdog/alice
//! bob@monday      |none     | /run/sheepdog/bob
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proto::client::{Attachment, ClientError};
use serde_json::json;

use super::list::{padded, push_escaped};
use super::names::{lossy, name_at, selector, shown, visible};
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, Form};
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Selector};

pub const ATTACH: Command = Command {
    group: "vdi",
    name: "attach",
    summary: "serve an image by a vhost-user socket",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::VHOST_USER,
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: false,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run_attach),
    notes: "The sheep makes the socket and serves it, also after a restart, until the image is detached. It must have\n\
            been started with --vhost-user DIRECTORY; the socket lies in that directory.\n",
};

pub const DETACH: Command = Command {
    group: "vdi",
    name: "detach",
    summary: "serve an image by a vhost-user socket no longer",
    args: "<vdiname>",
    args_min: 1,
    args_max: 1,
    options: &[
        option::VHOST_USER,
        option::SNAPSHOT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::TIME,
        option::JSON,
    ],
    needs_nodes: false,
    check: |parsed| selector(parsed).map(drop),
    action: Action::Run(run_detach),
    notes: "Without --vhost-user all sockets of the image go. One with a guest connected stays, and so do the others then.\n",
};

pub const ATTACHED: Command = Command {
    group: "vdi",
    name: "attached",
    summary: "list the images that a sheep serves by vhost-user sockets",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[option::ADDRESS, option::PORT, option::RAW, option::HELP, option::TIME, option::JSON],
    needs_nodes: false,
    check: no_values,
    action: Action::Run(run_attached),
    notes: "",
};

fn run_attach(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let Some(socket) = parsed.value("vhost-user") else {
        return Err(Failure::usage(
            "Please specify the '--vhost-user' option: vhost-user sockets are all that an image can be attached to. NBD \
             serves every image without: nbd+unix:///NAME?socket=STORE/nbd.sock",
        ));
    };
    let socket = socket_path(socket)?;
    let selector = selector(parsed)?;
    let mut sheep = context.connect()?;
    sheep.lookup(&name, &selector).map_err(|error| {
        error.or_refused(|reason| format!("Failed to find VDI {}: {reason}", shown(&name)))
    })?;
    let attached = sheep.attach(&export_name(&name, &selector), &socket);
    print_sockets(context, attached.map_err(|error| failure("attach", &name, error))?)
}

fn run_detach(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let socket = parsed.value("vhost-user").map(socket_path).transpose()?;
    let export = export_name(&name, &selector(parsed)?);
    let detached = context.connect()?.detach(&export, socket.as_deref());
    print_sockets(context, detached.map_err(|error| failure("detach", &name, error))?)
}

fn run_attached(context: &mut Context, _: &Parsed) -> Outcome {
    let attached = context.connect()?.attached();
    let attached = attached.map_err(|error| match error {
        CallError::Declined(ClientError::Unsupported(why)) => Failure::refused(sentence(&why)),
        other => other.or_refused(|reason| format!("Failed to list what is attached: {reason}")),
    })?;
    let text = match context.form {
        Form::Human => render(&attached),
        Form::Raw => render_raw(&attached),
        Form::Json => render_json(&attached).into_bytes(),
    };
    Ok(context.out.write_all(&text)?)
}

fn failure(what: &str, name: &[u8], error: CallError) -> Failure {
    let name = shown(name);
    match error {
        CallError::Declined(ClientError::Unsupported(why)) => {
            Failure::refused(format!("Failed to {what} VDI {name}: {why}"))
        }
        CallError::Declined(ClientError::Busy) => Failure::refused(format!(
            "Failed to {what} VDI {name}: a guest is connected; end it, or take the disk out of it first"
        )),
        other => other.or_refused(|reason| format!("Failed to {what} VDI {name}: {reason}")),
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// As NBD names it.
fn export_name(name: &[u8], selector: &Selector) -> Vec<u8> {
    match selector {
        Selector { tag, .. } if !tag.is_empty() => [name, b"@", tag].concat(),
        Selector { snap_id: 0, .. } => name.to_vec(),
        Selector { snap_id, .. } => [name, format!(":{snap_id}").as_bytes()].concat(),
    }
}

/// A name alone is one in the sheep's directory. A path is told as the sheep knows it: from the root, without links.
fn socket_path(text: &[u8]) -> Outcome<Vec<u8>> {
    let path = Path::new(OsStr::from_bytes(text));
    let Some(name) = path.file_name().filter(|_| !text.ends_with(b"/")) else {
        return Err(Failure::bad_value(format!("'{}' is not the path of a socket", path.display())));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => return Ok(text.to_vec()),
    };
    let parent: PathBuf = std::fs::canonicalize(parent)
        .map_err(|error| Failure::refused(format!("Cannot use {}: {}", parent.display(), reason(&error))))?;
    Ok(parent.join(name).into_os_string().as_bytes().to_vec())
}

fn print_sockets(context: &mut Context, attached: Vec<Attachment>) -> Outcome {
    let text = match context.form {
        Form::Json => render_json(&attached).into_bytes(),
        _ => attached.iter().flat_map(|a| [&visible(&a.socket)[..], b"\n"].concat()).collect(),
    };
    Ok(context.out.write_all(&text)?)
}

/// `%-16s|%-9s| %s`.
fn render(attached: &[Attachment]) -> Vec<u8> {
    let mut out = b"Name            |Guest    | Socket\n----------------+---------+------------\n".to_vec();
    for attachment in attached {
        out.extend(padded(&visible(&attachment.name), 16));
        let guest = if attachment.in_use { "connected" } else { "none" };
        out.extend(format!("|{guest:<9}| ").bytes());
        out.extend(visible(&attachment.socket));
        out.push(b'\n');
    }
    out
}

fn render_raw(attached: &[Attachment]) -> Vec<u8> {
    let mut out = Vec::new();
    for attachment in attached {
        push_escaped(&mut out, &attachment.name);
        out.extend(if attachment.in_use { b" 1 " } else { b" 0 " });
        push_escaped(&mut out, &attachment.socket);
        out.push(b'\n');
    }
    out
}

fn render_json(attached: &[Attachment]) -> String {
    let row = |attachment: &Attachment| {
        json!({
            "name": lossy(&attachment.name),
            "socket": lossy(&attachment.socket),
            "in_use": attachment.in_use,
        })
    };
    format!("{:#}\n", json!(attached.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_listed_with_whom_they_serve() {
        let attachment = |name: &str, socket: &str, in_use| Attachment {
            name: name.into(),
            socket: socket.into(),
            in_use,
        };
        let attached = [
            attachment("alice", "/run/sheepdog/alice", true),
            attachment("b c@monday", "/run/sheepdog/bob", false),
        ];
        let expect = "\
Name            |Guest    | Socket
----------------+---------+------------
alice           |connected| /run/sheepdog/alice
b c@monday      |none     | /run/sheepdog/bob
";
        assert_eq!(lossy(&render(&attached)), expect);
        let raw = "alice 1 /run/sheepdog/alice\nb\\ c@monday 0 /run/sheepdog/bob\n";
        assert_eq!(lossy(&render_raw(&attached)), raw);
    }

    #[test]
    fn paths_are_told_as_the_sheep_knows_them() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        let told = |path: PathBuf| socket_path(path.as_os_str().as_bytes());
        let expect = real.join("alice").into_os_string().as_bytes().to_vec();
        assert_eq!(told(real.join("link/alice")), Ok(expect));
        assert_eq!(socket_path(b"alice"), Ok(b"alice".to_vec()));
        for bad in ["/", "a/", "..", "/nowhere at all/alice"] {
            assert!(socket_path(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn snapshots_are_named_as_in_nbd() {
        let selector = |snap_id, tag: &str| Selector { snap_id, tag: tag.into() };
        assert_eq!(export_name(b"a", &selector(0, "")), b"a");
        assert_eq!(export_name(b"a", &selector(7, "")), b"a:7");
        assert_eq!(export_name(b"a", &selector(0, "t")), b"a@t");
    }
}

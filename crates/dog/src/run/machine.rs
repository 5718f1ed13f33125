//! Arguments of a virtual machine: `qemu-system-*`, `kvm`, and `qemu-storage-daemon`.
//!
//! Of a snapshot the machine gets a temporary overlay (`snapshot=on`): it starts with what the snapshot holds, and what it
//! writes is gone when it ends. The original made a branch of the snapshot the working VDI instead; that is
//! `dog vdi clone` or `dog vdi rollback` now, said by name.

use super::find::Finder;
use super::json;
use super::name::is_name;
use super::options::Options;
use super::words::{as_text, bytes};
use crate::failure::{Failure, Outcome};

/// Options whose value is an image, and what `-drive` calls the same.
const DISKS: [(&str, &str); 10] = [
    ("hda", "index=0,media=disk"),
    ("hdb", "index=1,media=disk"),
    ("hdc", "index=2,media=disk"),
    ("hdd", "index=3,media=disk"),
    ("cdrom", "index=2,media=cdrom"),
    ("fda", "if=floppy,index=0"),
    ("fdb", "if=floppy,index=1"),
    ("sd", "if=sd"),
    ("pflash", "if=pflash"),
    ("mtdblock", "if=mtd"),
];
/// Options whose value is any text, even one that looks like a volume.
const TEXTS: [&str; 2] = ["name", "append"];

pub fn rewrite(args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = as_text(arg);
        let option = text.strip_prefix('-').map(|name| name.strip_prefix('-').unwrap_or(name));
        let disk = DISKS.iter().find(|(name, _)| option == Some(name)).map(|(_, keys)| *keys);
        match option {
            // An image by itself is the first disk.
            None if is_name(text) => out.extend(drive_of(text, DISKS[0].1, finder)?),
            None => out.push(arg.clone()),
            Some(name) => {
                let takes_value =
                    disk.is_some() || matches!(name, "drive" | "blockdev") || TEXTS.contains(&name);
                let Some(value) = takes_value.then(|| rest.next()).flatten() else {
                    out.push(arg.clone());
                    continue;
                };
                match (disk, name) {
                    (Some(keys), _) if is_name(as_text(value)) => {
                        out.extend(drive_of(as_text(value), keys, finder)?);
                        continue;
                    }
                    (Some(_), _) => {
                        let (value, has_snapshot) = json::rewrite_filename_bytes(value, finder)?;
                        refuse_snapshot(has_snapshot, arg)?;
                        out.extend([arg.clone(), value]);
                    }
                    (None, "drive") => out.extend([arg.clone(), drive(value, finder)?]),
                    (None, "blockdev") => out.extend([arg.clone(), blockdev(value, finder)?]),
                    _ => out.extend([arg.clone(), value.clone()]),
                }
            }
        }
    }
    Ok(out)
}

/// `-hda sheepdog:Alice`: as a `-drive`, which can say that the image is raw.
fn drive_of(text: &str, keys: &str, finder: &mut dyn Finder) -> Outcome<[Vec<u8>; 2]> {
    let mut options = Options(vec![("file".to_string(), Some(text.to_string()))]);
    options.0.extend(Options::parse(keys).0);
    Ok([bytes("-drive"), complete_drive(options, finder)?])
}

fn drive(value: &[u8], finder: &mut dyn Finder) -> Outcome<Vec<u8>> {
    if !as_text(value).contains("sheepdog") {
        return Ok(value.to_vec());
    }
    complete_drive(Options::parse(as_text(value)), finder)
}

fn complete_drive(mut options: Options, finder: &mut dyn Finder) -> Outcome<Vec<u8>> {
    let found = options.rewrite(finder)?;
    if found.is_probed && options.get("format").is_none() && options.get("driver").is_none() {
        options.push("format", "raw");
    }
    let only_read = options.is_on("readonly")
        || options.is_on("read-only")
        || options.is_on("snapshot")
        || options.get("media") == Some("cdrom");
    if found.has_snapshot && !only_read {
        options.0.retain(|(key, _)| key != "snapshot");
        options.push("snapshot", "on");
        finder.tell(
            "A snapshot cannot be written to: what the guest writes goes to a temporary file and is gone when QEMU ends. \
             To keep it, make a volume of the snapshot first: dog vdi clone -s SNAP NAME NEW",
        );
    }
    Ok(bytes(&options.render()))
}

fn blockdev(value: &[u8], finder: &mut dyn Finder) -> Outcome<Vec<u8>> {
    let text = as_text(value);
    if !text.contains("sheepdog") {
        return Ok(value.to_vec());
    }
    let (rendered, has_snapshot, only_read) = if text.trim_start().starts_with('{') {
        let (document, has_snapshot) = json::rewrite(text, finder)?;
        let only_read = document.get("read-only") == Some(&true.into());
        (document.to_string(), has_snapshot, only_read)
    } else {
        let mut options = Options::parse(text);
        options.imply("driver");
        let found = options.rewrite(finder)?;
        (options.render(), found.has_snapshot, options.is_on("read-only"))
    };
    // What is below a backing file is only read.
    refuse_snapshot(has_snapshot && !only_read && !rendered.contains("backing"), value)?;
    Ok(bytes(&rendered))
}

fn refuse_snapshot(is_written: bool, value: &[u8]) -> Outcome {
    if !is_written {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "A snapshot cannot be written to, as '{}' would: add read-only=on, or use -drive, which gets a temporary overlay",
        as_text(value)
    )))
}

/// Is it a name that the original's users would find here?
pub fn is_machine(program: &str) -> bool {
    program.starts_with("qemu-system-")
        || ["qemu", "kvm", "qemu-kvm", "qemu-storage-daemon"].contains(&program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;
    use crate::run::words::{join, split};

    fn rewritten(line: &str, canned: &mut Canned) -> Outcome<String> {
        rewrite(&split(line), canned).map(|words| Canned::abbreviated(&join(&words)))
    }

    #[test]
    fn disks_become_nbd() {
        for (before, after) in [
            (
                "-hda sheepdog:Alice",
                "-drive file.driver=nbd,file.export=Alice,SERVER(file.),index=0,media=disk,format=raw",
            ),
            (
                "--hdb sheepdog://host/Bob -m 1G",
                "-drive file.driver=nbd,file.export=Bob,file.server.type=inet,file.server.host=host,\
                 file.server.port=10809,file.reconnect-delay=600,index=1,media=disk,format=raw -m 1G",
            ),
            (
                "-cdrom sheepdog:Alice:1",
                "-drive file.driver=nbd,file.export=Alice:1,SERVER(file.),index=2,media=cdrom,format=raw",
            ),
            (
                "-nographic sheepdog:Alice",
                "-nographic -drive file.driver=nbd,file.export=Alice,SERVER(file.),index=0,media=disk,format=raw",
            ),
            (
                "-drive file=sheepdog:Alice,if=virtio,cache=none",
                "-drive file.driver=nbd,file.export=Alice,SERVER(file.),if=virtio,cache=none,format=raw",
            ),
            (
                "-drive format=qcow2,file=sheepdog:Alice",
                "-drive format=qcow2,file.driver=nbd,file.export=Alice,SERVER(file.)",
            ),
            (
                "-drive file.driver=sheepdog,file.vdi=Alice",
                "-drive file.driver=nbd,file.export=Alice,SERVER(file.),format=raw",
            ),
            (
                "-drive driver=sheepdog,vdi=Alice,if=none,id=d",
                "-drive driver=nbd,export=Alice,SERVER(),if=none,id=d",
            ),
            (
                "-blockdev sheepdog,node-name=n,vdi=Alice,server.type=unix,server.path=/s",
                "-blockdev driver=nbd,export=Alice,SERVER(),node-name=n",
            ),
            (
                r#"-blockdev {"driver":"sheepdog","vdi":"Alice","node-name":"n"}"#,
                r#"-blockdev {"driver":"nbd","export":"Alice","node-name":"n",SERVER}"#,
            ),
            (
                r#"-hda json:{"driver":"raw","file":"sheepdog:Alice"}"#,
                r#"-hda json:{"driver":"raw","file":{"driver":"nbd","export":"Alice",SERVER}}"#,
            ),
            ("-hda disk.raw -name sheepdog:Alice -hda", "-hda disk.raw -name sheepdog:Alice -hda"),
            ("-drive file=a,,b -blockdev x", "-drive file=a,,b -blockdev x"),
        ] {
            let mut canned = Canned::default();
            assert_eq!(rewritten(before, &mut canned).unwrap(), after, "{before}");
            assert!(canned.told.is_empty(), "{before}");
        }
    }

    #[test]
    fn snapshots_get_a_temporary_overlay_unless_they_are_only_read() {
        for (before, after) in [
            (
                "-hda sheepdog:Alice:1",
                "-drive file.driver=nbd,file.export=Alice:1,SERVER(file.),index=0,media=disk,format=raw,snapshot=on",
            ),
            (
                "-drive file=sheepdog:Alice:tag,snapshot=off",
                "-drive file.driver=nbd,file.export=Alice@tag,SERVER(file.),format=raw,snapshot=on",
            ),
        ] {
            let mut canned = Canned::default();
            assert_eq!(rewritten(before, &mut canned).unwrap(), after, "{before}");
            assert_eq!(canned.told.len(), 1);
        }
        for only_read in
            ["-drive file=sheepdog:Alice:1,readonly=on", "-blockdev sheepdog,vdi=Alice,tag=t,read-only=on"]
        {
            let mut canned = Canned::default();
            assert!(!rewritten(only_read, &mut canned).unwrap().contains("snapshot=on"));
            assert!(canned.told.is_empty());
        }
        for written in [
            "-blockdev sheepdog,vdi=Alice,tag=t",
            r#"-blockdev {"driver":"sheepdog","vdi":"Alice","tag":"t"}"#,
            r#"-hda json:{"driver":"raw","file":"sheepdog:Alice:1"}"#,
        ] {
            let failure = rewritten(written, &mut Canned::default()).unwrap_err();
            assert!(failure.message.contains("add read-only=on"), "{written}");
        }
    }

    #[test]
    fn volumes_that_do_not_exist_are_refused() {
        for line in ["-hda sheepdog:Carol", "-drive file=sheepdog:Carol", "-blockdev sheepdog,vdi=Carol"] {
            assert_eq!(
                rewritten(line, &mut Canned::default()).unwrap_err().message,
                "no such volume",
                "{line}"
            );
        }
    }
}

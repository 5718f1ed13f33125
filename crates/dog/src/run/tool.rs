//! Arguments of `qemu-io`, `qemu-nbd`, and of those commands of `qemu-img` that only need an image's name changed.

use super::find::Finder;
use super::json;
use super::name::{self, is_name};
use super::options::rewrite_image_opts;
use super::words::{as_text, bytes};
use crate::failure::{Failure, Outcome};

/// Options that name a format.
const FORMATS: [&str; 5] = ["-f", "-F", "-O", "--format", "--source-format"];

pub struct Rewritten {
    pub args: Vec<Vec<u8>>,
    pub has_snapshot: bool,
}

/// Every word that names a volume, wherever it stands.
pub fn rewrite(args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Rewritten> {
    let has_image_opts = args.iter().any(|arg| arg == b"--image-opts");
    let mut out = Rewritten { args: Vec::new(), has_snapshot: false };
    let mut before = "";
    for arg in args {
        let text = as_text(arg);
        let word = if is_name(text) {
            let place = finder.find(&name::parse(text)?)?;
            out.has_snapshot |= place.is_snapshot;
            bytes(&json::filename(&place))
        } else if text.starts_with("json:") {
            let (word, has_snapshot) = json::rewrite_filename(text, finder)?;
            out.has_snapshot |= has_snapshot;
            bytes(&word)
        } else if has_image_opts && text.contains('=') {
            rewrite_image_opts(text, finder)?.map_or_else(|| arg.clone(), |word| bytes(&word))
        } else if FORMATS.contains(&before) && text == "sheepdog" {
            bytes("raw")
        } else {
            // `-fsheepdog`, `--format=sheepdog`
            match text.strip_suffix("sheepdog").map(|option| option.trim_end_matches('=')) {
                Some(option) if FORMATS.contains(&option) => bytes(&text.replace("sheepdog", "raw")),
                _ => arg.clone(),
            }
        };
        out.args.push(word);
        before = text;
    }
    Ok(out)
}

/// `qemu-io` and `qemu-nbd` open for writing unless told otherwise: of a snapshot they get a temporary overlay.
pub fn rewrite_opener(args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Vec<Vec<u8>>> {
    let Rewritten { mut args, has_snapshot } = rewrite(args, finder)?;
    let only_read = args.iter().any(|arg| matches!(as_text(arg), "-r" | "--read-only" | "-s" | "--snapshot"));
    if has_snapshot && !only_read {
        args.insert(0, bytes("-s"));
        finder.tell("A snapshot cannot be written to: what is written goes to a temporary file and is lost.");
    }
    Ok(args)
}

/// `qemu-img dd if=... of=...`.
pub fn rewrite_dd(args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Vec<Vec<u8>>> {
    let mut args = args.to_vec();
    for arg in &mut args {
        let text = as_text(arg);
        if let Some(name) = text.strip_prefix("if=").filter(|name| is_name(name)) {
            let place = finder.find(&name::parse(name)?)?;
            *arg = bytes(&format!("if={}", json::filename(&place)));
        } else if text.strip_prefix("of=").is_some_and(is_name) {
            return Err(Failure::refused("qemu-img dd cannot write to a volume: use qemu-img convert"));
        }
    }
    Ok(rewrite(&args, finder)?.args)
}

/// `qemu-img create` and `rebase` of other images: a backing file needs its format said.
pub fn rewrite_with_backing(args: &[Vec<u8>], finder: &mut dyn Finder) -> Outcome<Vec<Vec<u8>>> {
    let backing = args.iter().position(|arg| arg == b"-b");
    let is_ours = backing.and_then(|at| args.get(at + 1)).is_some_and(|value| is_name(as_text(value)));
    let mut rewritten = rewrite(args, finder)?.args;
    if is_ours && !args.iter().any(|arg| arg.starts_with(b"-F")) {
        rewritten.splice(0..0, [bytes("-F"), bytes("raw")]);
    }
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;
    use crate::run::words::{join, split};

    const ALICE: &str = r#"json:{"driver":"raw","file":{"driver":"nbd","export":"Alice",SERVER}}"#;

    fn check(rewrite: fn(&[Vec<u8>], &mut dyn Finder) -> Outcome<Vec<Vec<u8>>>, table: &[(&str, &str)]) {
        for (before, after) in table {
            let found = rewrite(&split(before), &mut Canned::default()).unwrap();
            assert_eq!(Canned::abbreviated(&join(&found)), after.replace("ALICE", ALICE), "{before}");
        }
    }

    #[test]
    fn names_and_formats_are_replaced() {
        check(
            |args, finder| rewrite(args, finder).map(|rewritten| rewritten.args),
            &[
                ("-f raw a.raw sheepdog:Alice", "-f raw a.raw ALICE"),
                ("-f sheepdog -F raw sheepdog:Alice b", "-f raw -F raw ALICE b"),
                ("--format=sheepdog -fsheepdog sheepdog", "--format=raw -fraw sheepdog"),
                ("--image-opts driver=sheepdog,vdi=Alice", "--image-opts driver=nbd,export=Alice,SERVER()"),
                ("--image-opts driver=file,filename=a", "--image-opts driver=file,filename=a"),
                (
                    "--image-opts file.filename=sheepdog:Alice",
                    "--image-opts file.driver=nbd,file.export=Alice,SERVER(file.),driver=raw",
                ),
                (r#"json:{"file":"sheepdog:Alice"}"#, ALICE),
                (
                    r#"json:{"driver":"sheepdog","vdi":"Alice"}"#,
                    r#"json:{"driver":"nbd","export":"Alice",SERVER}"#,
                ),
            ],
        );
    }

    #[test]
    fn openers_get_an_overlay_of_a_snapshot() {
        let snapshot = ALICE.replace("Alice", "Alice:1");
        check(
            rewrite_opener,
            &[
                ("-c read sheepdog:Alice", "-c read ALICE"),
                ("-c read sheepdog:Alice:1", &format!("-s -c read {snapshot}")),
                ("-r sheepdog:Alice:1", &format!("-r {snapshot}")),
            ],
        );
    }

    #[test]
    fn backing_files_and_dd_are_special() {
        check(
            rewrite_with_backing,
            &[
                ("-f qcow2 -b sheepdog:Alice new.qcow2", "-F raw -f qcow2 -b ALICE new.qcow2"),
                ("-f qcow2 -b sheepdog:Alice -F sheepdog new.qcow2", "-f qcow2 -b ALICE -F raw new.qcow2"),
                ("-f qcow2 -b a.raw new.qcow2", "-f qcow2 -b a.raw new.qcow2"),
            ],
        );
        check(rewrite_dd, &[("if=sheepdog:Alice of=x bs=1M", "if=ALICE of=x bs=1M")]);
        assert!(rewrite_dd(&split("if=x of=sheepdog:Alice"), &mut Canned::default()).is_err());
    }
}

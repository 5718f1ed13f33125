//! Splits a command line by the rules of GNU `getopt_long`: bundled short options, long ones abbreviated while that is
//! unambiguous, `--name value` and `--name=value`, options and positionals interleaved, `--`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One row of the option table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opt {
    /// `None`: there is a long form only.
    pub short: Option<char>,
    pub long: &'static str,
    pub has_value: bool,
    pub help: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    Option(&'static Opt, OsString),
    Positional(OsString),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GetoptError {
    #[error("unrecognized option '{0}'")]
    Unknown(String),
    #[error("option '{0}' is ambiguous; possibilities: {1}")]
    Ambiguous(String, String),
    #[error("option '{}' requires an argument", name(.0))]
    NeedsValue(&'static Opt),
    #[error("option '--{}' doesn't allow an argument", .0.long)]
    NoValueAllowed(&'static Opt),
}

pub fn name(opt: &Opt) -> String {
    opt.short.map_or_else(|| format!("--{}", opt.long), |short| format!("-{short}"))
}

/// What the arguments say, in their order. Those before an error count still, so that `-h -Z` prints the help.
pub fn split(
    table: &'static [Opt],
    args: impl Iterator<Item = OsString>,
) -> (Vec<Item>, Option<GetoptError>) {
    let mut items = Vec::new();
    let error = split_into(table, args, &mut items).err();
    (items, error)
}

fn split_into(
    table: &'static [Opt],
    mut args: impl Iterator<Item = OsString>,
    items: &mut Vec<Item>,
) -> Result<(), GetoptError> {
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            items.extend(args.map(Item::Positional));
            return Ok(());
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|b| *b == b'=') {
                Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
                None => (long, None),
            };
            let opt = find_long(table, &String::from_utf8_lossy(name))?;
            let value = match (opt.has_value, value) {
                (true, Some(value)) => value,
                (true, None) => args.next().ok_or(GetoptError::NeedsValue(opt))?,
                (false, None) => OsString::new(),
                (false, Some(_)) => return Err(GetoptError::NoValueAllowed(opt)),
            };
            items.push(Item::Option(opt, value));
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            split_bundle(table, &bytes[1..], &mut args, items)?;
        } else {
            items.push(Item::Positional(arg));
        }
    }
    Ok(())
}

fn split_bundle(
    table: &'static [Opt],
    mut bundle: &[u8],
    args: &mut impl Iterator<Item = OsString>,
    items: &mut Vec<Item>,
) -> Result<(), GetoptError> {
    while let Some((&letter, rest)) = bundle.split_first() {
        let opt = table
            .iter()
            .find(|opt| opt.short == Some(letter as char))
            .ok_or_else(|| GetoptError::Unknown(format!("-{}", letter.escape_ascii())))?;
        if opt.has_value {
            let value = if rest.is_empty() {
                args.next().ok_or(GetoptError::NeedsValue(opt))?
            } else {
                OsString::from_vec(rest.to_vec())
            };
            items.push(Item::Option(opt, value));
            return Ok(());
        }
        items.push(Item::Option(opt, OsString::new()));
        bundle = rest;
    }
    Ok(())
}

fn find_long(table: &'static [Opt], name: &str) -> Result<&'static Opt, GetoptError> {
    if let Some(exact) = table.iter().find(|opt| opt.long == name) {
        return Ok(exact);
    }
    let candidates: Vec<&Opt> = table.iter().filter(|opt| opt.long.starts_with(name)).collect();
    match candidates[..] {
        [] => Err(GetoptError::Unknown(format!("--{name}"))),
        [only] => Ok(only),
        _ => {
            let names: Vec<String> = candidates.iter().map(|opt| format!("'--{}'", opt.long)).collect();
            Err(GetoptError::Ambiguous(format!("--{name}"), names.join(" ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn opt(short: Option<char>, long: &'static str, has_value: bool) -> Opt {
        Opt { short, long, has_value, help: "" }
    }

    static TABLE: [Opt; 4] = [
        opt(Some('f'), "foreground", false),
        opt(Some('p'), "port", true),
        opt(Some('P'), "pidfile", true),
        opt(None, "nbd", true),
    ];

    fn check(line: &str, expect: &str) {
        let (items, error) = split(&TABLE, line.split(' ').map(OsString::from));
        let mut got: Vec<String> = items
            .iter()
            .map(|item| match item {
                Item::Option(opt, value) if opt.has_value => format!("{}={}", opt.long, value.display()),
                Item::Option(opt, _) => opt.long.to_string(),
                Item::Positional(value) => format!("<{}>", value.display()),
            })
            .collect();
        got.extend(error.map(|error| format!("! {error}")));
        assert_eq!(got.join(" "), expect, "{line}");
    }

    #[test]
    fn lines_are_split_as_getopt_does() {
        check("-fp 7 /d", "foreground port=7 </d>");
        check("-fp7 /d", "foreground port=7 </d>");
        check("/d -p 7", "</d> port=7");
        check("--port=7 --for", "port=7 foreground");
        check("--port= --nbd 1", "port= nbd=1");
        check("-- -f", "<-f>");
        check("- -f", "<-> foreground");
        check("--p 7", "! option '--p' is ambiguous; possibilities: '--port' '--pidfile'");
        check("-f -x", "foreground ! unrecognized option '-x'");
        check("--zzz", "! unrecognized option '--zzz'");
        check("-p", "! option '-p' requires an argument");
        check("--nbd", "! option '--nbd' requires an argument");
        check("--foreground=1", "! option '--foreground' doesn't allow an argument");
    }
}

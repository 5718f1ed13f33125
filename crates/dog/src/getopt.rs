//! Splits a command line by the rules of GNU `getopt_long`.
//!
//! Scripts rely on all of them: short options are bundled (`-rv`), long ones may be abbreviated while that
//! is unambiguous and take `--name value` or `--name=value`, options and positionals are interleaved
//! (libvirt puts `-a` and `-p` last), and `--` ends the options. Arguments are bytes: a VDI's name need not
//! be UTF-8.

use std::fmt;

/// One option a subcommand offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opt {
    pub short: Option<char>,
    pub long: &'static str,
    pub has_value: bool,
    /// For the usage block. Lines after the first are indented there.
    pub help: &'static str,
}

/// Options and positionals in the order in which they came.
///
/// An option that cannot be understood ends the reading, as in getopt: what came before still counts, so
/// that `-h -Z` prints the help.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    pub options: Vec<(&'static str, Vec<u8>)>,
    pub positionals: Vec<Vec<u8>>,
    pub error: Option<GetoptError>,
}

impl Parsed {
    pub fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == long)
    }

    /// The value of an option; of several, the last.
    pub fn value(&self, long: &str) -> Option<&[u8]> {
        self.options.iter().rev().find(|(name, _)| *name == long).map(|(_, value)| value.as_slice())
    }

    /// The value as text for messages and parsers of numbers, which refuse anything that is not ASCII anyway.
    pub fn text(&self, long: &str) -> Option<String> {
        self.value(long).map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetoptError {
    UnknownShort(char),
    UnknownLong(String),
    Ambiguous(String, Vec<&'static str>),
    ShortNeedsValue(char),
    LongNeedsValue(&'static str),
    NoValueAllowed(&'static str),
}

impl fmt::Display for GetoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GetoptError::UnknownShort(c) => write!(f, "dog: invalid option -- '{c}'"),
            GetoptError::UnknownLong(name) => write!(f, "dog: unrecognized option '--{name}'"),
            GetoptError::Ambiguous(name, candidates) => {
                write!(f, "dog: option '--{name}' is ambiguous; possibilities:")?;
                candidates.iter().try_for_each(|candidate| write!(f, " '--{candidate}'"))
            }
            GetoptError::ShortNeedsValue(c) => write!(f, "dog: option requires an argument -- '{c}'"),
            GetoptError::LongNeedsValue(name) => write!(f, "dog: option '--{name}' requires an argument"),
            GetoptError::NoValueAllowed(name) => {
                write!(f, "dog: option '--{name}' doesn't allow an argument")
            }
        }
    }
}

/// Options up to the first positional; all that follows is positional.
pub fn parse_leading(offered: &[Opt], args: &[Vec<u8>]) -> Parsed {
    let mut at = 0;
    while let Some(arg) = args.get(at).filter(|arg| arg.len() > 1 && arg[0] == b'-' && *arg != b"--") {
        let alone = parse(offered, std::slice::from_ref(arg));
        let lacks_value =
            matches!(alone.error, Some(GetoptError::ShortNeedsValue(_) | GetoptError::LongNeedsValue(_)));
        at += if lacks_value { 2 } else { 1 };
    }
    let (leading, rest) = args.split_at(at.min(args.len()));
    let mut parsed = parse(offered, leading);
    let rest = rest.strip_prefix(&[b"--".to_vec()][..]).unwrap_or(rest);
    parsed.positionals.extend_from_slice(rest);
    parsed
}

pub fn parse(offered: &[Opt], args: &[Vec<u8>]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let step = match arg.as_slice() {
            b"--" => {
                parsed.positionals.extend(rest.by_ref().cloned());
                Ok(())
            }
            [b'-', b'-', long @ ..] => parse_long(offered, long, &mut rest, &mut parsed.options),
            [b'-', first, shorts @ ..] => {
                let shorts = [&[*first], shorts].concat();
                parse_shorts(offered, &shorts, &mut rest, &mut parsed.options)
            }
            _ => {
                parsed.positionals.push(arg.clone());
                Ok(())
            }
        };
        if let Err(error) = step {
            parsed.error = Some(error);
            break;
        }
    }
    parsed
}

fn parse_long<'a>(
    offered: &[Opt],
    arg: &[u8],
    rest: &mut impl Iterator<Item = &'a Vec<u8>>,
    options: &mut Vec<(&'static str, Vec<u8>)>,
) -> Result<(), GetoptError> {
    let (name, attached) = match arg.iter().position(|b| *b == b'=') {
        Some(at) => (&arg[..at], Some(arg[at + 1..].to_vec())),
        None => (arg, None),
    };
    let opt = find_long(offered, name)?;
    let value = match (opt.has_value, attached) {
        (true, Some(value)) => value,
        (true, None) => rest.next().ok_or(GetoptError::LongNeedsValue(opt.long))?.clone(),
        (false, Some(_)) => return Err(GetoptError::NoValueAllowed(opt.long)),
        (false, None) => Vec::new(),
    };
    options.push((opt.long, value));
    Ok(())
}

/// An exact name wins; else the only one that begins so.
fn find_long(offered: &[Opt], name: &[u8]) -> Result<Opt, GetoptError> {
    if let Some(opt) = offered.iter().find(|opt| opt.long.as_bytes() == name) {
        return Ok(*opt);
    }
    let text = String::from_utf8_lossy(name).into_owned();
    let candidates: Vec<Opt> =
        offered.iter().filter(|opt| opt.long.as_bytes().starts_with(name)).copied().collect();
    match candidates.as_slice() {
        [] => Err(GetoptError::UnknownLong(text)),
        [opt] => Ok(*opt),
        several => Err(GetoptError::Ambiguous(text, several.iter().map(|opt| opt.long).collect())),
    }
}

/// A bundle such as `rv` or `rc3`: the first option with a value takes the rest of the word, or the next word.
fn parse_shorts<'a>(
    offered: &[Opt],
    bundle: &[u8],
    rest: &mut impl Iterator<Item = &'a Vec<u8>>,
    options: &mut Vec<(&'static str, Vec<u8>)>,
) -> Result<(), GetoptError> {
    for (at, letter) in bundle.iter().map(|b| char::from(*b)).enumerate() {
        let opt = offered.iter().find(|opt| opt.short == Some(letter));
        let opt = opt.ok_or(GetoptError::UnknownShort(letter))?;
        if !opt.has_value {
            options.push((opt.long, Vec::new()));
            continue;
        }
        let attached = &bundle[at + 1..];
        let value = match attached {
            [] => rest.next().ok_or(GetoptError::ShortNeedsValue(letter))?.clone(),
            attached => attached.to_vec(),
        };
        options.push((opt.long, value));
        break;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: &[Opt] = &[
        Opt { short: Some('r'), long: "raw", has_value: false, help: "" },
        Opt { short: Some('v'), long: "verbose", has_value: false, help: "" },
        Opt { short: Some('c'), long: "copies", has_value: true, help: "" },
        Opt { short: Some('R'), long: "recyclevid", has_value: false, help: "" },
        Opt { short: None, long: "json", has_value: false, help: "" },
    ];

    /// Renders what was understood: options as `long=value`, then `|`, positionals, and the error.
    fn check(line: &str, expect: &str) {
        check_parsed(parse, line, expect);
    }

    fn check_parsed(parse: fn(&[Opt], &[Vec<u8>]) -> Parsed, line: &str, expect: &str) {
        let args: Vec<Vec<u8>> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        let parsed = parse(OFFERED, &args);
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let options: Vec<String> =
            parsed.options.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
        let positionals: Vec<String> = parsed.positionals.iter().map(text).collect();
        let mut found = format!("{} | {}", options.join(" "), positionals.join(" "));
        if let Some(error) = parsed.error {
            found.push_str(&format!(" | {error}"));
        }
        assert_eq!(found, expect, "{line}");
    }

    #[test]
    fn options_are_understood_as_getopt_does() {
        check("a b", " | a b");
        check("-r a -v b", "raw= verbose= | a b");
        check("-rvc3 a", "raw= verbose= copies=3 | a");
        check("-rc 3 a", "raw= copies=3 | a");
        check("--copies=3 --copies 4", "copies=3 copies=4 | ");
        check("--cop 3 --j --raw", "copies=3 json= raw= | ");
        check("--copies=", "copies= | ");
        check("a -- -r --", " | a -r --");
        check("- -r", "raw= | -");
        check("-c -r", "copies=-r | ");
    }

    #[test]
    fn options_of_another_command_are_left_to_it() {
        let check = |line: &str, expect: &str| check_parsed(parse_leading, line, expect);
        check("-r -c 3 -- qemu -c 4 --", "raw= copies=3 | qemu -c 4 --");
        check("-rc3 qemu -c 4", "raw= copies=3 | qemu -c 4");
        check("--copies 3 qemu -- -r", "copies=3 | qemu -- -r");
        check("qemu", " | qemu");
        check("-- -r", " | -r");
        check("-r", "raw= | ");
        check("-c", " |  | dog: option requires an argument -- 'c'");
        check("-Z qemu", " | qemu | dog: invalid option -- 'Z'");
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        check("-r -Z -v", "raw= |  | dog: invalid option -- 'Z'");
        check("-rZ", "raw= |  | dog: invalid option -- 'Z'");
        check("--nosuch", " |  | dog: unrecognized option '--nosuch'");
        check("--nosuch=3", " |  | dog: unrecognized option '--nosuch'");
        check("--r", " |  | dog: option '--r' is ambiguous; possibilities: '--raw' '--recyclevid'");
        check("a -c", " | a | dog: option requires an argument -- 'c'");
        check("--copies", " |  | dog: option '--copies' requires an argument");
        check("--raw=1", " |  | dog: option '--raw' doesn't allow an argument");
    }

    #[test]
    fn the_last_value_of_an_option_counts() {
        let args = [b"-c1".to_vec(), b"-c2".to_vec()];
        assert_eq!(parse(OFFERED, &args).value("copies"), Some(&b"2"[..]));
    }
}

//! The redundancy that `-c` names: `3` replicas, or `4:2` strips of data and parity.

use proto::CopyPolicy;

use crate::failure::{Failure, exit};
use crate::getopt::Parsed;

const COPIES_MAX: u8 = 31;
const PARITY_MAX: u8 = 15;

/// Parses `N` or `D:P`. A wrong one is answered with the rules and exit code 1.
pub fn parse(text: &[u8]) -> Result<CopyPolicy, Failure> {
    match text.iter().position(|b| *b == b':') {
        None => number(text)
            .filter(|n| (1..=COPIES_MAX).contains(n))
            .map(|copies| CopyPolicy::Replicated { copies }),
        Some(colon) => number(&text[..colon])
            .filter(|data| [2, 4, 8, 16].contains(data))
            .zip(number(&text[colon + 1..]).filter(|parity| (1..=PARITY_MAX).contains(parity)))
            .map(|(data, parity)| CopyPolicy::Erasure { data, parity }),
    }
    .ok_or_else(|| refusal(text))
}

/// As [`parse`], but only replication, which is all that clusters offer at present.
pub fn parse_replicated(text: &[u8]) -> Result<CopyPolicy, Failure> {
    match parse(text)? {
        policy @ CopyPolicy::Replicated { .. } => Ok(policy),
        policy => Err(Failure::refused(format!(
            "Erasure coding ({policy}) is not supported yet: give a number of copies, such as -c 3"
        ))),
    }
}

/// The number of copies that is to be altered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub copies: u8,
    /// None was given.
    pub is_assumed: bool,
}

/// What `alter-copy` assumes without `-c`, as it always did.
const COPIES_ASSUMED: u8 = 3;

/// The number of copies of `-c`. Strips are a wrong command line.
pub fn wanted_copies(parsed: &Parsed) -> Result<Wanted, Failure> {
    let Some(text) = parsed.value("copies") else {
        return Ok(Wanted { copies: COPIES_ASSUMED, is_assumed: true });
    };
    match parse(text)? {
        CopyPolicy::Replicated { copies } => Ok(Wanted { copies, is_assumed: false }),
        policy => Err(Failure {
            code: exit::USAGE,
            ..Failure::refused(format!(
                "The redundancy {policy} cannot be altered to: give a number of copies"
            ))
        }),
    }
}

/// A complete decimal number of at most three digits.
fn number(text: &[u8]) -> Option<u8> {
    let is_plain = (1..=3).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    is_plain.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// The literal block of the original: its test suite compares it.
fn refusal(text: &[u8]) -> Failure {
    Failure::refused(format!(
        "Invalid parameter {}\n\
         To create replicated vdi, set -c x\n  \
         x(1 to 31)   - number of replicated copies\n\
         To create erasure coded vdi, set -c x:y\n  \
         x(2,4,8,16)  - number of data strips\n  \
         y(1 to 15)   - number of parity strips",
        String::from_utf8_lossy(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood_within_their_limits() {
        for (text, expect) in [("1", "1"), ("31", "31"), ("4:2", "4:2"), ("16:15", "16:15"), ("03", "3")] {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), expect);
        }
        for text in
            ["", "0", "32", "255", "256", "3:1", "4:0", "4:16", "4:", ":2", "4:2:1", "-1", "+3", "3x", " 3"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wrong_one_is_answered_with_the_rules() {
        let failure = parse(b"3:9").unwrap_err();
        assert_eq!(failure.code, 1);
        assert_eq!(
            failure.message,
            "Invalid parameter 3:9\nTo create replicated vdi, set -c x\n  x(1 to 31)   - number of replicated \
             copies\nTo create erasure coded vdi, set -c x:y\n  x(2,4,8,16)  - number of data strips\n  y(1 to \
             15)   - number of parity strips"
        );
    }

    #[test]
    fn strips_are_refused_where_only_replicas_are_offered() {
        assert!(parse_replicated(b"4:2").unwrap_err().message.contains("not supported"));
        assert_eq!(parse_replicated(b"2").unwrap(), CopyPolicy::Replicated { copies: 2 });
    }
}

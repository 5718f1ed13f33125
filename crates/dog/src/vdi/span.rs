//! The part of a VDI that `read` and `write` are asked for: `<vdiname> [<offset> [<len>]]`.

use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::size;

/// Bytes `start .. end` of a VDI, within its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

/// Offset and length as given; the length is "to the end" where it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    offset: u64,
    len: Option<u64>,
}

impl Asked {
    /// From the positionals after the name.
    pub fn parse(parsed: &Parsed) -> Outcome<Asked> {
        let offset = parsed.positionals.get(1).map(|text| parse_size(text)).transpose()?.unwrap_or(0);
        let len = parsed.positionals.get(2).map(|text| parse_size(text)).transpose()?;
        Ok(Asked { offset, len })
    }

    /// Cuts the length at the VDI's end. `verb` begins the message about an offset beyond it.
    pub fn within(self, vdi_size: u64, verb: &str) -> Outcome<Span> {
        if self.offset > vdi_size {
            return Err(Failure::refused(format!("{verb} offset is beyond the end of the VDI")));
        }
        let len = self.len.unwrap_or(u64::MAX).min(vdi_size - self.offset);
        Ok(Span { start: self.offset, end: self.offset + len })
    }
}

impl Span {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The largest piece from `at` that crosses no multiple of `unit`, a power of two or not.
    pub fn piece(&self, at: u64, unit: u64) -> u64 {
        (unit - at % unit).min(self.end - at)
    }
}

pub fn parse_size(text: &[u8]) -> Outcome<u64> {
    size::parse(text).ok_or_else(|| {
        Failure::bad_value(format!(
            "Invalid size '{}'\nA size is a decimal number with at most one suffix: B, K, M, G, T or P",
            String::from_utf8_lossy(text)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Outcome<Asked> {
        let positionals = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Asked::parse(&Parsed { positionals, ..Parsed::default() })
    }

    #[test]
    fn a_span_ends_where_the_vdi_ends() {
        for (words, expect) in [
            (&["v"][..], (0, 1000)),
            (&["v", "10"], (10, 1000)),
            (&["v", "10", "20"], (10, 30)),
            (&["v", "10", "16P"], (10, 1000)),
            (&["v", "1000"], (1000, 1000)),
            (&["v", "0", "0"], (0, 0)),
        ] {
            let span = asked(words).unwrap().within(1000, "Read").unwrap();
            assert_eq!((span.start, span.end), expect, "{words:?}");
        }
        let failure = asked(&["v", "1001"]).unwrap().within(1000, "Write").unwrap_err();
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (1, "Write offset is beyond the end of the VDI")
        );
    }

    #[test]
    fn wrong_sizes_are_usage_errors() {
        let failure = asked(&["v", "12X"]).unwrap_err();
        assert_eq!(failure.code, 64);
        assert!(failure.message.starts_with("Invalid size '12X'\n"));
    }

    #[test]
    fn pieces_stop_at_boundaries_and_at_the_end() {
        let span = Span { start: 5, end: 25 };
        assert_eq!(span.piece(5, 10), 5);
        assert_eq!(span.piece(10, 10), 10);
        assert_eq!(span.piece(20, 10), 5);
    }
}

//! Spans of time as users type and read them: a whole number and a letter, `90s`, `10m`, `1h`, `2d`.

use crate::failure::{Failure, Outcome};

/// Letters and their seconds, the longest first.
const UNITS: [(char, u32); 4] = [('d', 86400), ('h', 3600), ('m', 60), ('s', 1)];

/// Seconds. A number alone counts seconds. `None` for anything else, also for what 32 bits cannot hold.
pub fn parse(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, seconds) = unit.map_or((text, 1), |(_, seconds)| (&text[..text.len() - 1], *seconds));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u32>().ok().filter(|_| is_number)?.checked_mul(seconds)
}

/// The cluster's out-time on a command line, in seconds.
pub fn parse_out_time(text: &[u8]) -> Outcome<u32> {
    parse(text).ok_or_else(|| {
        Failure::bad_value(format!(
            "Invalid time '{}': give a whole number and s, m, h or d, such as 90s, 10m or 1h; or 0 for never",
            String::from_utf8_lossy(text)
        ))
    })
}

/// In the largest unit that shows all of it.
pub fn show(seconds: u32) -> String {
    let fits = |(_, unit): &&(char, u32)| seconds > 0 && seconds.is_multiple_of(*unit);
    let (letter, unit) = UNITS.iter().find(fits).copied().unwrap_or(('s', 1));
    format!("{}{letter}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        for (text, seconds) in
            [("0s", 0), ("3s", 3), ("90s", 90), ("10m", 600), ("1h", 3600), ("2d", 172_800)]
        {
            assert_eq!(parse(text.as_bytes()), Some(seconds));
            assert_eq!(show(seconds), text);
        }
        assert_eq!(parse(b"0"), Some(0));
        assert_eq!(parse(b"120"), Some(120));
    }

    #[test]
    fn other_texts_are_no_spans() {
        for text in ["", "m", "-1", "+1m", "1.5h", "1 h", "1M", "10min", "x", "4294967296", "49711d"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}

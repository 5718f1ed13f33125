//! Sizes as users read and type them.
//!
//! Printing rounds down to what fits four characters; parsing accepts a fraction and one suffix letter.
//! Both are exact interfaces: scripts and the original's test suite compare the text.

/// `0.0 MB`, `4.0 MB`, `20 MB`, `1.0 GB`: steps of 1024 from MB on, one decimal below 10.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    let mut value = bytes as f64 / (1u64 << 20) as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 10.0 { 0 } else { 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Bytes if `raw`, else the human form.
pub fn show(bytes: u64, raw: bool) -> String {
    if raw { bytes.to_string() } else { human(bytes) }
}

/// Percentage of `whole`, cut, not rounded. Nothing of nothing is 0.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    (u128::from(part) * 100 / u128::from(whole)) as u64
}

/// A decimal number, optionally with a fraction and one of the letters B K M G T P; bytes, cut to a whole one.
/// `None` for anything else, also for what 64 bits cannot hold.
pub fn parse(text: &[u8]) -> Option<u64> {
    let (last, digits) = text.split_last()?;
    let (digits, shift) = match last.to_ascii_uppercase() {
        b'B' => (digits, 0),
        b'K' => (digits, 10),
        b'M' => (digits, 20),
        b'G' => (digits, 30),
        b'T' => (digits, 40),
        b'P' => (digits, 50),
        _ => (text, 0),
    };
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &[][..]),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // What fits 64 bits may be shifted by 50 without loss.
    let whole = u128::from(u64::try_from(decimal(whole)?).ok()?) << shift;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Eighteen digits decide any fraction of 2^50 bytes to well below one byte.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = (decimal(fraction)? << shift) / 10u128.pow(fraction.len() as u32);
    u64::try_from(whole + part).ok()
}

/// Digits only; an empty text counts as 0, so that `.5` and `5.` are numbers.
fn decimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u128::from(*digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_as_the_original_does() {
        for (bytes, expect) in [
            (0, "0.0 MB"),
            (512, "0.0 MB"),
            (4 << 20, "4.0 MB"),
            (20 << 20, "20 MB"),
            (1 << 30, "1.0 GB"),
            (1536 << 20, "1.5 GB"),
            (16 << 50, "16 PB"),
            (u64::MAX, "16 EB"),
            (4177526784, "3.9 GB"),
            (12176302080, "11 GB"),
            (113516544, "108 MB"),
            (761223581, "726 MB"),
        ] {
            assert_eq!(human(bytes), expect, "{bytes}");
        }
        assert_eq!(show(5 << 20, true), "5242880");
    }

    #[test]
    fn sizes_are_parsed_with_fraction_and_suffix() {
        for (text, expect) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("1k", 1 << 10),
            ("1.5G", 3 << 29),
            ("1G", 1 << 30),
            (".5M", 1 << 19),
            ("5.M", 5 << 20),
            ("0.1K", 102),
            ("16P", 16 << 50),
            ("007", 7),
            ("18446744073709551615", u64::MAX),
            ("1.0000000000000000000000000000000000000000001K", 1024),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expect), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_sizes() {
        for text in [
            "",
            "B",
            ".",
            ".G",
            "12X",
            "KB",
            "1KB",
            "1GiB",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1.2.3",
            "1e3",
            "0x10",
            "18446744073709551616",
            "16384P",
            "99999999999999999999999999999999999999999P",
            "1.5x5G",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn percentages_are_cut() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}

//! Text of others, fit for a terminal and for one line.
//!
//! Names, tags and keys may have any byte, so whoever creates a VDI could have a terminal of whoever lists it carry out escape
//! sequences, hide lines, or begin records of its own. What a terminal does not show as it is comes out as `\x1b`; everything
//! else, blanks, backslashes and letters of any language, stays as it is. JSON has escapes of its own and takes the text itself.

/// In one line: for names, tags, keys, and whatever is a part of a line.
pub fn visible(text: &[u8]) -> Vec<u8> {
    escaped(text, is_hazard)
}

/// The same as a string. What is no UTF-8 is shown as a replacement character.
pub fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&visible(text)).into_owned()
}

/// Text that may have several lines, such as a whole message.
pub fn visible_lines(text: &[u8]) -> Vec<u8> {
    escaped(text, |c| is_hazard(c) && c != '\n' && c != '\t')
}

fn escaped(text: &[u8], is_hazard: impl Fn(char) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            let mut bytes = [0; 4];
            let bytes = c.encode_utf8(&mut bytes).bytes();
            if is_hazard(c) { bytes.for_each(|byte| push_code(&mut out, byte)) } else { out.extend(bytes) }
        }
        for byte in chunk.invalid() {
            // A terminal that is not set to UTF-8 takes these for controls.
            if (0x80..0xa0).contains(byte) { push_code(&mut out, *byte) } else { out.push(*byte) }
        }
    }
    out
}

pub fn push_code(out: &mut Vec<u8>, byte: u8) {
    out.extend(format!("\\x{byte:02x}").bytes());
}

/// Controls, what ends a line or a paragraph, and what turns the direction of what follows.
pub fn is_hazard(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_act_on_a_terminal_is_spelled_out() {
        for (text, expect) in [
            (&b"a b\\c"[..], &b"a b\\c"[..]),
            ("Zürich 東京".as_bytes(), "Zürich 東京".as_bytes()),
            (b"\x1b[2Jx", b"\\x1b[2Jx"),
            (b"a\nb\r\t\x7f", b"a\\x0ab\\x0d\\x09\\x7f"),
            ("\u{9b}2J".as_bytes(), b"\\xc2\\x9b2J"),
            (b"\x9b2J\xe4", b"\\x9b2J\xe4"),
            ("\u{202e}x".as_bytes(), b"\\xe2\\x80\\xaex"),
        ] {
            assert_eq!(visible(text), expect, "{text:?}");
        }
    }

    #[test]
    fn messages_keep_their_lines() {
        assert_eq!(visible_lines(b"one\n\ttwo\x1b[1m\r"), b"one\n\ttwo\\x1b[1m\\x0d");
        assert_eq!(shown(b"\xe4\x07"), "\u{fffd}\\x07");
    }
}

//! Arguments as bytes and as text. What is no UTF-8 names nothing of ours and is passed on as it is.

pub fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// Empty for what is no UTF-8.
pub fn as_text(word: &[u8]) -> &str {
    std::str::from_utf8(word).unwrap_or_default()
}

/// As a shell would read it.
pub fn quoted(words: &[Vec<u8>]) -> String {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"_./:=,@%+-".contains(b);
    let quote = |word: &Vec<u8>| match String::from_utf8_lossy(word) {
        text if !word.is_empty() && word.iter().all(is_plain) => text.into_owned(),
        text => format!("'{}'", text.replace('\'', r"'\''")),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub fn split(line: &str) -> Vec<Vec<u8>> {
    line.split_whitespace().map(bytes).collect()
}

#[cfg(test)]
pub fn join(words: &[Vec<u8>]) -> String {
    String::from_utf8(words.join(&b' ')).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(
            quoted(&[bytes("a-b=c,d:/e"), bytes("a b"), bytes("it's"), bytes("")]),
            r"a-b=c,d:/e 'a b' 'it'\''s' ''"
        );
    }
}

//! What the name of an NBD export may stand for: a working VDI, or a snapshot of one.
//!
//! `NAME` is the working VDI of that name; where there is none, `NAME@TAG` and `NAME:ID` are snapshots of `NAME`. A VDI may have any
//! name, so the first meaning that exists counts; the view sees to it that no two of them come to exist (`node::view`).

use crate::client::Selector;

/// What a name may mean, in order. A tag may contain ':' and a name '@': the last separator counts.
pub fn meanings(name: &[u8]) -> Vec<(Vec<u8>, Selector)> {
    let mut meanings = vec![(name.to_vec(), Selector::Working)];
    meanings.extend(snapshots(name));
    meanings
}

/// The snapshots that a name may mean.
pub fn snapshots(name: &[u8]) -> Vec<(Vec<u8>, Selector)> {
    let mut meanings = Vec::new();
    let split_at =
        |separator| name.iter().rposition(|b| *b == separator).map(|at| (&name[..at], &name[at + 1..]));
    if let Some((name, tag)) = split_at(b'@')
        && !tag.is_empty()
    {
        meanings.push((name.to_vec(), Selector::Tag(tag.to_vec())));
    }
    if let Some((name, id)) = split_at(b':')
        && let Some(id) = snap_id(id)
    {
        meanings.push((name.to_vec(), Selector::SnapId(id)));
    }
    meanings.retain(|(name, _)| !name.is_empty());
    meanings
}

/// How a snapshot is named by its tag. With an '@' in the tag the name means another one.
pub fn by_tag(name: &[u8], tag: &[u8]) -> Vec<u8> {
    [name, b"@", tag].concat()
}

/// How a snapshot is named by its id.
pub fn by_id(name: &[u8], snap_id: u32) -> Vec<u8> {
    [name, format!(":{snap_id}").as_bytes()].concat()
}

/// Digits only: `+1` is no id, and there is no snapshot 0.
fn snap_id(text: &[u8]) -> Option<u32> {
    let all_digits = text.iter().all(u8::is_ascii_digit);
    let id = std::str::from_utf8(text).ok()?.parse().ok()?;
    (all_digits && id != 0).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_mean_a_working_vdi_or_a_snapshot() {
        let check = |name: &str, expect: &[(&str, Selector)]| {
            let expect: Vec<_> = expect.iter().map(|(n, s)| (n.as_bytes().to_vec(), s.clone())).collect();
            assert_eq!(meanings(name.as_bytes()), expect, "{name}");
        };
        let tag = |tag: &str| Selector::Tag(tag.as_bytes().to_vec());
        check("a", &[("a", Selector::Working)]);
        check("a@t", &[("a@t", Selector::Working), ("a", tag("t"))]);
        check("a@b@t", &[("a@b@t", Selector::Working), ("a@b", tag("t"))]);
        check("a:7", &[("a:7", Selector::Working), ("a", Selector::SnapId(7))]);
        check("a@x:7", &[("a@x:7", Selector::Working), ("a", tag("x:7")), ("a@x", Selector::SnapId(7))]);
        for other in ["a@", "a:", "a:0", "a:+1", "a:4294967296", "@t", ":1", "a:b"] {
            check(other, &[(other, Selector::Working)]);
        }
    }

    #[test]
    fn a_snapshot_is_found_by_the_names_that_it_has() {
        assert_eq!(snapshots(&by_tag(b"a", b"t")), [(b"a".to_vec(), Selector::Tag(b"t".to_vec()))]);
        assert_eq!(snapshots(&by_id(b"a", 7)), [(b"a".to_vec(), Selector::SnapId(7))]);
    }
}

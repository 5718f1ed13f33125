//! How commands name a VDI: a name, and perhaps `-s` with a snapshot's id or tag.

use proto::client::{Selector as Meaning, VdiInfo};
use proto::inode::{InodeHeader, NAME_MAX};
use proto::sd::ResultCode;
use proto::{Vid, export};

use crate::failure::{Failure, Outcome};
use crate::getopt::Parsed;
use crate::sheep::{CallError, Selector, Sheep};
pub use crate::visible::{shown, visible};

/// The positional at `index` as a VDI's name.
///
/// A longer one is refused, though the original cut it: what is left may be another VDI's. An empty one could never be addressed again.
pub fn name_at(parsed: &Parsed, index: usize) -> Outcome<Vec<u8>> {
    name_of(&parsed.positionals[index])
}

/// All positionals as names of VDIs, each once.
pub fn names(parsed: &Parsed) -> Outcome<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for positional in &parsed.positionals {
        let name = name_of(positional)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn name_of(name: &[u8]) -> Outcome<Vec<u8>> {
    if name.is_empty() {
        return Err(Failure::bad_value("The VDI name must not be empty"));
    }
    check_length("VDI name", name)?;
    Ok(name.to_vec())
}

pub fn check_length(what: &str, text: &[u8]) -> Outcome {
    if text.len() <= NAME_MAX {
        return Ok(());
    }
    Err(Failure::bad_value(format!("The {what} is too long: {} bytes, at most {NAME_MAX}", text.len())))
}

/// What `-s` selects: all digits are an id, anything else is a tag.
pub fn selector(parsed: &Parsed) -> Outcome<Selector> {
    selector_of(parsed, "snapshot")
}

/// What `-s` selects, where a snapshot must be named.
pub fn required_selector(parsed: &Parsed) -> Outcome<Selector> {
    match selector(parsed)? {
        working if working == Selector::default() => Err(Failure::usage("Please specify the '-s' option")),
        selector => Ok(selector),
    }
}

/// The snapshot that this option names, if any.
pub fn selector_of(parsed: &Parsed, option: &str) -> Outcome<Selector> {
    let Some(text) = parsed.value(option).filter(|text| !text.is_empty()) else {
        return Ok(Selector::default());
    };
    select(text)
}

/// The snapshot of this id or tag.
pub fn select(text: &[u8]) -> Outcome<Selector> {
    if !text.iter().all(u8::is_ascii_digit) {
        check_length("snapshot tag", text)?;
        return Ok(Selector { snap_id: 0, tag: text.to_vec() });
    }
    match std::str::from_utf8(text).ok().and_then(|digits| digits.parse().ok()) {
        Some(0) => Err(Failure::refused("The snapshot id must be larger than zero")),
        Some(snap_id) => Ok(Selector { snap_id, tag: Vec::new() }),
        None => Err(Failure::refused(format!("The snapshot id {} is too large", shown(text)))),
    }
}

/// Finds a VDI and reads its inode's header.
pub fn open(sheep: &mut Sheep, name: &[u8], selector: &Selector) -> Outcome<(Vid, InodeHeader)> {
    let vid = sheep.lookup(name, selector).map_err(|error| open_failure(name, selector, error))?;
    let header = sheep.inode_header(vid).map_err(|error| open_failure(name, selector, error))?;
    Ok((vid, header))
}

/// The literal message: Cinder and others match its end.
pub fn open_failure(name: &[u8], selector: &Selector, error: CallError) -> Failure {
    error.or_refused(|reason| {
        format!(
            "Failed to open VDI {} (snapshot id: {} snapshot tag: {}): {reason}",
            shown(name),
            selector.snap_id,
            shown(&selector.tag)
        )
    })
}

/// Why a VDI of this name was not made. Cinder matches the end of the literal message, where there is such a VDI.
pub fn create_failure(sheep: &mut Sheep, name: &[u8], error: CallError) -> Failure {
    let code = match error.code() {
        Ok(code) => code,
        Err(failure) => return failure,
    };
    // The code says that something of the name exists, not what.
    let hidden = (code == ResultCode::VDI_EXIST).then(|| sheep.vdis().ok()).flatten();
    let why = hidden.and_then(|infos| snapshot_named(&infos, name));
    Failure::refused(format!("Failed to create VDI {}: {}", shown(name), why.unwrap_or(code.to_string())))
}

/// The snapshot that a VDI of this name would hide, if that is what is wrong with it.
fn snapshot_named(infos: &[VdiInfo], name: &[u8]) -> Option<String> {
    if infos.iter().any(|info| info.name == name && info.snap_ctime == 0) {
        return None;
    }
    let meanings = export::snapshots(name);
    let (of, which) = meanings.iter().find(|(of, _)| infos.iter().any(|info| info.name == *of))?;
    let snapshot = match which {
        Meaning::Tag(tag) => shown(tag),
        Meaning::SnapId(id) => id.to_string(),
        Meaning::Working | Meaning::TagOrSnapId(..) => return None,
    };
    Some(format!(
        "for NBD that is the name of the snapshot {snapshot} of VDI {}, there or to come, which a VDI of this name would hide; choose \
         another name",
        shown(of)
    ))
}

/// The text itself, for JSON and for programs. For people: [`shown`].
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the first column of lists says of a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Snapshot,
    /// A working VDI with a parent that has had no snapshot of its own yet.
    Clone,
    Working,
}

impl Standing {
    pub fn of(info: &VdiInfo) -> Standing {
        match info {
            _ if info.snap_ctime != 0 => Standing::Snapshot,
            _ if info.snap_id == 1 && info.parent != Vid(0) => Standing::Clone,
            _ => Standing::Working,
        }
    }

    /// `working` is a space for people and `=` for programs.
    pub fn letter(self, working: char) -> char {
        match self {
            Standing::Snapshot => 's',
            Standing::Clone => 'c',
            Standing::Working => working,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Standing::Snapshot => "snapshot",
            Standing::Clone => "clone",
            Standing::Working => "working",
        }
    }
}

/// The id that users see: a working VDI shows 0.
pub fn shown_snap_id(info: &VdiInfo) -> u32 {
    if info.snap_ctime == 0 { 0 } else { info.snap_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(text: &str) -> Outcome<Selector> {
        selector(&Parsed { options: vec![("snapshot", text.into())], ..Parsed::default() })
    }

    #[test]
    fn digits_are_an_id_and_anything_else_a_tag() {
        assert_eq!(select("12").unwrap(), Selector { snap_id: 12, tag: vec![] });
        assert_eq!(select("1abc").unwrap(), Selector { snap_id: 0, tag: b"1abc".to_vec() });
        assert_eq!(select("").unwrap(), Selector::default());
        let zero = select("0").unwrap_err();
        assert_eq!((zero.code, zero.message.as_str()), (1, "The snapshot id must be larger than zero"));
        assert_eq!(select("99999999999").unwrap_err().code, 1);
    }

    #[test]
    fn names_are_never_cut_and_must_not_be_empty() {
        let parsed = |name: Vec<u8>| Parsed { positionals: vec![name], ..Parsed::default() };
        assert_eq!(name_at(&parsed(vec![b'x'; 255]), 0).unwrap().len(), 255);
        assert_eq!(name_at(&parsed(vec![b'x'; 256]), 0).unwrap_err().code, 64);
        assert_eq!(select(&"t".repeat(256)).unwrap_err().code, 64);
        assert_eq!(name_at(&parsed(vec![]), 0).unwrap_err().code, 64);
    }
}

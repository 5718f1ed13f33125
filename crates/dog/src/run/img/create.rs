//! `qemu-img create` of a volume, and the options (`-o`) of a new one.

use proto::CopyPolicy;

use super::{flag, parse, parse_size, refuse_snapshot, value, volume};
use crate::failure::{Failure, Outcome};
use crate::getopt::Opt;
use crate::redundancy;
use crate::run::deed::{Act, Deed};
use crate::run::name::{self, Name, is_name};
use crate::run::options::Options;

const CREATE: &[Opt] = &[
    value(Some('f'), "format"),
    value(Some('F'), "backing-format"),
    value(Some('b'), "backing"),
    value(Some('o'), "options"),
    flag(Some('u'), "unsafe"),
    flag(Some('q'), "quiet"),
    value(None, "object"),
];

pub fn plan(args: &[Vec<u8>]) -> Outcome<Option<Deed>> {
    let Some(parsed) = parse(CREATE, args)? else { return Ok(None) };
    let is_ours = parsed.positionals.first().is_some_and(|word| is_name(super::as_text(word)));
    if !is_ours {
        return Ok(None);
    }
    let Some(found) = volume(&parsed, 0)? else { return Ok(None) };
    refuse_snapshot(&found.0)?;
    let mut new = NewVolume::default();
    for (option, text) in &parsed.options {
        match *option {
            "options" => new.read(&String::from_utf8_lossy(text))?,
            "backing" => new.backing = Some(String::from_utf8_lossy(text).into_owned()),
            _ => {}
        }
    }
    if let Some(size) = parsed.positionals.get(1) {
        new.size = Some(parse_size(size)?);
    }
    Ok(Some(super::deed(found, &parsed, new.act()?)))
}

/// What is said of a volume that is to be made.
#[derive(Debug, Default)]
pub struct NewVolume {
    pub size: Option<u64>,
    backing: Option<String>,
    policy: Option<CopyPolicy>,
    shift: Option<u8>,
    prealloc: bool,
}

impl NewVolume {
    /// `-o`, as QEMU's old driver took it.
    pub fn read(&mut self, text: &str) -> Outcome {
        for (key, value) in Options::parse(text).0 {
            let value = value.unwrap_or_default();
            match key.as_str() {
                "size" => self.size = Some(parse_size(value.as_bytes())?),
                "backing_file" => self.backing = Some(value),
                "backing_fmt" if super::is_raw(&value) => {}
                "preallocation" => self.prealloc = is_preallocated(&value)?,
                "redundancy" => self.policy = Some(redundancy::parse_replicated(value.as_bytes())?),
                "object_size" => self.shift = Some(shift_of(parse_size(value.as_bytes())?)?),
                _ => {
                    return Err(Failure::refused(format!(
                        "A volume has no option '{key}={value}': there are size, backing_file, preallocation, \
                         redundancy and object_size"
                    )));
                }
            }
        }
        Ok(())
    }

    pub fn act(self) -> Outcome<Act> {
        let NewVolume { size, backing, policy, shift, prealloc } = self;
        let Some(backing) = backing else {
            let size = size.ok_or_else(|| Failure::refused("A new volume needs a size, such as 10G"))?;
            return Ok(Act::Create { size, policy, shift, prealloc });
        };
        if policy.is_some() || shift.is_some() || prealloc {
            return Err(Failure::refused(
                "A clone has the copies and the object size of its snapshot and takes space when it is written to: leave -o out",
            ));
        }
        Ok(Act::Clone { base: base_of(&backing)?, size })
    }
}

fn base_of(backing: &str) -> Outcome<Name> {
    let base = if is_name(backing) { Some(name::parse(backing)?) } else { None };
    base.filter(Name::is_snapshot).ok_or_else(|| {
        Failure::refused(format!(
            "Only snapshots of volumes can be backing files, not '{backing}': take one with \
             qemu-img snapshot -c TAG, and name it sheepdog:NAME:TAG"
        ))
    })
}

fn is_preallocated(mode: &str) -> Outcome<bool> {
    match mode {
        "off" => Ok(false),
        "full" => Ok(true),
        other => Err(Failure::refused(format!("preallocation is off or full, not '{other}'"))),
    }
}

fn shift_of(object_size: u64) -> Outcome<u8> {
    let shift = object_size.trailing_zeros() as u8;
    if !object_size.is_power_of_two() || !(20..=31).contains(&shift) {
        return Err(Failure::refused(format!(
            "object_size is a power of two from 1M to 2G, not {object_size} bytes"
        )));
    }
    Ok(shift)
}

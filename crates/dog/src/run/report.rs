//! What `qemu-img info` and `qemu-img snapshot -l` print of a volume.

use proto::client::VdiInfo;
use serde_json::{Value, json};

use super::name::Name;
use crate::clock::{LocalTime, seconds_of};
use crate::failure::Outcome;
use crate::sheep::Sheep;
use crate::vdi::list::{bytes, padded};
use crate::vdi::names::{lossy, open, visible};

/// Snapshots of this name, the oldest first.
pub fn snapshots_of(infos: &[VdiInfo], name: &[u8]) -> Vec<VdiInfo> {
    let mut found: Vec<VdiInfo> =
        infos.iter().filter(|info| info.name == name && info.snap_ctime != 0).cloned().collect();
    found.sort_by_key(|info| info.snap_id);
    found
}

/// Nothing at all if there is none, as qemu-img does.
pub fn snapshot_list(snapshots: &[VdiInfo]) -> Vec<u8> {
    if snapshots.is_empty() {
        return Vec::new();
    }
    let mut out =
        b"Snapshot list:\nID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n"
            .to_vec();
    for info in snapshots {
        out.extend(format!("{:<9} ", info.snap_id).bytes());
        out.extend(padded(&visible(&info.tag), 16));
        out.extend(
            format!(
                " {:>8}{:>20}{:>13}{:>11}\n",
                rounded(info.vm_state_size),
                LocalTime::from_seconds(seconds_of(info.snap_ctime)).seconds(),
                clock(info.vm_clock_nsec),
                0
            )
            .bytes(),
        );
    }
    out
}

/// `01:02:03.004`
fn clock(nsec: u64) -> String {
    let seconds = nsec / 1_000_000_000;
    let millis = nsec / 1_000_000 % 1000;
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// As qemu-img rounds: three significant digits, and the largest unit of which there are less than a thousand.
fn rounded(size: u64) -> String {
    let mut value = size as f64;
    let mut units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().peekable();
    let mut unit = units.next().expect("there are seven");
    while value >= 1000.0 && units.peek().is_some() {
        value /= 1024.0;
        unit = units.next().expect("looked at");
    }
    let decimals = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}B")
}

pub fn info(sheep: &mut Sheep, name: &Name, typed: &str, as_json: bool) -> Outcome<Vec<u8>> {
    let (vid, header) = open(sheep, name.vdi.as_bytes(), &name.selector()?)?;
    let infos = sheep.vdis()?;
    let (own, _) = sheep.usage(vid)?;
    let disk_size = infos.iter().find(|info| info.vid == vid).map_or(0, |info| bytes(own, info));
    let snapshots = if name.is_snapshot() { vec![] } else { snapshots_of(&infos, name.vdi.as_bytes()) };
    let volume = Volume { typed, size: header.vdi_size, disk_size, snapshots };
    Ok(if as_json { volume.json().into_bytes() } else { volume.text() })
}

struct Volume<'a> {
    typed: &'a str,
    size: u64,
    /// What its own objects take, one copy each.
    disk_size: u64,
    snapshots: Vec<VdiInfo>,
}

impl Volume<'_> {
    fn text(&self) -> Vec<u8> {
        let head = format!(
            "image: {}\nfile format: raw\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
            self.typed,
            rounded(self.size),
            self.size,
            rounded(self.disk_size)
        );
        [head.into_bytes(), snapshot_list(&self.snapshots)].concat()
    }

    fn json(&self) -> String {
        let mut document = json!({
            "virtual-size": self.size,
            "filename": self.typed,
            "format": "raw",
            "actual-size": self.disk_size,
            "dirty-flag": false,
        });
        if !self.snapshots.is_empty() {
            document["snapshots"] = self.snapshots.iter().map(snapshot_json).collect();
        }
        format!("{document:#}\n")
    }
}

fn snapshot_json(info: &VdiInfo) -> Value {
    json!({
        "id": info.snap_id.to_string(),
        "name": lossy(&info.tag),
        "vm-state-size": info.vm_state_size,
        "date-sec": seconds_of(info.snap_ctime),
        "date-nsec": info.snap_ctime & 0xffff_ffff,
        "vm-clock-sec": info.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": info.vm_clock_nsec % 1_000_000_000,
        "icount": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{CopyPolicy, Vid};

    fn snapshot(snap_id: u32, tag: &str) -> VdiInfo {
        VdiInfo {
            vid: Vid(snap_id),
            name: b"Alice".to_vec(),
            tag: tag.into(),
            size: 1 << 30,
            policy: CopyPolicy::Replicated { copies: 3 },
            block_size_shift: 22,
            snap_id,
            create_time: 0,
            snap_ctime: 1_795_618_007 << 32 | 7,
            vm_state_size: 0,
            vm_clock_nsec: 3_723_004_000_000,
            parent: Vid(0),
            owner: None,
            locked_by: vec![],
        }
    }

    /// What qemu-img 7.2 prints.
    #[test]
    fn sizes_are_rounded_as_qemu_img_does() {
        for (size, expect) in [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.98 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1_500_160, "1.43 MiB"),
            (256 << 30, "256 GiB"),
            (1_610_612_736, "1.5 GiB"),
            (1_000_000_000_000, "931 GiB"),
            (217_088, "212 KiB"),
            (10_732_176_179, "10 GiB"),
        ] {
            assert_eq!(rounded(size), expect, "{size}");
        }
    }

    #[test]
    fn snapshots_are_listed_as_qemu_img_does() {
        let time = LocalTime::from_seconds(1_795_618_007).seconds();
        let list = snapshot_list(&[snapshot(1, "snap1"), snapshot(2, "a-very-long-tag-that-is-long")]);
        let expect = format!(
            "Snapshot list:\nID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n\
             1         snap1                 0 B {time} 01:02:03.004          0\n\
             2         a-very-long-tag-that-is-long      0 B {time} 01:02:03.004          0\n"
        );
        assert_eq!(lossy(&list), expect);
        assert!(snapshot_list(&[]).is_empty());
    }

    #[test]
    fn a_volume_is_described_as_qemu_img_does() {
        let volume =
            Volume { typed: "sheepdog:Alice", size: 256 << 30, disk_size: 8 << 20, snapshots: vec![] };
        let expect = "image: sheepdog:Alice\nfile format: raw\nvirtual size: 256 GiB (274877906944 bytes)\n\
                      disk size: 8 MiB\n";
        assert_eq!(lossy(&volume.text()), expect);
        let volume = Volume { snapshots: vec![snapshot(1, "t")], ..volume };
        let parsed: Value = serde_json::from_str(&volume.json()).unwrap();
        assert_eq!(parsed["virtual-size"], 256u64 << 30);
        assert_eq!(parsed["snapshots"][0]["name"], "t");
        assert_eq!(parsed["snapshots"][0]["date-nsec"], 7);
    }
}

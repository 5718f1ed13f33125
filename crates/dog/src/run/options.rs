//! Option strings of QEMU: `key=value,key=value`, with a comma in a value written twice, and keys nested by dots.

use super::find::{Finder, Place, RECONNECT};
use super::json;
use super::name::{self, Fields};
use crate::failure::{Failure, Outcome};

/// Words in their order; one without `=` has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options(pub Vec<(String, Option<String>)>);

impl Options {
    pub fn parse(text: &str) -> Options {
        let mut words = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                ',' if rest.next_if_eq(&',').is_some() => words.last_mut().expect("never empty").push(','),
                ',' => words.push(String::new()),
                c => words.last_mut().expect("never empty").push(c),
            }
        }
        let pair = |word: String| match word.split_once('=') {
            Some((key, value)) => (key.to_string(), Some(value.to_string())),
            None => (word, None),
        };
        Options(words.into_iter().map(pair).collect())
    }

    pub fn render(&self) -> String {
        let word = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("{key}={}", value.replace(',', ",,")),
            None => key.replace(',', ",,"),
        };
        self.0.iter().map(word).collect::<Vec<_>>().join(",")
    }

    /// The last value counts, as in QEMU.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(found, _)| found == key).and_then(|(_, value)| value.as_deref())
    }

    pub fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key), Some("on" | "true" | "yes"))
    }

    pub fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.to_string(), Some(value.to_string())));
    }

    /// Takes the first word without a key for the value of this one, as QEMU does where it allows that.
    pub fn imply(&mut self, key: &str) {
        if let Some((word, value @ None)) = self.0.first_mut() {
            *value = Some(std::mem::replace(word, key.to_string()));
        }
    }

    /// Points whatever names a volume of ours to NBD.
    pub fn rewrite(&mut self, finder: &mut dyn Finder) -> Outcome<Rewritten> {
        let mut rewritten = Rewritten::default();
        while let Some(at) = self.0.iter().position(|(key, value)| volume_at(key, value.as_deref()).is_some())
        {
            let (key, value) = self.0[at].clone();
            let value = value.expect("it has been looked at");
            let prefix = match key.strip_suffix("filename").or(key.strip_suffix("driver")) {
                Some(prefix) => prefix.to_string(),
                None => format!("{key}."),
            };
            let filename = format!("{prefix}filename");
            let place = match volume_at(&key, Some(&value)).expect("it was found") {
                Volume::Name => finder.find(&name::parse(&value)?)?,
                Volume::Driver => match self.get(&filename).map(str::to_string) {
                    Some(text) => finder.find(&name::parse(&text)?)?,
                    None => finder.find(&self.take_fields(&prefix)?)?,
                },
            };
            // Either may say the other as well.
            let twin = if key.ends_with("driver") { filename } else { format!("{prefix}driver") };
            self.0.retain(|(other, _)| *other != twin);
            self.put(&key, &prefix, &place);
            rewritten.has_snapshot |= place.is_snapshot;
            rewritten.is_probed |= prefix == "file.";
        }
        for (key, value) in &mut self.0 {
            match value {
                Some(value) if key == "format" && value == "sheepdog" => *value = "raw".to_string(),
                Some(value) if value.starts_with("json:") => {
                    let (text, has_snapshot) = json::rewrite_filename(value, finder)?;
                    *value = text;
                    rewritten.has_snapshot |= has_snapshot;
                }
                _ => {}
            }
        }
        Ok(rewritten)
    }

    /// Replaces the word of this key.
    fn put(&mut self, key: &str, prefix: &str, place: &Place) {
        let at = self.0.iter().position(|(other, _)| other == key).expect("the key is there");
        let (field, seconds) = RECONNECT;
        let fields = place.fields().into_iter().chain([(field, seconds.to_string())]);
        let words = fields.map(|(field, value)| (format!("{prefix}{field}"), Some(value)));
        self.0.splice(at..=at, words);
    }

    fn take_fields(&mut self, prefix: &str) -> Outcome<name::Name> {
        let mut fields = Fields::default();
        let mut kept = Vec::new();
        for (key, value) in std::mem::take(&mut self.0) {
            match key.strip_prefix(prefix).and_then(|field| fields.slot(field)) {
                Some(slot) => *slot = value,
                None => kept.push((key, value)),
            }
        }
        self.0 = kept;
        fields.into_name()
    }
}

/// What was found in options.
#[derive(Debug, Default)]
pub struct Rewritten {
    pub has_snapshot: bool,
    /// The image's bytes are a volume: unless a format is said, QEMU looks at them to guess it.
    pub is_probed: bool,
}

enum Volume {
    Name,
    Driver,
}

fn volume_at(key: &str, value: Option<&str>) -> Option<Volume> {
    let last = key.rsplit('.').next().unwrap_or(key);
    match (last, value?) {
        ("driver", "sheepdog") => Some(Volume::Driver),
        ("file" | "filename" | "backing", value) if name::is_name(value) => Some(Volume::Name),
        _ => None,
    }
}

/// Of `--image-opts`; `None` if there is nothing of ours in it.
pub fn rewrite_image_opts(text: &str, finder: &mut dyn Finder) -> Outcome<Option<String>> {
    let before = Options::parse(text);
    let mut options = before.clone();
    options.imply("driver");
    let found = options.rewrite(finder)?;
    if found.is_probed && options.get("driver").is_none() {
        options.push("driver", "raw");
    }
    Ok((options != before).then(|| options.render()))
}

/// The volume that image options name directly, or below the format raw.
pub fn name_in_image_opts(text: &str) -> Outcome<Option<name::Name>> {
    let mut options = Options::parse(text);
    options.imply("driver");
    for prefix in ["", "file."] {
        let is_ours = options.get(&format!("{prefix}driver")) == Some("sheepdog");
        match options.get(&format!("{prefix}filename")) {
            Some(filename) if name::is_name(filename) => return name::parse(filename).map(Some),
            _ if is_ours
                && (prefix.is_empty() || options.get("driver").is_none_or(|driver| driver == "raw")) =>
            {
                return options.take_fields(prefix).map(Some);
            }
            _ if is_ours => {
                return Err(Failure::refused(format!(
                    "'{text}': a volume holds a raw image, driver=raw is expected"
                )));
            }
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;

    #[test]
    fn commas_in_values_are_written_twice() {
        let options = Options::parse("file=a,,b,if=virtio,snapshot");
        assert_eq!(options.get("file"), Some("a,b"));
        assert_eq!(options.0[2], ("snapshot".to_string(), None));
        assert_eq!(options.render(), "file=a,,b,if=virtio,snapshot");
    }

    #[test]
    fn volumes_are_found_wherever_they_are_nested() {
        for (before, after) in [
            ("file=a.raw,format=raw", "file=a.raw,format=raw"),
            ("file=sheepdog:Alice,if=virtio", "file.driver=nbd,file.export=Alice,SERVER(file.),if=virtio"),
            ("file.filename=sheepdog:Alice:1", "file.driver=nbd,file.export=Alice:1,SERVER(file.)"),
            ("driver=sheepdog,vdi=Alice,node-name=n", "driver=nbd,export=Alice,SERVER(),node-name=n"),
            (
                "vdi=Alice,driver=sheepdog,server.type=inet,server.host=h,server.port=7001,tag=t",
                "driver=nbd,export=Alice@t,server.type=inet,server.host=h,server.port=10809,reconnect-delay=600",
            ),
            (
                "driver=qcow2,file.driver=sheepdog,file.vdi=Alice",
                "driver=qcow2,file.driver=nbd,file.export=Alice,SERVER(file.)",
            ),
            (
                "driver=qcow2,file=f,backing.driver=raw,backing.file.driver=sheepdog,backing.file.vdi=Alice",
                "driver=qcow2,file=f,backing.driver=raw,backing.file.driver=nbd,backing.file.export=Alice,\
                 SERVER(backing.file.)",
            ),
            (
                "file.driver=sheepdog,file.filename=sheepdog:Alice",
                "file.driver=nbd,file.export=Alice,SERVER(file.)",
            ),
            ("format=sheepdog,file=x", "format=raw,file=x"),
        ] {
            let mut options = Options::parse(before);
            options.rewrite(&mut Canned::default()).unwrap();
            assert_eq!(Canned::abbreviated(&options.render()), after, "{before}");
        }
    }

    #[test]
    fn image_options_name_a_volume_directly_or_below_raw() {
        let name = |text| name_in_image_opts(text);
        assert_eq!(name("driver=sheepdog,vdi=a").unwrap().unwrap().vdi, "a");
        assert_eq!(name("sheepdog,vdi=a").unwrap().unwrap().vdi, "a");
        assert_eq!(name("file.driver=sheepdog,file.vdi=a,driver=raw").unwrap().unwrap().vdi, "a");
        assert_eq!(name("file.filename=sheepdog:a").unwrap().unwrap().vdi, "a");
        assert_eq!(name("driver=raw,file.filename=a").unwrap(), None);
        assert!(name("driver=qcow2,file.driver=sheepdog,file.vdi=a").is_err());
    }
}

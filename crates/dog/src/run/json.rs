//! The JSON forms of `-blockdev` and of file names (`json:{...}`).

use serde_json::{Map, Value, json};

use super::find::{Finder, Place, RECONNECT};
use super::name::{self, Fields};
use crate::failure::{Failure, Outcome};

/// A file name that begins with `json:`; true if a snapshot is in it.
pub fn rewrite_filename(text: &str, finder: &mut dyn Finder) -> Outcome<(String, bool)> {
    let Some(document) = text.strip_prefix("json:").filter(|document| document.contains("sheepdog")) else {
        return Ok((text.to_string(), false));
    };
    let (mut value, has_snapshot) = rewrite(document, finder)?;
    if value["file"]["driver"] == "nbd" && value["driver"].is_null() {
        // QEMU would guess it.
        value["driver"] = "raw".into();
    }
    Ok((format!("json:{value}"), has_snapshot))
}

/// The same of an argument.
pub fn rewrite_filename_bytes(arg: &[u8], finder: &mut dyn Finder) -> Outcome<(Vec<u8>, bool)> {
    match std::str::from_utf8(arg) {
        Ok(text) => {
            rewrite_filename(text, finder).map(|(text, has_snapshot)| (text.into_bytes(), has_snapshot))
        }
        Err(_) => Ok((arg.to_vec(), false)),
    }
}

/// A document; true if a snapshot is in it.
pub fn rewrite(document: &str, finder: &mut dyn Finder) -> Outcome<(Value, bool)> {
    let mut value: Value = serde_json::from_str(document)
        .map_err(|error| Failure::refused(format!("'{document}' is no JSON: {error}")))?;
    let mut has_snapshot = false;
    walk(&mut value, finder, &mut has_snapshot)?;
    Ok((value, has_snapshot))
}

/// The volume as a file name, in JSON, where no character of a name means anything else. It says that the image is raw.
pub fn filename(place: &Place) -> String {
    format!("json:{}", json!({ "driver": "raw", "file": nbd(place) }))
}

fn nbd(place: &Place) -> Value {
    let mut node = Map::new();
    put_nbd(&mut node, place);
    Value::Object(node)
}

fn put_nbd(node: &mut Map<String, Value>, place: &Place) {
    let mut server = Map::new();
    for (field, value) in place.fields() {
        match field.strip_prefix("server.") {
            Some(field) => drop(server.insert(field.to_string(), value.into())),
            None => drop(node.insert(field.to_string(), value.into())),
        }
    }
    node.insert("server".to_string(), Value::Object(server));
    let (field, seconds) = RECONNECT;
    node.insert(field.to_string(), seconds.into());
}

fn walk(value: &mut Value, finder: &mut dyn Finder, has_snapshot: &mut bool) -> Outcome {
    match value {
        Value::Object(node) => {
            if let Some(name) = take_name(node)? {
                let place = finder.find(&name)?;
                *has_snapshot |= place.is_snapshot;
                put_nbd(node, &place);
            }
            for (key, child) in node.iter_mut() {
                match (key.as_str(), &*child) {
                    ("file" | "backing", Value::String(text)) if name::is_name(text) => {
                        let place = finder.find(&name::parse(text)?)?;
                        *has_snapshot |= place.is_snapshot;
                        *child = nbd(&place);
                    }
                    _ => walk(child, finder, has_snapshot)?,
                }
            }
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(|value| walk(value, finder, has_snapshot)),
        _ => Ok(()),
    }
}

/// The volume that a node itself is.
fn take_name(node: &mut Map<String, Value>) -> Outcome<Option<name::Name>> {
    let is_dotted = |(key, value): (&String, &Value)| {
        let text = value.as_str().unwrap_or_default();
        key.ends_with(".driver") && text == "sheepdog" || key.contains('.') && name::is_name(text)
    };
    if let Some((key, _)) = node.iter().find(|pair| is_dotted(*pair)) {
        return Err(Failure::refused(format!("Write '{key}' in nested objects instead of with dots")));
    }
    if let Some(text) = node.get("filename").and_then(Value::as_str).filter(|text| name::is_name(text)) {
        let name = name::parse(text)?;
        node.remove("filename");
        return Ok(Some(name));
    }
    if node.get("driver").and_then(Value::as_str) != Some("sheepdog") {
        return Ok(None);
    }
    let mut fields = Fields::default();
    for key in ["vdi", "snap-id", "tag"] {
        *fields.slot(key).expect("a field") = node.remove(key).map(text_of);
    }
    if let Some(Value::Object(server)) = node.remove("server") {
        for (key, value) in server {
            if let Some(slot) = fields.slot(&format!("server.{key}")) {
                *slot = Some(text_of(value));
            }
        }
    }
    fields.into_name().map(Some)
}

fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::find::testing::Canned;

    fn check(before: Value, after: Value) {
        let (found, _) = rewrite(&before.to_string(), &mut Canned::default()).unwrap();
        assert_eq!(found, after, "{before}");
    }

    fn local(export: &str) -> Value {
        let server = json!({ "type": "unix", "path": "/store/nbd.sock" });
        json!({ "driver": "nbd", "export": export, "server": server, "reconnect-delay": 600 })
    }

    #[test]
    fn nodes_of_ours_become_nbd_at_any_depth() {
        check(json!({ "driver": "sheepdog", "vdi": "Alice" }), local("Alice"));
        check(json!({ "driver": "sheepdog", "vdi": "Alice", "snap-id": 1 }), local("Alice:1"));
        check(
            json!({ "driver": "raw", "file": "sheepdog:Alice" }),
            json!({ "driver": "raw", "file": local("Alice") }),
        );
        check(json!({ "file": { "filename": "sheepdog:Alice:t" } }), json!({ "file": local("Alice@t") }));
        check(
            json!({ "driver": "quorum", "children": [{ "driver": "sheepdog", "vdi": "Alice" }] }),
            json!({ "driver": "quorum", "children": [local("Alice")] }),
        );
        let server = json!({ "type": "inet", "host": "h", "port": "7001" });
        check(
            json!({ "driver": "sheepdog", "vdi": "Alice", "node-name": "n", "server": server }),
            json!({ "driver": "nbd", "export": "Alice", "node-name": "n",
                    "server": { "type": "inet", "host": "h", "port": "10809" }, "reconnect-delay": 600 }),
        );
        check(json!({ "driver": "file", "filename": "a" }), json!({ "driver": "file", "filename": "a" }));
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        let refusal = |text: &str| rewrite(text, &mut Canned::default()).unwrap_err().message;
        assert!(refusal("{").contains("is no JSON"));
        assert!(refusal(r#"{"file.driver": "sheepdog", "file.vdi": "a"}"#).contains("nested objects"));
        assert!(refusal(r#"{"driver": "sheepdog"}"#).contains("vdi is missing"));
    }

    #[test]
    fn names_cannot_break_out_of_their_place() {
        let mut canned = Canned::default();
        let place = canned.place(&name::parse("sheepdog:a\",\"x\",,b").unwrap()).unwrap();
        let parsed: Value = serde_json::from_str(filename(&place).strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(parsed["file"]["export"], "a\",\"x\",,b");
    }
}

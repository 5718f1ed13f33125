//! `dog vdi setattr [-x] [-d] NAME KEY [VALUE]` and `dog vdi getattr NAME KEY`: small values that hang on a VDI's name.
//!
//! They are kept over snapshots and rollback, and go with the last VDI of the name. The value comes from stdin where none is
//! given; `getattr` writes it without a newline. Scripts test the exit codes: 3 for one that exists, 5 for what is missing.

use std::io::Read;

use proto::client::{ATTRIBUTE_KEY_MAX, ATTRIBUTE_VALUE_MAX, AttributeOp, ClientError};

use super::names::{name_at, shown};
use crate::command::{Action, Command, no_values, option};
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit, reason};
use crate::getopt::Parsed;
use crate::sheep::CallError;
use crate::visible::visible_lines;

pub const SET: Command = Command {
    group: "vdi",
    name: "setattr",
    summary: "set an attribute of an image",
    args: "<vdiname> <key> [value]",
    args_min: 2,
    args_max: 3,
    options: &[option::DELETE, option::EXCLUSIVE, option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run_set),
    notes: "Without a value, stdin is the value.",
};

pub const GET: Command = Command {
    group: "vdi",
    name: "getattr",
    summary: "get an attribute of an image",
    args: "<vdiname> <key>",
    args_min: 2,
    args_max: 2,
    options: &[option::ADDRESS, option::PORT, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run_get),
    notes: "",
};

fn run_set(context: &mut Context, parsed: &Parsed) -> Outcome {
    let (name, key) = (name_at(parsed, 0)?, key_of(parsed)?);
    let op = if parsed.has("delete") {
        AttributeOp::Delete
    } else {
        let value = match parsed.positionals.get(2) {
            Some(value) => value.clone(),
            None => read_value(&mut context.input)?,
        };
        check_value(&value)?;
        AttributeOp::Set { value, exclusive: parsed.has("exclusive") }
    };
    context.connect()?.change_attribute(&name, &key, op).map_err(|error| failure_of(&key, error))
}

fn run_get(context: &mut Context, parsed: &Parsed) -> Outcome {
    let (name, key) = (name_at(parsed, 0)?, key_of(parsed)?);
    let value = context.connect()?.attribute(&name, &key).map_err(|error| failure_of(&key, error))?;
    // A person at a terminal sees what it is; everybody else gets its bytes.
    let value = if context.is_terminal { visible_lines(&value) } else { value };
    Ok(context.out.write_all(&value)?)
}

fn key_of(parsed: &Parsed) -> Outcome<Vec<u8>> {
    let key = &parsed.positionals[1];
    if key.is_empty() {
        return Err(Failure::bad_value("The key of the attribute must not be empty"));
    }
    if key.len() > ATTRIBUTE_KEY_MAX {
        return Err(Failure::refused(format!(
            "The key has {} bytes, at most {ATTRIBUTE_KEY_MAX} are possible",
            key.len()
        )));
    }
    Ok(key.clone())
}

/// At most one byte more than there may be, so that too much is noticed and not stored in part.
fn read_value(input: &mut dyn Read) -> Outcome<Vec<u8>> {
    let mut value = Vec::new();
    input
        .take(ATTRIBUTE_VALUE_MAX as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::system(format!("Failed to read the input: {}", reason(&error))))?;
    Ok(value)
}

fn check_value(value: &[u8]) -> Outcome {
    if value.len() > ATTRIBUTE_VALUE_MAX {
        return Err(Failure::refused(format!("The value is too long: at most {ATTRIBUTE_VALUE_MAX} bytes")));
    }
    Ok(())
}

fn failure_of(key: &[u8], error: CallError) -> Failure {
    let failure = |code, message: String| Failure { code, message, with_usage: false };
    match error {
        CallError::Declined(ClientError::NoVdi) => failure(exit::MISSING, "VDI not found".to_string()),
        CallError::Declined(ClientError::NoAttribute) => {
            failure(exit::MISSING, format!("Attribute '{}' not found", shown(key)))
        }
        CallError::Declined(ClientError::AttributeExists) => {
            failure(exit::EXISTS, format!("The attribute '{}' already exists", shown(key)))
        }
        error => error.or_refused(|reason| format!("Failed to access attribute '{}': {reason}", shown(key))),
    }
}

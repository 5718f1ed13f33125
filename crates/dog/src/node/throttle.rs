//! `dog node recovery set-throttle MAX INTERVAL` and `get-throttle`: how much the sheep that is talked to repairs at once.
//!
//! ```text
//! max (10), interval (1000)
//! ```
//!
//! On stderr, as ever. Zeros: no bound.

use proto::sd::structs::RecoveryThrottling;

use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::sheep::CallError;

pub fn set(context: &mut Context, words: &[Vec<u8>]) -> Outcome {
    let [max, interval] = words else {
        return Err(Failure::usage(
            "Give the number of objects and an interval in milliseconds, or 0 0 for no bound",
        ));
    };
    let wanted = parse(max, interval)?;
    context.connect()?.set_recovery_throttle(wanted).map_err(failed)
}

pub fn get(context: &mut Context) -> Outcome {
    let throttling = context.connect()?.recovery_throttle().map_err(failed)?;
    notice(&format!("max ({}), interval ({})", throttling.max_exec_count, throttling.queue_work_interval));
    Ok(())
}

/// Scripts know this exit code.
fn failed(error: CallError) -> Failure {
    Failure { code: exit::THROTTLE, ..Failure::from(error) }
}

fn parse(max: &[u8], interval: &[u8]) -> Outcome<RecoveryThrottling> {
    let number = |text: &[u8], most: u64, what: &str| {
        let shown = String::from_utf8_lossy(text).into_owned();
        let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        let number = shown.parse().ok().filter(|number: &u64| is_number && *number <= most);
        number.ok_or_else(|| Failure::bad_value(format!("Invalid {what} ({shown})")))
    };
    let max_exec_count = number(max, u32::MAX.into(), "max")? as u32;
    let queue_work_interval = number(interval, i64::MAX as u64, "interval")?;
    let throttling = max_exec_count > 0 && queue_work_interval > 0;
    if !throttling && (max_exec_count > 0 || queue_work_interval > 0) {
        return Err(Failure::bad_value(format!(
            "Invalid interval max ({max_exec_count}), interval ({queue_work_interval})"
        )));
    }
    Ok(RecoveryThrottling { max_exec_count, queue_work_interval, throttling })
}

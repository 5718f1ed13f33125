//! What differs when a person is watching: progress bars and questions.

use std::io::{self, BufRead, Write};

use crate::context::notice;
use crate::failure::Outcome;
use crate::size;

/// Columns of the terminal, 80 where it does not say.
fn columns() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}

/// How far a long command has come. Silent unless stdout is a terminal.
pub struct Progress {
    total: u64,
    done: u64,
    unit: Unit,
    shown: Option<String>,
    visible: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Objects,
}

impl Progress {
    pub fn new(total: u64, visible: bool) -> Progress {
        Progress { total, done: 0, unit: Unit::Bytes, shown: None, visible: visible && total > 0 }
    }

    /// Counts objects, of which more may be found on the way.
    pub fn of_objects(visible: bool) -> Progress {
        Progress { total: 0, done: 0, unit: Unit::Objects, shown: None, visible }
    }

    pub fn advance(&mut self, bytes: u64, out: &mut dyn Write) -> Outcome {
        let was_done = self.done == self.total;
        self.done = (self.done + bytes).min(self.total);
        self.show(out)?;
        if self.visible && !was_done && self.done == self.total {
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }

    pub fn set(&mut self, done: u64, total: u64, out: &mut dyn Write) -> Outcome {
        (self.done, self.total) = (done, total);
        self.show(out)
    }

    /// All is done. Shows nothing if there never was anything to do.
    pub fn finish(&mut self, out: &mut dyn Write) -> Outcome {
        if self.shown.is_some() {
            self.done = self.total;
            self.show(out)?;
            writeln!(out)?;
        }
        Ok(())
    }

    fn show(&mut self, out: &mut dyn Write) -> Outcome {
        if !self.visible {
            return Ok(());
        }
        let line = render_bar(self.done, self.total, self.unit, columns());
        if self.shown.as_ref() != Some(&line) {
            write!(out, "\r{line}")?;
            out.flush()?;
            self.shown = Some(line);
        }
        Ok(())
    }

    /// Call before other lines are printed: they start below the bar, not behind it.
    pub fn make_way(&mut self, out: &mut dyn Write) -> Outcome {
        if self.shown.take().is_some() && self.done < self.total {
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// ` 37.5 % [=====>        ] 24 MB / 64 MB`
fn render_bar(done: u64, total: u64, unit: Unit, columns: usize) -> String {
    let width = columns.saturating_sub(30).max(1);
    let filled = (done as u128 * width as u128 / (total as u128).max(1)) as usize;
    let filled = filled.min(width);
    let head = if filled < width { ">" } else { "" };
    let bar = format!("{}{head}", "=".repeat(filled));
    let percent = done as f64 * 100.0 / total.max(1) as f64;
    let show = |count: u64| match unit {
        Unit::Bytes => size::human(count),
        Unit::Objects => count.to_string(),
    };
    format!("{percent:5.1} % [{bar:<width$}] {} / {}", show(done), show(total))
}

/// Asks and reads one line. Anything that does not start with `yes`, and the end of the input, means no.
pub fn confirm(question: &str, out: &mut dyn Write, input: &mut dyn BufRead) -> Outcome<bool> {
    write!(out, "{question} [yes/no]: ")?;
    out.flush()?;
    let answer = read_answer(input)?;
    if answer.is_none() {
        notice("The input is at its end: there is nobody to answer, which means no.");
    }
    Ok(answer.is_some_and(|answer| answer.to_ascii_lowercase().starts_with(b"yes")))
}

/// At most seven characters of a line, as the original reads; never more, whatever is piped in. `None`: there was no line.
fn read_answer(input: &mut dyn BufRead) -> Outcome<Option<Vec<u8>>> {
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < 7 {
        match input.read(&mut byte)? {
            0 if answer.is_empty() => return Ok(None),
            1 if byte[0] != b'\n' => answer.push(byte[0]),
            _ => break,
        }
    }
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_from_empty_to_full() {
        let at = |done| render_bar(done, 64 << 20, Unit::Bytes, 40);
        assert_eq!(at(0), "  0.0 % [>         ] 0.0 MB / 64 MB");
        assert_eq!(at(24 << 20), " 37.5 % [===>      ] 24 MB / 64 MB");
        assert_eq!(at(64 << 20), "100.0 % [==========] 64 MB / 64 MB");
        assert_eq!(render_bar(3, 8, Unit::Objects, 40), " 37.5 % [===>      ] 3 / 8");
    }

    #[test]
    fn a_narrow_terminal_does_no_harm() {
        assert_eq!(render_bar(1, 2, Unit::Bytes, 3), " 50.0 % [>] 0.0 MB / 0.0 MB");
        assert_eq!(render_bar(u64::MAX, u64::MAX, Unit::Bytes, 31), "100.0 % [=] 16 EB / 16 EB");
    }

    #[test]
    fn nothing_is_shown_where_nobody_watches() {
        let mut out = Vec::new();
        Progress::new(10, false).advance(5, &mut out).unwrap();
        assert!(out.is_empty());
        Progress::new(10, true).advance(10, &mut out).unwrap();
        assert!(out.starts_with(b"\r100.0 %") && out.ends_with(b"\n"));
    }

    #[test]
    fn other_lines_start_below_an_unfinished_bar() {
        let mut out = Vec::new();
        let mut progress = Progress::new(10, true);
        progress.make_way(&mut out).unwrap();
        assert!(out.is_empty());
        progress.advance(5, &mut out).unwrap();
        progress.make_way(&mut out).unwrap();
        assert_eq!(out.last(), Some(&b'\n'));
        let len = out.len();
        progress.make_way(&mut out).unwrap();
        assert_eq!(out.len(), len);
    }

    #[test]
    fn an_empty_line_is_an_answer_and_the_end_of_the_input_is_none() {
        let read = |typed: &str| read_answer(&mut typed.as_bytes()).unwrap();
        assert_eq!(read("\nyes\n"), Some(vec![]));
        assert_eq!(read("yes"), Some(b"yes".to_vec()));
        assert_eq!(read("yes, always"), Some(b"yes, al".to_vec()));
        assert_eq!(read(""), None);
    }

    #[test]
    fn only_yes_is_consent() {
        for (typed, expect) in [
            ("yes\n", true),
            ("YES\n", true),
            ("yesterday\n", true),
            ("y\n", false),
            ("no\n", false),
            ("\n", false),
            ("", false),
        ] {
            let mut out = Vec::new();
            assert_eq!(confirm("Sure?", &mut out, &mut typed.as_bytes()).unwrap(), expect, "{typed:?}");
            assert_eq!(out, b"Sure? [yes/no]: ");
        }
    }
}

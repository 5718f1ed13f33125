//! `dog vdi write [-w] NAME [OFFSET [LEN]]`: stdin, to the volume.
//!
//! Ends at LEN, at the end of the volume or of the input, whichever is first. Input that ends within an object
//! is filled up with zeros to the end of that object (or LEN): so it always was, and scripts that write partial
//! images count on not seeing old bytes behind them. Input that does not fit is told of, and is no error: it never was one, and whoever fills a volume from
//! an endless source counts on that.

use std::io::{self, BufRead};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::PIECE_BYTES;
use super::names::{name_at, open};
use super::span::{Asked, Span};
use crate::command::{Action, Command, no_values, option};
use crate::context::{Context, notice};
use crate::failure::{Failure, Outcome, reason};
use crate::getopt::Parsed;
use crate::sheep::Selector;
use crate::terminal::Progress;

pub const COMMAND: Command = Command {
    group: "vdi",
    name: "write",
    summary: "write data from stdin to an image",
    args: "<vdiname> [<offset> [<len>]]",
    args_min: 1,
    args_max: 3,
    options: &[option::ADDRESS, option::PORT, option::WRITEBACK, option::HELP, option::TIME],
    needs_nodes: true,
    check: no_values,
    action: Action::Run(run),
    notes: "",
};

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let name = name_at(parsed, 0)?;
    let asked = Asked::parse(parsed)?;
    let writeback = parsed.has("writeback");
    let mut sheep = context.connect()?;
    let (vid, header) = open(&mut sheep, &name, &Selector::default())?;
    let span = asked.within(header.vdi_size, "Write")?;
    let object_bytes = 1 << u32::from(header.block_size_shift).min(63);
    let is_bounded = parsed.positionals.len() > 2;
    let mut pieces = Pieces { span, at: span.start, object_bytes, ended: false };
    let mut progress = Progress::new(span.end - span.start, context.is_terminal);
    while let Some((at, data)) = pieces.next(&mut context.input)? {
        let len = data.len() as u64;
        sheep.write_volume(vid, at, data, writeback).map_err(|error| {
            error
                .or_refused(|reason| format!("Failed to write at offset {at}: {reason}\nFailed to write VDI"))
        })?;
        progress.advance(len, &mut context.out)?;
    }
    if !is_bounded && !pieces.ended && has_more(&mut context.input) {
        notice("The input is longer than the VDI: what lies beyond its end was not written");
    }
    Ok(())
}

/// Is there more input? Whoever has it may keep it open and send nothing: that is not waited for.
fn has_more(input: &mut dyn BufRead) -> bool {
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    let is_ready = poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
    is_ready && input.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
}

/// Cuts the input into writes.
struct Pieces {
    span: Span,
    at: u64,
    object_bytes: u64,
    ended: bool,
}

impl Pieces {
    /// Where to write next, and what; `None` when all is written.
    fn next(&mut self, input: &mut dyn BufRead) -> Outcome<Option<(u64, Bytes)>> {
        let at = self.at;
        // Behind the end of the input, only the rest of an object begun is written.
        let object_begun = at > self.span.start && !at.is_multiple_of(self.object_bytes);
        if at >= self.span.end || (self.ended && !object_begun) {
            return Ok(None);
        }
        let len = self.span.piece(at, PIECE_BYTES.min(self.object_bytes)) as usize;
        let mut data = vec![0; len];
        let got = if self.ended { 0 } else { fill(input, &mut data)? };
        self.ended |= got < len;
        if got == 0 && !object_begun {
            return Ok(None);
        }
        self.at += len as u64;
        Ok(Some((at, data.into())))
    }
}

/// Reads until `buffer` is full or the input ends; how many bytes came.
fn fill(input: &mut dyn BufRead, buffer: &mut [u8]) -> Outcome<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Failure::system(format!("Failed to read the input: {}", reason(&error))));
            }
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// Each write as (offset, length, bytes that are not zero).
    fn writes(start: u64, end: u64, object_bytes: u64, input_bytes: u64) -> Vec<(u64, u64, u64)> {
        let input = vec![7; input_bytes as usize];
        let mut input = input.as_slice();
        let mut pieces = Pieces { span: Span { start, end }, at: start, object_bytes, ended: false };
        let mut found = Vec::new();
        while let Some((at, data)) = pieces.next(&mut input).unwrap() {
            let set = data.iter().filter(|byte| **byte == 7).count() as u64;
            assert!(data[..set as usize].iter().all(|byte| *byte == 7));
            found.push((at, data.len() as u64, set));
        }
        found
    }

    #[test]
    fn the_last_object_is_filled_up_with_zeros() {
        assert_eq!(writes(0, 64 * MB, 4 * MB, 10), [(0, 4 * MB, 10)]);
        assert_eq!(writes(0, 100, 4 * MB, 10), [(0, 100, 10)]);
        assert_eq!(writes(5, 64 * MB, 4 * MB, 10), [(5, 4 * MB - 5, 10)]);
    }

    #[test]
    fn input_that_ends_at_a_boundary_adds_nothing() {
        assert_eq!(writes(0, 64 * MB, 4 * MB, 4 * MB), [(0, 4 * MB, 4 * MB)]);
        assert_eq!(writes(0, 64 * MB, 4 * MB, 0), []);
        assert_eq!(writes(3, 64 * MB, 4 * MB, 0), []);
    }

    #[test]
    fn input_beyond_the_span_is_left_alone() {
        assert_eq!(writes(4 * MB - 1, 4 * MB + 1, 4 * MB, 10), [(4 * MB - 1, 1, 1), (4 * MB, 1, 1)]);
    }

    #[test]
    fn objects_larger_than_a_piece_are_filled_up_as_well() {
        assert_eq!(
            writes(0, 64 * MB, 16 * MB, 5 * MB),
            [(0, 4 * MB, 4 * MB), (4 * MB, 4 * MB, MB), (8 * MB, 4 * MB, 0), (12 * MB, 4 * MB, 0)]
        );
        assert_eq!(writes(0, 64 * MB, 16 * MB, 16 * MB).len(), 4);
        assert_eq!(writes(0, 64 * MB, MB, MB + 1), [(0, MB, MB), (MB, MB, 1)]);
    }
}

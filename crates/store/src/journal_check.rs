//! Reads back what is in the journal while all that it says is in memory, so that rot there is no start's problem.
//!
//! A start replays the journal from its tail on, and cannot go on behind a damaged record: that would undo what was answered. So it refuses the disk, and
//! until then nobody has read those bytes. Here they are read, record by record as a start would. A record that is damaged is no loss yet: its changes are in the tables,
//! its tags are remembered, and its blocks are kept until they are home ([`crate::written`]). So the cure is to bring home all up to that record as ever
//! (`write_back`, with the record as its *goal*) until the superblock durably says that the journal begins behind it. Nothing of the damaged bytes is used
//! for that, and no start looks at them any more. If the process ends before, the disk is refused as it would have been.
//!
//! Writes go on meanwhile. A record is judged only while the journal begins at it or before: then its room has not been written to since, as room is given
//! again only when the tail has passed it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proto::object::{JournalVerified, ObjectReply};

use crate::io::{IoOp, IoResult};
use crate::layout::BLOCK;
use crate::record::{RecordHead, decode_entries, record_body};
use crate::store::{IoOwner, Store};

/// 1 MiB at once, or one record if that is longer.
const PIECE_BLOCKS_MAX: u64 = 256;

#[derive(Default)]
pub struct JournalChecks {
    by_id: BTreeMap<u64, Check>,
    next: u64,
    /// Damaged records that a start would need.
    damaged: BTreeSet<u64>,
    /// Answers that wait until no start needs records up to this one.
    answers: Vec<(u64, u64, JournalVerified)>,
}

struct Check {
    ticket: u64,
    verified: JournalVerified,
    /// What is read now, and after that: one read at a time.
    reading: Piece,
    left: VecDeque<Piece>,
    /// The last record that is damaged.
    worst: Option<u64>,
}

/// Records `first ..= last`, which lie one after the other.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    last: u64,
    /// Position of the first.
    begin: u64,
    blocks: u64,
}

impl JournalChecks {
    /// Everything up to this record is to go home.
    pub fn goal(&self) -> Option<u64> {
        self.damaged.last().copied()
    }

    pub fn is_active(&self) -> bool {
        !self.by_id.is_empty() || !self.damaged.is_empty()
    }

    pub fn take_tickets(&mut self) -> Vec<u64> {
        let reading = std::mem::take(&mut self.by_id).into_values().map(|check| check.ticket);
        let waiting = std::mem::take(&mut self.answers).into_iter().map(|(_, ticket, _)| ticket);
        reading.chain(waiting).collect()
    }
}

impl Store {
    pub(crate) fn start_journal_check(&mut self, ticket: u64, first: u64, last: u64) {
        let (first, last) = (first.max(self.journal.tail_seq()), last.min(self.journal.durable()));
        if first > last {
            let verified = JournalVerified { next: first, last, ..JournalVerified::default() };
            return self.replies.push_back((ticket, ObjectReply::JournalVerified(verified)));
        }
        let reading = self.piece_of_journal(first, last);
        let verified = JournalVerified { next: reading.last + 1, last, ..JournalVerified::default() };
        let check = Check { ticket, verified, reading, left: VecDeque::new(), worst: None };
        let id = self.journal_checks.next;
        self.journal_checks.next += 1;
        self.journal_checks.by_id.insert(id, check);
        self.read_journal(id, reading);
    }

    fn piece_of_journal(&self, first: u64, last: u64) -> Piece {
        let (ring, info) = (self.superblock.geometry.journal_blocks, self.journal.info(first));
        let mut piece = Piece { first, last: first, begin: info.begin, blocks: info.end - info.begin };
        for seq in first + 1..=last {
            let info = self.journal.info(seq);
            let blocks = info.end - piece.begin;
            // Positions go on behind the ring's end, where another record begins at its start.
            let is_next = info.begin == piece.begin + piece.blocks && !info.begin.is_multiple_of(ring);
            if !is_next || blocks > PIECE_BLOCKS_MAX {
                break;
            }
            (piece.last, piece.blocks) = (seq, blocks);
        }
        piece
    }

    fn read_journal(&mut self, check: u64, piece: Piece) {
        let offset = self.superblock.geometry.journal_offset(piece.begin);
        let len = (piece.blocks * BLOCK) as usize;
        self.request_io(IoOp::Read { offset, len }, IoOwner::JournalCheck { check });
    }

    pub(crate) fn handle_journal_read(&mut self, id: u64, result: IoResult) {
        let Some(mut check) = self.journal_checks.by_id.remove(&id) else { return };
        let piece = check.reading;
        check.verified.read_bytes += piece.blocks * BLOCK;
        let bytes = result.ok().filter(|bytes| bytes.len() as u64 == piece.blocks * BLOCK);
        // What the tail has passed is nobody's, and something else may lie there.
        let needed = piece.first.max(self.journal.tail_seq())..=piece.last;
        match bytes {
            Some(bytes) => {
                for seq in needed {
                    if !self.is_record_whole(seq, piece, &bytes) {
                        self.note_damaged_record(&mut check, seq);
                    }
                }
            }
            // Which of them it is that cannot be read is to be told, so each is read by itself.
            None if piece.last > piece.first => {
                check.left.extend(needed.map(|seq| self.piece_of_journal(seq, seq)));
            }
            None => needed.for_each(|seq| self.note_damaged_record(&mut check, seq)),
        }
        // Some of what was to be read may have been passed meanwhile.
        let tail_seq = self.journal.tail_seq();
        while let Some(piece) = check.left.pop_front() {
            if piece.first >= tail_seq {
                check.reading = piece;
                self.journal_checks.by_id.insert(id, check);
                return self.read_journal(id, piece);
            }
        }
        self.finish_journal_check(check);
    }

    fn is_record_whole(&self, seq: u64, piece: Piece, bytes: &Bytes) -> bool {
        let info = self.journal.info(seq);
        let at = |position: u64| ((position - piece.begin) * BLOCK) as usize;
        let record = bytes.slice(at(info.begin)..at(info.end));
        let is_it = |head: &RecordHead| {
            head.store_id == self.store_id()
                && head.seq == seq
                && head.position == info.begin
                && head.incarnation == info.incarnation
                && head.blocks() == info.end - info.begin
        };
        let Some(head) = RecordHead::decode(&record).filter(is_it) else { return false };
        record_body(&head, &record).is_some_and(|(entries, _)| decode_entries(&entries).is_some())
    }

    fn note_damaged_record(&mut self, check: &mut Check, seq: u64) {
        check.worst = check.worst.max(Some(seq));
        if self.journal_checks.damaged.insert(seq) {
            check.verified.damaged += 1;
            let disk = format!("{:016x}", self.store_id());
            tracing::error!(
                disk,
                record = seq,
                "a record of the journal does not match its checksum or cannot be read; what it says is in memory and is brought home"
            );
        }
    }

    fn finish_journal_check(&mut self, check: Check) {
        match check.worst.filter(|worst| *worst >= self.journal.tail_seq()) {
            Some(worst) => self.journal_checks.answers.push((worst, check.ticket, check.verified)),
            None => {
                self.replies.push_back((check.ticket, ObjectReply::JournalVerified(check.verified)));
            }
        }
    }

    /// The journal begins further on, durably.
    pub(crate) fn handle_journal_trimmed(&mut self) {
        let tail_seq = self.journal.tail_seq();
        let JournalChecks { damaged, answers, .. } = &mut self.journal_checks;
        let before = damaged.len();
        damaged.retain(|seq| *seq >= tail_seq);
        if damaged.len() < before {
            let disk = format!("{:016x}", self.superblock.geometry.store_id);
            let records = before - damaged.len();
            tracing::info!(disk, records, "no start needs the damaged records of the journal any more");
        }
        for (_, ticket, verified) in answers.extract_if(.., |(worst, ..)| *worst < tail_seq) {
            self.replies.push_back((ticket, ObjectReply::JournalVerified(verified)));
        }
    }
}

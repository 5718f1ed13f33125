//! The handshake: options of the client until it chooses an export.
//!
//! Bytes go in with [`Handshake::receive`]; [`Handshake::step`] says what to do next, and replies gather in
//! [`Handshake::take_output`]. Options are handled one by one: while a step waits for its answer, no further option
//! is looked at. No more than one option's data is kept, of bounded length. Nothing here waits or reads a clock.

use super::context::{CHOSEN_MAX, Context, Earlier, Queries};
use super::export::{Export, Refusal};
use super::wire::{self, Framing, info, option, rep};

/// Longest data of an option we take: names have at most 4096 bytes by the protocol, and a handful of queries follow.
const OPTION_BYTES_MAX: usize = 16 << 10;
/// Data of longer options is thrown away up to this length, to answer "too big". Beyond it the client goes.
const SKIPPED_BYTES_MAX: usize = 1 << 20;
/// Options per connection: a client needs about ten. Each could otherwise cost a look-up, without end.
const OPTION_COUNT_MAX: u32 = 128;
/// Bytes of an option before its data.
const OPTION_HEADER_BYTES: usize = 16;

/// What the handshake needs from outside to go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes of the client.
    Receive,
    /// Find this export, and answer with `found`.
    Find(Vec<u8>),
    /// Find this export and the snapshots that are older, and answer with `found_with_earlier`.
    FindWithEarlier(Vec<u8>),
    /// Open this export, and answer with `opened`.
    Open(Vec<u8>),
    /// List the exports, and answer with `listed`.
    List,
    /// The handshake is done: send what is left of the output, then transmit.
    Transmit(Agreement),
    /// Send what is left of the output, then close the connection.
    Close(&'static str),
}

/// What client and server have agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub export: Export,
    pub framing: Framing,
    /// What the client may ask about blocks.
    pub contexts: Vec<Context>,
}

enum State {
    ClientFlags,
    Options,
    /// Throws away the data of an option that was refused already.
    Skip(usize),
    /// A step was offered; its answer is awaited.
    Awaiting(Asked),
    Agreed(Agreement),
    Closed(&'static str),
}

/// Which option waits for an answer about exports.
#[derive(Clone, Debug)]
enum Asked {
    List,
    ExportName,
    Info { option: u32, wanted: Vec<u16> },
    MetaContext { option: u32, name: Vec<u8>, queries: Queries },
}

pub struct Handshake {
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    no_zeroes: bool,
    framing: Framing,
    /// The contexts chosen, and for which export.
    chosen: (Vec<u8>, Vec<Context>),
    option_count: u32,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake {
            state: State::ClientFlags,
            input: Vec::new(),
            output: wire::greeting().to_vec(),
            no_zeroes: false,
            framing: Framing::Simple,
            chosen: Default::default(),
            option_count: 0,
        }
    }
}

impl Handshake {
    /// Takes bytes of the client. To keep memory bounded, hand in a few KiB and step until `Receive`.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Bytes for the client.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// What was received beyond the handshake: the first requests.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    /// How many options were received: grows when the client gets on.
    pub fn option_count(&self) -> u32 {
        self.option_count
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        loop {
            match &mut self.state {
                State::ClientFlags => match self.take_input(4) {
                    None => return Step::Receive,
                    Some(flags) => self.handle_client_flags(wire::u32_at(&flags, 0)),
                },
                State::Skip(left) => {
                    let count = self.input.len().min(*left);
                    *left -= count;
                    let done = *left == 0;
                    self.input.drain(..count);
                    if !done {
                        return Step::Receive;
                    }
                    self.state = State::Options;
                }
                State::Options => match self.handle_input() {
                    Some(step) => return step,
                    None => continue,
                },
                State::Awaiting(asked) => panic!("no step while {asked:?} awaits its answer"),
                State::Agreed(agreement) => return Step::Transmit(agreement.clone()),
                State::Closed(why) => return Step::Close(why),
            }
        }
    }

    /// Answers `Step::Find`.
    pub fn found(&mut self, result: Result<Export, Refusal>) {
        match (self.take_asked(), result) {
            (Asked::Info { option, .. } | Asked::MetaContext { option, .. }, Err(refusal)) => {
                self.refuse(option, refusal.reply, refusal.message)
            }
            (Asked::Info { option, wanted }, Ok(export)) => self.describe(option, &wanted, &export),
            (Asked::MetaContext { option, name, queries }, Ok(_)) => {
                self.choose_contexts(option, name, &queries, &[])
            }
            (asked, _) => panic!("{asked:?} was not to find"),
        }
    }

    /// Answers `Step::FindWithEarlier`.
    pub fn found_with_earlier(&mut self, result: Result<(Export, Vec<Earlier>), Refusal>) {
        match (self.take_asked(), result) {
            (Asked::MetaContext { option, .. }, Err(refusal)) => {
                self.refuse(option, refusal.reply, refusal.message)
            }
            (Asked::MetaContext { option, name, queries }, Ok((_, earlier))) => {
                self.choose_contexts(option, name, &queries, &earlier)
            }
            (asked, _) => panic!("{asked:?} was not to find snapshots"),
        }
    }

    /// Answers `Step::Open`.
    pub fn opened(&mut self, result: Result<Export, Refusal>) {
        match (self.take_asked(), result) {
            // This option has no way to tell an error.
            (Asked::ExportName, Err(refusal)) => self.state = State::Closed(refusal.message),
            (Asked::ExportName, Ok(export)) => {
                self.output.extend_from_slice(&export.size.to_be_bytes());
                self.output.extend_from_slice(&export.transmission_flags(self.framing).to_be_bytes());
                if !self.no_zeroes {
                    self.output.extend_from_slice(&[0; 124]);
                }
                self.agree(export);
            }
            (Asked::Info { option, .. }, Err(refusal)) => self.refuse(option, refusal.reply, refusal.message),
            (Asked::Info { option, wanted }, Ok(export)) => {
                self.describe(option, &wanted, &export);
                self.agree(export);
            }
            (asked, _) => panic!("{asked:?} was not to open"),
        }
    }

    /// Answers `Step::List`.
    pub fn listed(&mut self, result: Result<Vec<Export>, Refusal>) {
        let asked = self.take_asked();
        assert!(matches!(asked, Asked::List), "{asked:?} was not to list");
        match result {
            Err(refusal) => self.refuse(option::LIST, refusal.reply, refusal.message),
            Ok(exports) => {
                for export in exports {
                    let name_len = (export.name.len() as u32).to_be_bytes();
                    let parts = [&name_len[..], &export.name, export.description().as_bytes()].concat();
                    self.reply(option::LIST, rep::SERVER, &[&parts]);
                }
                self.reply(option::LIST, rep::ACK, &[]);
            }
        }
    }

    fn handle_client_flags(&mut self, flags: u32) {
        let known = u32::from(wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        self.no_zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) != 0;
        self.state = match flags & !known {
            0 => State::Options,
            _ => State::Closed("unknown client flags"),
        };
    }

    /// Handles the option at the start of the input, if it is there.
    fn handle_input(&mut self) -> Option<Step> {
        if self.input.len() < OPTION_HEADER_BYTES {
            return Some(Step::Receive);
        }
        if wire::u64_at(&self.input, 0) != wire::IHAVEOPT {
            self.state = State::Closed("no option where one must be");
            return None;
        }
        let option = wire::u32_at(&self.input, 8);
        let len = wire::u32_at(&self.input, 12) as usize;
        if len > OPTION_BYTES_MAX {
            self.refuse_long_option(option, len);
            return None;
        }
        if self.input.len() < OPTION_HEADER_BYTES + len {
            return Some(Step::Receive);
        }
        self.count_option();
        let data = self.take_input(OPTION_HEADER_BYTES + len)?.split_off(OPTION_HEADER_BYTES);
        if matches!(self.state, State::Closed(_)) {
            return None;
        }
        self.handle_option(option, &data)
    }

    fn refuse_long_option(&mut self, option: u32, len: usize) {
        self.input.drain(..OPTION_HEADER_BYTES);
        self.count_option();
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        if len > SKIPPED_BYTES_MAX || option == option::EXPORT_NAME {
            self.state = State::Closed("option too long");
            return;
        }
        self.refuse(option, rep::ERR_TOO_BIG, "option too long");
        self.state = State::Skip(len);
    }

    fn count_option(&mut self) {
        self.option_count += 1;
        if self.option_count > OPTION_COUNT_MAX {
            self.state = State::Closed("too many options");
        }
    }

    fn handle_option(&mut self, option: u32, data: &[u8]) -> Option<Step> {
        let takes_no_data =
            matches!(option, option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS);
        if takes_no_data && !data.is_empty() {
            self.refuse(option, rep::ERR_INVALID, "this option has no data");
            return None;
        }
        match option {
            option::EXPORT_NAME => return self.ask(Asked::ExportName, Step::Open(data.to_vec())),
            option::ABORT => {
                self.reply(option, rep::ACK, &[]);
                self.state = State::Closed("aborted by the client");
            }
            option::LIST => return self.ask(Asked::List, Step::List),
            option::INFO | option::GO => match parse_info(data) {
                None => self.refuse(option, rep::ERR_INVALID, "malformed option"),
                Some((name, wanted)) => {
                    let step = if option == option::GO { Step::Open(name) } else { Step::Find(name) };
                    return self.ask(Asked::Info { option, wanted }, step);
                }
            },
            option::STRUCTURED_REPLY if self.framing == Framing::Extended => {
                self.refuse(option, rep::ERR_EXT_HEADER_REQD, "extended headers are in use already")
            }
            option::STRUCTURED_REPLY => {
                self.framing = Framing::Structured;
                self.reply(option, rep::ACK, &[]);
            }
            option::EXTENDED_HEADERS => {
                self.framing = Framing::Extended;
                self.reply(option, rep::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                return self.handle_meta_context(option, data);
            }
            // STARTTLS among them.
            _ => self.refuse(option, rep::ERR_UNSUP, "option not supported"),
        }
        None
    }

    fn handle_meta_context(&mut self, option: u32, data: &[u8]) -> Option<Step> {
        if option == option::SET_META_CONTEXT {
            // Whatever comes of it, earlier contexts are off.
            self.chosen = Default::default();
        }
        if self.framing == Framing::Simple {
            self.refuse(option, rep::ERR_INVALID, "structured replies must be negotiated first");
            return None;
        }
        let Some((name, queries)) = parse_meta_context(data) else {
            self.refuse(option, rep::ERR_INVALID, "malformed option");
            return None;
        };
        let names = queries.into_iter().map(<[u8]>::to_vec).collect();
        let queries = Queries { listing: option == option::LIST_META_CONTEXT, names };
        let step = match queries.concern_snapshots() {
            true => Step::FindWithEarlier(name.clone()),
            false => Step::Find(name.clone()),
        };
        self.ask(Asked::MetaContext { option, name, queries }, step)
    }

    fn choose_contexts(&mut self, option: u32, name: Vec<u8>, queries: &Queries, earlier: &[Earlier]) {
        let selected = queries.select(earlier);
        if !queries.listing && selected.len() > CHOSEN_MAX {
            return self.refuse(option, rep::ERR_TOO_BIG, "too many metadata contexts");
        }
        let mut contexts = Vec::new();
        for (id, (called, subject)) in (1..).zip(selected) {
            // In a list the id means nothing and is to be zero.
            let told: u32 = if queries.listing { 0 } else { id };
            self.reply(option, rep::META_CONTEXT, &[&told.to_be_bytes(), &called]);
            contexts.push(Context { id, subject });
        }
        if !queries.listing {
            self.chosen = (name, contexts);
        }
        self.reply(option, rep::ACK, &[]);
    }

    fn describe(&mut self, option: u32, wanted: &[u16], export: &Export) {
        let flags = export.transmission_flags(self.framing);
        let code = |code: u16| code.to_be_bytes();
        self.reply(
            option,
            rep::INFO,
            &[&code(info::EXPORT), &export.size.to_be_bytes(), &flags.to_be_bytes()],
        );
        if wanted.contains(&info::NAME) {
            self.reply(option, rep::INFO, &[&code(info::NAME), &export.name]);
        }
        if wanted.contains(&info::DESCRIPTION) {
            self.reply(option, rep::INFO, &[&code(info::DESCRIPTION), export.description().as_bytes()]);
        }
        // Offered whether asked for or not. Any alignment works; whole blocks are cheapest.
        let sizes = [1u32, proto::BLOCK_BYTES as u32, proto::client::IO_BYTES_MAX].map(u32::to_be_bytes);
        self.reply(option, rep::INFO, &[&code(info::BLOCK_SIZE), &sizes.concat()]);
        self.reply(option, rep::ACK, &[]);
    }

    fn agree(&mut self, export: Export) {
        let (name, contexts) = std::mem::take(&mut self.chosen);
        let contexts = if name == export.name { contexts } else { Vec::new() };
        self.state = State::Agreed(Agreement { export, framing: self.framing, contexts });
    }

    fn ask(&mut self, asked: Asked, step: Step) -> Option<Step> {
        self.state = State::Awaiting(asked);
        Some(step)
    }

    fn take_asked(&mut self) -> Asked {
        match std::mem::replace(&mut self.state, State::Options) {
            State::Awaiting(asked) => asked,
            _ => panic!("an answer without a question"),
        }
    }

    fn refuse(&mut self, option: u32, reply: u32, message: &str) {
        self.reply(option, reply, &[message.as_bytes()]);
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[&[u8]]) {
        wire::put_option_reply(&mut self.output, option, reply, data);
    }

    fn take_input(&mut self, count: usize) -> Option<Vec<u8>> {
        (self.input.len() >= count).then(|| self.input.drain(..count).collect())
    }
}

/// Name and wanted informations of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(Vec<u8>, Vec<u16>)> {
    let (name, rest) = split_string(data)?;
    let (count, rest) = rest.split_at_checked(2)?;
    if rest.len() != 2 * usize::from(wire::u16_at(count, 0)) {
        return None;
    }
    Some((name.to_vec(), rest.chunks_exact(2).map(|code| wire::u16_at(code, 0)).collect()))
}

/// Name and queries of LIST_META_CONTEXT and SET_META_CONTEXT.
fn parse_meta_context(data: &[u8]) -> Option<(Vec<u8>, Vec<&[u8]>)> {
    let (name, rest) = split_string(data)?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    let mut queries = Vec::new();
    // The count is only believed as far as there is data for it.
    for _ in 0..wire::u32_at(count, 0) {
        let (query, after) = split_string(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then(|| (name.to_vec(), queries))
}

/// A string with its length before it.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_at_checked(4)?;
    rest.split_at_checked(wire::u32_at(len, 0) as usize)
}

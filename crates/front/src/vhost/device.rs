//! What a front-end has agreed with us: features, memory, rings; and what each of its messages does to them.
//!
//! No message waits: [`Answer::Base`] alone is given later, when what a ring has under way has ended.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::net::{SendFlags, send};

use super::blk::{self, Geometry, Status};
use super::channel::Message;
use super::inflight::{self, Inflight};
use super::memory::Memory;
use super::queue::{QUEUE_COUNT_MAX, Ring, Taken};
use super::wire::{
    self, ConfigSpan, InflightArea, QueueNumber, RingAddresses, feature, protocol_feature, request,
};

/// What others see of a device while it is served.
#[derive(Default)]
pub struct Shown {
    /// `None` until the volume is open.
    pub volume: Cell<Option<Geometry>>,
    /// The backend channel.
    pub news: RefCell<Option<OwnedFd>>,
}

impl Shown {
    /// Has the front-end read the configuration again. One that does not listen sees it when it next looks.
    pub fn tell(&self) {
        let Some(news) = &*self.news.borrow() else { return };
        let sent = send(news, &wire::config_changed(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            tracing::warn!("a vhost-user guest cannot be told of its volume's size: {error}");
        }
    }
}

pub struct Device {
    shown: Rc<Shown>,
    features: u64,
    protocol_features: u64,
    memory: Memory,
    rings: Vec<Ring>,
    inflight: Option<Inflight>,
    /// Queues that had requests under way when the life before ended, and do not run yet.
    awaited: Vec<usize>,
    /// Requests taken so far, of all queues and lives.
    counter: u64,
}

/// What the front-end gets for a message.
pub enum Answer {
    /// Nothing, or a word that it was heard, if it wants one.
    Done,
    Reply(Vec<u8>),
    ReplyWithFile(Vec<u8>, OwnedFd),
    /// Where this ring goes on, as soon as nothing of it is under way.
    Base(usize),
}

impl From<u64> for Answer {
    fn from(value: u64) -> Answer {
        Answer::Reply(value.to_ne_bytes().to_vec())
    }
}

const CUT_SHORT: &str = "its payload is too short";
const NO_FILE: &str = "no file descriptor came with it";

impl Device {
    pub fn new(shown: Rc<Shown>) -> Device {
        Device {
            shown,
            features: 0,
            protocol_features: 0,
            memory: Memory::default(),
            rings: vec![],
            inflight: None,
            awaited: vec![],
            counter: 0,
        }
    }

    /// `Err` says what is wrong with the message.
    pub fn handle(&mut self, message: Message) -> Result<Answer, String> {
        let Message { header, payload, mut files } = message;
        let number = || wire::decode_u64(&payload).ok_or(CUT_SHORT);
        let of_queue = || QueueNumber::decode(&payload).ok_or(CUT_SHORT);
        match header.request {
            request::GET_FEATURES => return Ok(blk::features(self.volume()).into()),
            request::SET_FEATURES => self.set_features(number()?)?,
            request::GET_PROTOCOL_FEATURES => return Ok(protocol_feature::ALL.into()),
            request::SET_PROTOCOL_FEATURES => self.set_protocol_features(number()?)?,
            request::GET_QUEUE_NUM => return Ok(u64::from(QUEUE_COUNT_MAX).into()),
            request::SET_OWNER => {}
            // What a ring has under way is not taken back; only nothing more is taken.
            request::RESET_OWNER => self.rings.iter_mut().for_each(|ring| ring.enable(false)),
            request::SET_MEM_TABLE => self.set_memory(&payload, files)?,
            request::SET_VRING_NUM => {
                let QueueNumber { queue, number } = of_queue()?;
                self.ring(queue)?.set_size(number).ok_or_else(|| format!("a ring of {number} descriptors"))?
            }
            request::SET_VRING_ADDR => {
                let addresses = RingAddresses::decode(&payload).ok_or(CUT_SHORT)?;
                self.ring(addresses.queue)?.set_addresses(addresses)
            }
            request::SET_VRING_BASE => {
                let QueueNumber { queue, number } = of_queue()?;
                self.ring(queue)?.set_base(number)
            }
            request::GET_VRING_BASE => {
                let queue = of_queue()?.queue;
                self.ring(queue)?.stop();
                // Whoever is still awaited may never run now.
                self.awaited.clear();
                return Ok(Answer::Base(queue as usize));
            }
            request::SET_VRING_KICK => self.set_kick(&payload, files.pop())?,
            request::SET_VRING_CALL | request::SET_VRING_ERR => {
                let (queue, has_file) = wire::decode_queue_file(&payload).ok_or(CUT_SHORT)?;
                let file = files.pop().filter(|_| has_file);
                let ring = self.ring(queue)?;
                let set = match header.request {
                    request::SET_VRING_CALL => ring.set_call(file),
                    _ => ring.set_err(file),
                };
                set.map_err(|error| error.to_string())?
            }
            request::SET_VRING_ENABLE => {
                let QueueNumber { queue, number } = of_queue()?;
                self.ring(queue)?.enable(number != 0)
            }
            request::SET_BACKEND_REQ_FD => {
                self.shown.news.replace(Some(files.pop().ok_or(NO_FILE)?));
            }
            request::GET_CONFIG => return self.config(&payload),
            request::GET_INFLIGHT_FD => {
                let asked = InflightArea::decode(&payload).ok_or(CUT_SHORT)?;
                let (area, file) = inflight::make(asked)?;
                return Ok(Answer::ReplyWithFile(area.encode(payload.len()), file));
            }
            request::SET_INFLIGHT_FD => self.set_inflight(&payload, files.pop())?,
            other => return Err(format!("there is no request {other}")),
        }
        Ok(Answer::Done)
    }

    /// Is a message with a request for an answer, that has none of its own, to be answered?
    pub fn confirms(&self) -> bool {
        self.protocol_features & protocol_feature::REPLY_ACK != 0
    }

    pub fn rings(&mut self) -> &mut [Ring] {
        &mut self.rings
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn volume(&self) -> Geometry {
        self.shown.volume.get().expect("it was opened before it was served")
    }

    /// Takes the next request, from whichever ring has one, and says which ring.
    ///
    /// What was under way in an earlier life comes before everything else, and it comes only when all its queues run: until then
    /// nobody can say what a new request would overtake (`inflight.rs`).
    pub fn take(&mut self) -> Option<(usize, Taken)> {
        if !self.may_begin() {
            return None;
        }
        let volume = self.volume();
        loop {
            let again = self.has_again();
            for (queue, ring) in self.rings.iter_mut().enumerate() {
                if ring.look && (!again || ring.has_again()) {
                    let taken = ring.take(&self.memory, volume, &mut self.counter);
                    if let Some(taken) = taken {
                        return Some((queue, taken));
                    }
                }
            }
            // Where the last one that had something from before broke, the others come now.
            if !again || self.has_again() {
                return None;
            }
        }
    }

    fn has_again(&self) -> bool {
        self.rings.iter().any(Ring::has_again)
    }

    /// May there be something to take?
    pub fn has_more(&self) -> bool {
        self.may_begin() && self.rings.iter().any(|ring| ring.look)
    }

    fn may_begin(&self) -> bool {
        self.awaited.is_empty()
    }

    pub fn answer(&mut self, queue: usize, taken: &Taken, status: Status, written: u32) {
        self.rings[queue].answer(&self.memory, taken, status, written);
    }

    /// Is noted what this queue has under way?
    pub fn is_noted(&self, queue: usize) -> bool {
        self.rings[queue].is_noted()
    }

    /// Has the front-end look at the volume's size.
    pub fn greet(&self) {
        self.shown.tell();
    }

    /// Interrupts the guest for what was answered.
    pub fn announce(&mut self) {
        for ring in &mut self.rings {
            ring.announce_if_wanted(&self.memory);
        }
    }

    fn ring(&mut self, queue: u32) -> Result<&mut Ring, String> {
        if queue >= u32::from(QUEUE_COUNT_MAX) {
            return Err(format!("there is no queue {queue}, only {QUEUE_COUNT_MAX} of them"));
        }
        let queue = queue as usize;
        if queue >= self.rings.len() {
            self.rings.resize_with(queue + 1, Ring::default);
        }
        Ok(&mut self.rings[queue])
    }

    /// Has the driver agreed to flush what is to be durable?
    pub fn may_flush(&self) -> bool {
        self.features & blk::FLUSH != 0
    }

    fn set_features(&mut self, features: u64) -> Result<(), String> {
        let unknown = features & !blk::features(self.volume());
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were not offered"));
        }
        self.features = features;
        Ok(())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), String> {
        let unknown = features & !protocol_feature::ALL;
        if unknown != 0 {
            return Err(format!("protocol features {unknown:#x} were not offered"));
        }
        self.protocol_features = features;
        Ok(())
    }

    /// The guest has other memory now. Rings that run lie in it as well, wherever it is mapped.
    fn set_memory(&mut self, payload: &[u8], files: Vec<OwnedFd>) -> Result<(), String> {
        let regions = wire::decode_regions(payload).ok_or("its regions cannot be read")?;
        self.memory = Memory::new(regions, files)?;
        for ring in self.rings.iter_mut().filter(|ring| ring.is_running()) {
            if let Err(why) = ring.place(&self.memory) {
                ring.breaks(&why);
            }
        }
        Ok(())
    }

    fn set_kick(&mut self, payload: &[u8], file: Option<OwnedFd>) -> Result<(), String> {
        let (queue, _) = wire::decode_queue_file(payload).ok_or(CUT_SHORT)?;
        // A ring that nobody kicks would have to be looked at without end.
        let kick = file.ok_or(NO_FILE)?;
        self.ring(queue)?;
        let at = queue as usize;
        let event_idx = self.features & feature::RING_EVENT_IDX != 0;
        let ring = &mut self.rings[at];
        ring.start(kick, &self.memory, self.inflight.as_ref(), at, event_idx)?;
        // Otherwise the front-end enables it when it wants.
        if self.features & feature::PROTOCOL_FEATURES == 0 {
            ring.enable(true);
        }
        self.awaited.retain(|awaited| *awaited != at);
        Ok(())
    }

    fn set_inflight(&mut self, payload: &[u8], file: Option<OwnedFd>) -> Result<(), String> {
        let area = InflightArea::decode(payload).ok_or(CUT_SHORT)?;
        let inflight = Inflight::map(area, file.ok_or(NO_FILE)?)?;
        let (queues, counter) = inflight.look();
        if counter > inflight::COUNTER_MAX {
            return Err(format!("a request is noted under the number {counter}"));
        }
        if !queues.is_empty() {
            tracing::info!(?queues, "a guest has requests under way from before");
        }
        self.counter = self.counter.max(counter);
        self.awaited = queues.into_iter().filter(|queue| !self.runs(*queue)).collect();
        self.inflight = Some(inflight);
        Ok(())
    }

    fn runs(&self, queue: usize) -> bool {
        self.rings.get(queue).is_some_and(Ring::is_running)
    }

    fn config(&self, payload: &[u8]) -> Result<Answer, String> {
        let span = ConfigSpan::decode(payload).ok_or(CUT_SHORT)?;
        let (start, bytes) = (span.offset as usize, span.bytes as usize);
        if start > blk::CONFIG_BYTES_MAX || bytes > blk::CONFIG_BYTES_MAX - start {
            return Err(format!("{bytes} bytes of configuration at {start}"));
        }
        // The front-end says how many queues it wants.
        let mut config = blk::config(self.volume(), QUEUE_COUNT_MAX).to_vec();
        // Fields of features that we do not offer.
        config.resize(blk::CONFIG_BYTES_MAX, 0);
        Ok(Answer::Reply(span.encode_with(&config[start..start + bytes])))
    }
}

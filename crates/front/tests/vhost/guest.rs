//! A guest under a front-end: its memory, its connection to the server, and the server itself on a thread of its own.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use front::guests::Guests;
use front::vhost::{Limits, Seat, listen, serve};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{FileOffset, MmapRegion};

use crate::driver::Ring;
use crate::memory::Memory;

pub const MEMORY_BYTES: usize = 8 << 20;
/// Where the guest's memory begins for the guest.
pub const GUEST_START: u64 = 1 << 30;
/// Where rings lie in it, and where data.
const RINGS_AT: u64 = 0;
pub const DATA_AT: u64 = 4 << 20;
/// A test that waits longer has found a hang.
const PATIENCE: Duration = Duration::from_secs(20);

pub const F_EVENT_IDX: u64 = 1 << 29;
const F_INDIRECT: u64 = 1 << 28;
const F_PROTOCOL: u64 = 1 << 30;
const F_VERSION_1: u64 = 1 << 32;

type Errand = Box<dyn FnOnce(&Memory) + Send>;

/// The server of one volume, `alice`, of 1 MiB, and of its snapshot.
pub struct Server {
    pub path: PathBuf,
    errands: Option<tokio::sync::mpsc::UnboundedSender<Errand>>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

pub const VOLUME_BYTES: u64 = 1 << 20;

impl Server {
    pub fn start() -> Server {
        Server::start_with("alice", Limits::default())
    }

    pub fn start_with(name: &str, limits: Limits) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (errands, mut inbox) = tokio::sync::mpsc::unbounded_channel::<Errand>();
        let (ready, is_ready) = mpsc::channel();
        let (at, name) = (path.clone(), name.as_bytes().to_vec());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let memory = Memory::default()
                    .with_vdi("alice", VOLUME_BYTES)
                    .with_snapshot("alice", "monday", 1, VOLUME_BYTES)
                    .logged();
                let listener = tokio::net::UnixListener::from_std(listen(&at).unwrap()).unwrap();
                let serving =
                    serve(listener, name, memory.clone(), limits, Guests::default(), Seat::default());
                tokio::task::spawn_local(serving);
                ready.send(()).unwrap();
                while let Some(errand) = inbox.recv().await {
                    errand(&memory);
                }
            });
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        Server { path, errands: Some(errands), thread: Some(thread), _dir: dir }
    }

    /// Does something to the service, in its thread.
    pub fn with<R: Send + 'static>(&self, errand: impl FnOnce(&Memory) -> R + Send + 'static) -> R {
        let (done, is_done) = mpsc::channel();
        let errand = Box::new(move |memory: &Memory| done.send(errand(memory)).unwrap());
        self.errands.as_ref().unwrap().send(errand).unwrap_or_else(|_| panic!("the server has ended"));
        is_done.recv_timeout(PATIENCE).expect("the server's thread hangs")
    }

    /// Waits until the service says so.
    pub fn until(&self, what: &str, reached: impl Fn(&Memory) -> bool + Send + Copy + 'static) {
        let begun = std::time::Instant::now();
        while !self.with(reached) {
            assert!(begun.elapsed() < PATIENCE, "waiting for: {what}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.errands = None;
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the server panicked");
        }
    }
}

/// How a guest sets itself up.
#[derive(Clone, Copy)]
pub struct Setup {
    pub queue_count: usize,
    pub queue_size: u16,
    pub features: u64,
    pub inflight: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { queue_count: 1, queue_size: 16, features: F_INDIRECT, inflight: false }
    }
}

/// A guest's memory and its rings: what outlives a connection.
pub struct Guest {
    pub setup: Setup,
    pub memory: MmapRegion,
    file: File,
    pub rings: Vec<Ring>,
    pub inflight: Option<(VhostUserInflight, File)>,
    pub front: Option<Frontend>,
}

impl Guest {
    /// Connected, with all rings running.
    pub fn start(server: &Server, setup: Setup) -> Guest {
        let mut guest = Guest::new(setup);
        guest.connect(server);
        guest.negotiate();
        guest.share_memory();
        guest.share_inflight();
        guest.run_rings();
        guest
    }

    pub fn new(setup: Setup) -> Guest {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY_BYTES as u64).unwrap();
        let file = File::from(file);
        let memory =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), MEMORY_BYTES).unwrap();
        let event_idx = setup.features & F_EVENT_IDX != 0;
        let rings = (0..setup.queue_count)
            .map(|queue| Ring::new(RINGS_AT + (queue as u64) * (64 << 10), setup.queue_size, event_idx))
            .collect();
        Guest { setup, memory, file, rings, inflight: None, front: None }
    }

    pub fn connect(&mut self, server: &Server) {
        let stream = UnixStream::connect(&server.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.front = Some(Frontend::from_stream(stream, 128));
    }

    pub fn front(&mut self) -> &mut Frontend {
        self.front.as_mut().expect("connected")
    }

    pub fn negotiate(&mut self) {
        let features = self.setup.features;
        let front = self.front();
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        assert_eq!(offered & (features | F_VERSION_1), features | F_VERSION_1, "offered: {offered:#x}");
        front.set_features(features | F_VERSION_1 | F_PROTOCOL).unwrap();
        let protocol = front.get_protocol_features().unwrap();
        for wanted in [
            VhostUserProtocolFeatures::MQ,
            VhostUserProtocolFeatures::CONFIG,
            VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            VhostUserProtocolFeatures::BACKEND_REQ,
        ] {
            assert!(protocol.contains(wanted), "{wanted:?} is not offered");
        }
        front.set_protocol_features(protocol).unwrap();
        assert_eq!(front.get_queue_num().unwrap(), 128);
    }

    pub fn share_memory(&mut self) {
        let region = self.region();
        self.front().set_mem_table(&[region]).unwrap();
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_START,
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: self.memory.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Asks for the memory for what is under way, or gives that of an earlier connection.
    pub fn share_inflight(&mut self) {
        if !self.setup.inflight {
            return;
        }
        if self.inflight.is_none() {
            let (queues, size) = (self.setup.queue_count as u16, self.setup.queue_size);
            let asked = VhostUserInflight::new(0, 0, queues, size);
            self.inflight = Some(self.front().get_inflight_fd(&asked).unwrap());
        }
        let (area, fd) = self.inflight.as_ref().map(|(area, file)| (*area, file.as_raw_fd())).unwrap();
        self.front().set_inflight_fd(&area, fd).unwrap();
    }

    pub fn run_rings(&mut self) {
        for queue in 0..self.setup.queue_count {
            self.run_ring(queue);
        }
    }

    pub fn run_ring(&mut self, queue: usize) {
        let host = self.memory.as_ptr() as u64;
        let size = self.setup.queue_size;
        let ring = &self.rings[queue];
        let config = ring.addresses(host, size);
        let (base, call, kick) =
            (ring.used_seen(&self.memory), ring.call.try_clone().unwrap(), ring.kick.try_clone().unwrap());
        let front = self.front();
        front.set_vring_num(queue, size).unwrap();
        front.set_vring_base(queue, base).unwrap();
        front.set_vring_addr(queue, &config).unwrap();
        front.set_vring_call(queue, &call).unwrap();
        front.set_vring_kick(queue, &kick).unwrap();
        front.set_vring_enable(queue, true).unwrap();
    }

    pub fn capacity_sectors(&mut self) -> u64 {
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.front().get_config(0, 8, flags, &[0; 8]).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// The connection is cut, as when either side dies.
    pub fn disconnect(&mut self) {
        self.front = None;
    }

    pub fn write_memory(&self, at: u64, bytes: &[u8]) {
        use vm_memory::{Bytes, VolatileMemory};
        self.memory.as_volatile_slice().write_slice(bytes, at as usize).unwrap();
    }

    pub fn read_memory(&self, at: u64, count: usize) -> Vec<u8> {
        use vm_memory::{Bytes, VolatileMemory};
        let mut bytes = vec![0; count];
        self.memory.as_volatile_slice().read_slice(&mut bytes, at as usize).unwrap();
        bytes
    }
}

/// A pair of sockets, for the backend channel.
pub fn socket_pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs.into())
}

/// Something that is no counter of kicks, but goes for one.
pub fn as_event(file: OwnedFd) -> vmm_sys_util::eventfd::EventFd {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is ours, and now only the `EventFd`'s.
    unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(file.into_raw_fd()) }
}

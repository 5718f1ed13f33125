//! Puts a sheep together: from options to a daemon that listens, and from a signal to its end.
//!
//! The order of starting: directories and paths, (fork,) the lock of the directory, the log, the ports, the disk and what it holds, the
//! sockets, the cluster. Ports are taken before the disk, so that one that is in use leaves no store behind; nobody listens on them until the
//! disk is open: callers are refused, as they are while no sheep runs. Sockets come before the cluster because others call as soon as they see us join. Whatever
//! fails before the launcher is told "ready" is its message and exit status.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use cluster::Driver;
use cluster::local::{LocalDriver, default_directory};
use front::guests::Guests;
use front::native::{About, Desk};
use node::{Node, NodeConfig};
use proto::NodeId;
use proto::cluster::MemberInfo;
use proto::peer::HELLO_MAGIC;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;

use crate::attachments::{self, Attachments};
use crate::disk::{self, NewStore};
use crate::fronts::{ACCEPT_PAUSE, Front, Fronts};
use crate::home::{self, Home, PidFile};
use crate::io::EngineChoice;
use crate::launch::Launch;
use crate::link::{Links, Receiver};
use crate::logging::Log;
use crate::marks;
use crate::options::{DriverChoice, LogDestination, Options};
use crate::shell::{Parts, Shell};

/// Connections that wait to be accepted.
const PENDING_MAX: u32 = 1024;
/// In the store directory.
const NBD_SOCKET: &str = "nbd.sock";
const SIGTERM: &str = "the signal SIGTERM";
const SIGINT: &str = "the signal SIGINT";
const OPEN_FILES_WANTED: u64 = 6_144_000;

/// Options, with all paths absolute.
pub struct Setting {
    pub options: Options,
    log_path: PathBuf,
    engine: EngineChoice,
}

/// Creates the directories and resolves paths, in the directory where the sheep was started.
pub fn prepare(mut options: Options) -> anyhow::Result<Setting> {
    let engine = EngineChoice::from_env().map_err(|text| anyhow!(text))?;
    let (directory, disk) = home::prepare(&options.directory, options.disk.as_deref())?;
    options.directory = directory;
    options.disk = disk;
    if let Some(sockets) = &mut options.vhost_user {
        *sockets = attachments::prepare(sockets)?;
    }
    if let Some(path) = &mut options.pid_file {
        *path = std::path::absolute(&*path).context("cannot resolve the path of the pid file")?;
    }
    let DriverChoice::Local { directory } = &mut options.driver;
    *directory = Some(match directory {
        Some(directory) => {
            std::path::absolute(&*directory).context("cannot resolve the cluster directory")?
        }
        None => default_directory(&options.directory),
    });
    let log_directory = match &options.log.directory {
        Some(directory) => std::fs::canonicalize(directory)
            .with_context(|| format!("cannot use log directory {}", directory.display()))?,
        None => options.directory.clone(),
    };
    Ok(Setting { log_path: log_directory.join("sheep.log"), options, engine })
}

/// Runs the daemon to its end.
pub fn run(setting: Setting, launch: Launch) -> ExitCode {
    let mut launch = Some(launch);
    match try_run(setting, &mut launch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if let Some(launch) = launch {
                launch.failed(&format!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn try_run(setting: Setting, launch: &mut Option<Launch>) -> anyhow::Result<()> {
    let options = &setting.options;
    let home = Home::lock(options.directory.clone(), options.disk.clone())?;
    // Sockets get short names relative to it: a path in a socket address has at most 107 bytes.
    std::env::set_current_dir(&home.path)
        .with_context(|| format!("cannot change to directory {}", home.path.display()))?;
    let log = match options.log.destination {
        LogDestination::Stdout => Log::to_stdout(),
        LogDestination::File => Log::to_file(setting.log_path.clone())
            .with_context(|| format!("cannot open log {}", setting.log_path.display()))?,
    };
    log.install(options.log.level, options.log.format, options.port);
    abort_on_panic();
    raise_open_files();
    let pid_file = options.pid_file.clone().map(PidFile::write).transpose()?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let tasks = tokio::task::LocalSet::new();
    let result = tasks.block_on(&runtime, live(&setting, &home, &log, launch));
    match &result {
        Ok(()) => tracing::info!("this sheep has ended in order: shutdown"),
        Err(_) => tracing::error!("this sheep ends because of an error: shutdown"),
    }
    // Tasks, and with them the ring, go before the locks.
    drop(tasks);
    drop(runtime);
    drop(pid_file);
    drop(home);
    result
}

async fn live(setting: &Setting, home: &Home, log: &Log, launch: &mut Option<Launch>) -> anyhow::Result<()> {
    let options = &setting.options;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let DriverChoice::Local { directory } = &options.driver;
    let directory = directory.clone().expect("resolved while preparing");
    let beginning = describe_beginning(home, &directory);
    let driver = Box::new(LocalDriver::new(directory.clone()));
    let addresses = Addresses::of(options, driver.spans_machines());
    let port = Port::take(SocketAddr::new(addresses.listen, options.port), "")?;
    let nbd_port = options.nbd.map(|address| Port::take(address, " for NBD")).transpose()?;
    home.begin()?;
    let opened = if options.gateway {
        disk::none()
    } else {
        let shared = !driver.spans_machines();
        let new = NewStore { size_bytes: options.disk_size_bytes, shared, store_id: random_u64()?.max(1) };
        disk::open(home, new, setting.engine)?
    };
    let listener = port.listen()?;
    let nbd_listener = nbd_port.map(Port::listen).transpose()?;
    let unix = listen_unix("sock")?;
    let nbd_unix = listen_unix(NBD_SOCKET)?;

    let own = NodeId::new(addresses.advertise, options.port);
    let starts = if options.gateway { 0 } else { marks::count_start(&home.path)? };
    let member = MemberInfo {
        id: own,
        zone: options.zone.unwrap_or(own.default_zone()),
        space_bytes: opened.store.space().size_bytes,
        fixed_vnodes: None,
        store_id: opened.store_id,
        starts,
        formatted: if options.gateway { None } else { marks::read(&home.path, marks::FORMATTED)? },
        io_addr: None,
        write_back: options.write_back,
        life: random_u64()?,
    };
    // A path that was mistyped is noticed now or never. Stderr is still where the sheep was started.
    if let Some(text) = beginning {
        tracing::info!("{text}");
        eprintln!("{text}");
    }
    let (cluster, about) = (driver.start(member.clone())?, member.clone());
    let (links, link_events) = Links::new(own);
    let shell = Shell::start(Parts {
        own,
        node: Node::new(
            NodeConfig { member, cache_bytes: options.cache_bytes, gathered_max: node::GATHERED_MAX },
            opened.unsettled,
        ),
        store: opened.store,
        disk: opened.disk,
        links,
        link_events,
        cluster,
        disk_timeout: options.disk_timeout,
        write_back: options.write_back,
        directory: (!options.gateway).then(|| home.path.clone()),
    });

    let guests = Guests::default();
    let desk = Desk::new(About {
        disks_path: home.path.display().to_string(),
        nbd_socket: home.path.join(NBD_SOCKET),
        nbd_address: options.nbd,
        guests: guests.clone(),
    });
    let fronts = Fronts::start(&shell, options.io_threads - 1, desk, guests)
        .context("cannot start the threads for clients")?;
    spawn_local(accept(listener, own, shell.clone(), fronts.clone()));
    fronts.begin(&shell, Front::NativeUnix(unix.into_std()?))?;
    fronts.begin(&shell, Front::NbdUnix(nbd_unix.into_std()?))?;
    if let Some(listener) = nbd_listener {
        fronts.begin(&shell, Front::NbdTcp(listener.into_std()?))?;
    }
    if let Some(sockets) = &options.vhost_user {
        let attachments = Attachments::open(sockets, &home.path, fronts)?;
        attachments.serve_all(&shell);
        shell.set_attachments(attachments);
    }
    // Whether the cluster takes it is told where the sheep was started.
    let taken_in = tokio::select! {
        taken_in = shell.until_taken_in() => taken_in,
        _ = terminate.recv() => stop_before(&shell, SIGTERM),
        _ = interrupt.recv() => stop_before(&shell, SIGINT),
    };
    if shell.is_refused() && starts > 0 {
        // It was no start: an older copy does not become the newer one by being tried again.
        marks::write(&home.path, marks::STARTS, starts - 1)?;
    }
    if taken_in {
        if let Some(launch) = launch.take() {
            launch.ready().context("cannot detach from the terminal")?;
        }
        let zone = about.zone.0;
        let (store, cluster) = (home.path.display(), directory.display());
        let gateway = options.gateway.then(|| tracing::field::display("stores nothing"));
        tracing::info!(
            node = %about.id, zone, %store, gateway, size_bytes = about.space_bytes, %cluster, pid = std::process::id(),
            "sheepdog daemon (version {}) started",
            env!("CARGO_PKG_VERSION")
        );
    }

    let stopped = shell.until_stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            result = &mut stopped => return result.map_err(|text| anyhow!(text)),
            _ = terminate.recv() => shell.stop(SIGTERM),
            _ = interrupt.recv() => shell.stop(SIGINT),
            _ = hangup.recv() => {
                if let Err(error) = log.rotate() {
                    tracing::error!("cannot begin a new log: {error}");
                }
            }
        }
    }
}

/// Told to end before the cluster has taken it in. False: it has not.
fn stop_before(shell: &Shell, by: &'static str) -> bool {
    shell.stop(by);
    false
}

/// What is begun here that was not there before, if anything.
fn describe_beginning(home: &Home, cluster: &Path) -> Option<String> {
    let (store, shown) = (home.path.display(), cluster.display());
    match (home.is_new, !cluster.exists()) {
        (true, true) => {
            Some(format!("{store} is new: an empty store is begun there, and a new cluster in {shown}"))
        }
        (true, false) => {
            Some(format!("{store} is new: an empty store is begun there, for the cluster in {shown}"))
        }
        (false, true) => {
            Some(format!("{shown} was not there: a new cluster is begun in it, with the store {store}"))
        }
        (false, false) => None,
    }
}

/// Where to listen, and what to tell others.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    listen: IpAddr,
    advertise: IpAddr,
}

impl Addresses {
    /// A cluster within one machine listens on loopback unless told otherwise: the protocol knows no passwords.
    fn of(options: &Options, spans_machines: bool) -> Addresses {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let otherwise = if spans_machines { unspecified } else { loopback };
        let listen = options.bind.or(options.advertised).unwrap_or(otherwise);
        let advertise = match options.advertised {
            Some(advertised) => advertised,
            None if listen.is_unspecified() => loopback,
            None => listen,
        };
        Addresses { listen, advertise }
    }
}

/// A TCP port that is ours. Whoever connects is refused until [`Port::listen`].
struct Port {
    socket: TcpSocket,
    address: SocketAddr,
    purpose: &'static str,
}

impl Port {
    fn take(address: SocketAddr, purpose: &'static str) -> anyhow::Result<Port> {
        let bind = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Connections that a sheep had before are no hindrance; one that listens is.
            socket.set_reuseaddr(true)?;
            socket.bind(address).map(|()| socket)
        };
        let bound: io::Result<TcpSocket> = bind();
        let socket = bound.with_context(|| format!("cannot listen on {address}{purpose}"))?;
        Ok(Port { socket, address, purpose })
    }

    /// Fails if two have taken the port, neither of which listened yet, and the other was faster.
    fn listen(self) -> anyhow::Result<TcpListener> {
        let Port { socket, address, purpose } = self;
        socket.listen(PENDING_MAX).with_context(|| format!("cannot listen on {address}{purpose}"))
    }
}

/// A socket in the store directory, in which we are. We hold its lock: one that is there is a dead sheep's.
fn listen_unix(name: &str) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(name),
    }
    .with_context(|| format!("cannot listen on {name} in the store directory"))
}

/// Everybody who comes to the sheep's port: other sheep, who say so first, and native clients.
async fn accept(listener: TcpListener, own: NodeId, shell: Shell, fronts: Fronts) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (shell, fronts) = (shell.clone(), fronts.clone());
        spawn_local(async move {
            let mut first = [0; 1];
            match stream.peek(&mut first).await {
                Ok(1) if first[0] == HELLO_MAGIC[0] => serve_peer(stream, from, own, shell).await,
                Ok(1) => {
                    let begun = stream.into_std().and_then(|s| fronts.begin(&shell, Front::NativeTcp(s)));
                    if let Err(error) = begun {
                        tracing::warn!("cannot serve native client {from}: {error}");
                    }
                }
                _ => {}
            }
        });
    }
}

async fn serve_peer(stream: TcpStream, from: SocketAddr, own: NodeId, shell: Shell) {
    let mut receiver = match Receiver::accept(stream, own).await {
        Ok(receiver) => receiver,
        Err(error) => return tracing::warn!("a caller from {from} that is no peer: {error}"),
    };
    let peer = receiver.from;
    let link = shell.begin_peer_link(peer);
    loop {
        match receiver.receive().await {
            Ok(Some(message)) => {
                if !shell.handle_peer(peer, link, message).await {
                    return tracing::debug!("an earlier link of peer {peer} ends");
                }
            }
            Ok(None) => return tracing::debug!("peer {peer} has closed its link"),
            // Closing tells the peer, which sends again what is still wanted.
            Err(error) => return tracing::warn!("link from peer {peer} dropped: {error}"),
        }
    }
}

/// A program that is broken must not go on answering: its memory may be wrong, and its copies are elsewhere.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        tracing::error!("panic at {place}: {text}");
        eprintln!("panic at {place}: {text}\n{}", std::backtrace::Backtrace::capture());
        std::process::abort();
    }));
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(OPEN_FILES_WANTED), maximum: Some(OPEN_FILES_WANTED) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let all = Rlimit { current: now.maximum, maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, all) {
            tracing::warn!("cannot raise the number of open files: {error}");
        }
    }
}

fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open(Path::new("/dev/urandom"))?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Invocation, parse};

    #[test]
    fn nobody_outside_is_served_unless_asked_for() {
        let check = |line: &str, spans_machines, listen: &str, advertise: &str| {
            let args = line.split_whitespace().map(std::ffi::OsString::from);
            let Ok(Invocation::Run(options)) = parse(args) else { panic!("{line}") };
            let expect = Addresses { listen: listen.parse().unwrap(), advertise: advertise.parse().unwrap() };
            assert_eq!(Addresses::of(&options, spans_machines), expect, "{line}");
        };
        check("", false, "127.0.0.1", "127.0.0.1");
        check("-b 0.0.0.0", false, "0.0.0.0", "127.0.0.1");
        check("-b 10.0.0.1", false, "10.0.0.1", "10.0.0.1");
        check("-y 10.0.0.1", false, "10.0.0.1", "10.0.0.1");
        check("-b :: -y 10.0.0.1", false, "::", "10.0.0.1");
        check("", true, "0.0.0.0", "127.0.0.1");
        check("-y 10.0.0.1", true, "10.0.0.1", "10.0.0.1");
    }
}

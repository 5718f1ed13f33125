//! The daemon's options: what they mean and what is refused.
//!
//! Every option of the original is in the table; those that this daemon cannot honour are refused by name, since an
//! option that is silently ignored is worse than one that is missing.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use proto::ZoneId;

use crate::getopt::{GetoptError, Item, Opt, name, split};

const fn opt(short: char, long: &'static str, has_value: bool, help: &'static str) -> Opt {
    Opt { short: Some(short), long, has_value, help }
}

const NOT_SUPPORTED: &str = "";

/// In the order of `sheep -h`. No help text: known, and refused.
static TABLE: [Opt; 29] = [
    opt('b', "bindaddr", true, "specify IP address of interface to listen on"),
    opt('c', "cluster", true, "specify the cluster driver (default: local)"),
    Opt {
        short: None,
        long: "cache",
        has_value: true,
        help: "specify the memory for blocks of snapshots, which clones share (default: 64M)",
    },
    opt('D', "directio", false, NOT_SUPPORTED),
    Opt {
        short: None,
        long: "disk-size",
        has_value: true,
        help: "specify how much space a new store may take (default: 1/16 of the file system)",
    },
    Opt {
        short: None,
        long: "disk-timeout",
        has_value: true,
        help: "specify after how many seconds a disk that does not answer has failed (default: 30)",
    },
    opt('f', "foreground", false, "make the program run in foreground"),
    opt('g', "gateway", false, "make the program run as a gateway node"),
    opt('h', "help", false, "display this help and exit"),
    opt('i', "ioaddr", true, NOT_SUPPORTED),
    Opt {
        short: None,
        long: "io-threads",
        has_value: true,
        help: "specify the number of threads for I/O; beyond the first they serve clients (default: 1)",
    },
    opt('j', "journal", true, NOT_SUPPORTED),
    opt('l', "log", true, "specify the log level, the log directory and the log format"),
    opt('n', "nosync", false, NOT_SUPPORTED),
    Opt {
        short: None,
        long: "nbd",
        has_value: true,
        help: "serve NBD on [ADDRESS:]PORT (default address: 127.0.0.1)",
    },
    opt('p', "port", true, "specify the TCP port on which to listen"),
    opt('P', "pidfile", true, "create a pid file"),
    opt('r', "http", true, NOT_SUPPORTED),
    opt('R', "recovery", true, NOT_SUPPORTED),
    opt('u', "upgrade", false, NOT_SUPPORTED),
    opt('v', "version", false, "show the version"),
    opt('V', "vnodes", true, NOT_SUPPORTED),
    Opt {
        short: None,
        long: "vhost-user",
        has_value: true,
        help: "serve attached VDIs by vhost-user sockets in this directory",
    },
    opt('w', "wq-threads", true, NOT_SUPPORTED),
    opt('W', "wildcard-recovery", false, NOT_SUPPORTED),
    Opt {
        short: None,
        long: "writeback",
        has_value: false,
        help: "acknowledge writes when all copies have them in memory; they are durable at flush",
    },
    opt('x', "max-dynamic-threads", true, NOT_SUPPORTED),
    opt('y', "myaddr", true, "specify the address advertised to other sheep"),
    opt('z', "zone", true, "specify the zone id"),
];

pub const DEFAULT_PORT: u16 = 7000;
/// Enough for what guests read of their image while they boot, and half of what a sheep may take without it.
const DEFAULT_CACHE_BYTES: u64 = 64 << 20;
const IO_THREADS_MAX: u64 = 64;
/// A disk in trouble may take as long for its own attempts; guests wait that long at most before others go on.
const DISK_TIMEOUT: Duration = Duration::from_secs(30);
const DISK_TIMEOUT_SECONDS_MAX: u64 = 3600;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    Help,
    Version,
    Run(Box<Options>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub bind: Option<IpAddr>,
    /// Memory for blocks of snapshots. 0: none.
    pub cache_bytes: u64,
    pub driver: DriverChoice,
    /// Of a store that is made at this start.
    pub disk_size_bytes: Option<u64>,
    pub disk_timeout: Duration,
    pub foreground: bool,
    pub gateway: bool,
    /// The first is the data plane's; it serves clients as well if there is no other.
    pub io_threads: usize,
    pub log: LogOptions,
    pub nbd: Option<SocketAddr>,
    pub port: u16,
    pub pid_file: Option<PathBuf>,
    pub advertised: Option<IpAddr>,
    /// Where vhost-user sockets are made.
    pub vhost_user: Option<PathBuf>,
    /// Writes of its NBD and vhost-user clients are durable at their next flush only.
    pub write_back: bool,
    pub zone: Option<ZoneId>,
    /// Configuration, log and sockets.
    pub directory: PathBuf,
    /// Where objects live, if not in `directory`: another directory, a file or a block device.
    pub disk: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// `None`: beside the store directory.
    Local { directory: Option<PathBuf> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    pub level: LogLevel,
    pub directory: Option<PathBuf>,
    pub format: LogFormat,
    pub destination: LogDestination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The message alone.
    Default,
    Server,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDestination {
    File,
    Stdout,
}

/// Why a command line was refused: text for stderr.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(pub String);

fn refuse<T>(text: impl Into<String>) -> Result<T, OptionError> {
    Err(OptionError(text.into()))
}

pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, OptionError> {
    let (items, error) = split(&TABLE, args);
    for item in &items {
        match item {
            Item::Option(opt, _) if opt.short == Some('h') => return Ok(Invocation::Help),
            Item::Option(opt, _) if opt.short == Some('v') => return Ok(Invocation::Version),
            _ => {}
        }
    }
    if let Some(error) = error {
        return refuse(match &error {
            GetoptError::NeedsValue(opt) => format!("{error}{}", example(opt)),
            _ => format!("{error}\nTry 'sheep --help' for more information."),
        });
    }
    let mut options = Options {
        bind: None,
        cache_bytes: DEFAULT_CACHE_BYTES,
        io_threads: 1,
        driver: DriverChoice::Local { directory: None },
        disk_size_bytes: None,
        disk_timeout: DISK_TIMEOUT,
        foreground: false,
        gateway: false,
        log: LogOptions {
            level: LogLevel::Info,
            directory: None,
            format: LogFormat::Server,
            destination: LogDestination::File,
        },
        nbd: None,
        port: DEFAULT_PORT,
        pid_file: None,
        advertised: None,
        vhost_user: None,
        write_back: false,
        zone: None,
        directory: PathBuf::from("/tmp"),
        disk: None,
    };
    let vnodes_given = items.iter().any(|item| matches!(item, Item::Option(opt, _) if opt.long == "vnodes"));
    let mut positionals = Vec::new();
    for item in items {
        match item {
            Item::Positional(value) => positionals.push(value),
            Item::Option(opt, value) => set(&mut options, opt, &value)?,
        }
    }
    if options.gateway && vnodes_given {
        return refuse("Options '-g' and '-V' can not be both specified");
    }
    if vnodes_given {
        return refuse("Option '-V' (--vnodes) is not supported: sheep are weighted by their disk space");
    }
    if options.log.destination == LogDestination::Stdout {
        if options.log.directory.is_some() {
            return refuse("A log directory can be given only together with the destination 'default'");
        }
        options.foreground = true;
    }
    match &positionals[..] {
        [] => {}
        [path] => set_path(&mut options, path)?,
        [_, second, ..] => return refuse(format!("Unexpected argument '{}'", second.display())),
    }
    if options.gateway && options.disk.is_some() {
        return refuse("A gateway ('-g') stores nothing: give it one directory and no disks");
    }
    Ok(Invocation::Run(Box::new(options)))
}

fn set(options: &mut Options, opt: &'static Opt, value: &OsStr) -> Result<(), OptionError> {
    let text = value.to_string_lossy();
    match opt.long {
        "bindaddr" => options.bind = Some(address(&text)?),
        "cache" => options.cache_bytes = size(&text)?,
        "cluster" => options.driver = driver(value)?,
        "disk-size" => options.disk_size_bytes = Some(size(&text)?),
        "disk-timeout" => {
            let seconds = number(&text, 1, DISK_TIMEOUT_SECONDS_MAX).ok_or_else(|| {
                OptionError(format!(
                    "Invalid disk timeout '{text}': must be a number of seconds between 1 and {DISK_TIMEOUT_SECONDS_MAX}"
                ))
            })?;
            options.disk_timeout = Duration::from_secs(seconds);
        }
        "foreground" => options.foreground = true,
        "gateway" => options.gateway = true,
        "io-threads" => {
            let threads = number(&text, 1, IO_THREADS_MAX).ok_or_else(|| {
                OptionError(format!(
                    "Invalid number of I/O threads '{text}': must be between 1 and {IO_THREADS_MAX}"
                ))
            })?;
            options.io_threads = threads as usize;
        }
        "log" => set_log(&mut options.log, value)?,
        "nbd" => options.nbd = Some(nbd_address(&text)?),
        "port" => {
            options.port = number(&text, 1, u16::MAX.into())
                .map(|n| n as u16)
                .ok_or_else(|| OptionError(format!("Invalid port number '{text}'")))?;
        }
        "pidfile" if value.is_empty() => return refuse("The name of the pid file is empty"),
        "pidfile" => options.pid_file = Some(value.into()),
        "myaddr" => options.advertised = Some(resolve(&text)?),
        "zone" => {
            let max = u32::MAX;
            let zone = number(&text, 0, max.into()).ok_or_else(|| {
                OptionError(format!("Invalid zone id '{text}': must be an integer between 0 and {max}"))
            })?;
            options.zone = Some(ZoneId(zone as u32));
        }
        "vhost-user" if value.is_empty() => return refuse("The directory of vhost-user sockets is empty"),
        "vhost-user" => options.vhost_user = Some(value.into()),
        "writeback" => options.write_back = true,
        // Whether it can be had at all is decided when all options are known.
        "vnodes" => {
            let max = u16::MAX;
            number(&text, 1, max.into()).ok_or_else(|| {
                OptionError(format!(
                    "Invalid number of vnodes '{text}': must be an integer between 1 and {max}"
                ))
            })?;
        }
        _ => return refuse(not_supported(opt)),
    }
    Ok(())
}

fn not_supported(opt: &Opt) -> String {
    let why = match opt.long {
        "directio" => "the disks are always used without the page cache",
        "journal" => "the store keeps a journal of its own, always",
        "nosync" => "what is flushed is always on stable storage; see --writeback",
        "wq-threads" | "max-dynamic-threads" => "there are no thread pools to size",
        "wildcard-recovery" => "the cluster's state tells where objects are",
        "upgrade" => "stores of other versions cannot be converted",
        _ => "this version does not have it",
    };
    format!("Option '{}' (--{}) is not supported: {why}", name(opt), opt.long)
}

/// A complete decimal number: `42a`, `+1`, `-1` and the empty string are none.
fn number(text: &str, min: u64, max: u64) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| (min..=max).contains(n))
}

/// A decimal number, perhaps with a fraction, and one letter: `1.5G`. Whole mebibytes, rounded down.
fn size(text: &str) -> Result<u64, OptionError> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            let shift = "BKMGTP".find(letter.to_ascii_uppercase()).map(|power| 10 * power as u32);
            (&text[..at], shift)
        }
        _ => (text, Some(0)),
    };
    let plain = number.starts_with(|c: char| c.is_ascii_digit())
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match (number.parse::<f64>(), shift) {
        (Ok(number), Some(shift)) if plain => {
            // Beyond 2^64 the conversion yields the largest number, which no disk has.
            Ok((number * f64::from(shift).exp2()) as u64 >> 20 << 20)
        }
        _ => refuse(format!(
            "Invalid size '{text}'\nValid suffixes: B, K, M, G, T and P, powers of 1024, as in 1.5G"
        )),
    }
}

fn address(text: &str) -> Result<IpAddr, OptionError> {
    text.parse().or_else(|_| refuse(format!("Invalid address '{text}': must be an IPv4 or IPv6 address")))
}

fn resolve(text: &str) -> Result<IpAddr, OptionError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        if ip.is_unspecified() || ip.is_multicast() {
            return refuse(format!("Invalid address '{text}': other sheep cannot connect to it"));
        }
        return Ok(ip);
    }
    match (text, 0u16).to_socket_addrs().ok().and_then(|mut found| found.next()) {
        Some(found) => Ok(found.ip()),
        None => refuse(format!("Invalid address '{text}': cannot be resolved")),
    }
}

/// `[ADDRESS:]PORT`; an IPv6 address in brackets.
fn nbd_address(text: &str) -> Result<SocketAddr, OptionError> {
    let (ip, port) = match text.rsplit_once(':') {
        None => (Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)), text),
        Some((ip, port)) => {
            (ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip).parse::<IpAddr>(), port)
        }
    };
    match (ip, number(port, 1, u16::MAX.into())) {
        (Ok(ip), Some(port)) => Ok(SocketAddr::new(ip, port as u16)),
        _ => refuse(format!("Invalid NBD address '{text}': must be [ADDRESS:]PORT")),
    }
}

fn driver(value: &OsStr) -> Result<DriverChoice, OptionError> {
    let bytes = value.as_bytes();
    if bytes == b"local" {
        return Ok(DriverChoice::Local { directory: None });
    }
    match bytes.strip_prefix(b"local:") {
        Some(b"") => refuse("The cluster driver 'local:' names no directory"),
        Some(directory) => Ok(DriverChoice::Local { directory: Some(OsStr::from_bytes(directory).into()) }),
        None => refuse(format!("Invalid cluster driver '{}'\nSupported drivers: local", value.display())),
    }
}

fn set_log(log: &mut LogOptions, value: &OsStr) -> Result<(), OptionError> {
    for part in value.as_bytes().split(|b| *b == b',') {
        let Some(at) = part.iter().position(|b| *b == b'=') else {
            return refuse(format!(
                "Invalid log option '{}'{LOG_EXAMPLE}",
                OsStr::from_bytes(part).display()
            ));
        };
        let (key, value) = (&part[..at], &part[at + 1..]);
        let text = String::from_utf8_lossy(value);
        match key {
            b"level" => {
                log.level = match value {
                    b"emerg" | b"alert" | b"crit" | b"err" => LogLevel::Error,
                    b"warning" => LogLevel::Warn,
                    b"notice" | b"info" => LogLevel::Info,
                    b"debug" => LogLevel::Debug,
                    _ => {
                        return refuse(format!(
                            "Invalid log level '{text}'\n\
                             Available log levels: emerg alert crit err warning notice info debug"
                        ));
                    }
                }
            }
            b"dir" if value.is_empty() => return refuse("The log directory is empty"),
            b"dir" => log.directory = Some(OsStr::from_bytes(value).into()),
            b"format" => {
                log.format = match value {
                    b"default" => LogFormat::Default,
                    b"server" => LogFormat::Server,
                    b"json" => LogFormat::Json,
                    _ => {
                        return refuse(format!(
                            "Invalid log format '{text}'\nAvailable log formats: default server json"
                        ));
                    }
                }
            }
            b"dst" => {
                log.destination = match value {
                    b"default" => LogDestination::File,
                    b"stdout" => LogDestination::Stdout,
                    b"syslog" => {
                        return refuse("The log destination 'syslog' is not supported by this version");
                    }
                    _ => {
                        return refuse(format!(
                            "Invalid log destination '{text}'\nAvailable log destinations: default stdout"
                        ));
                    }
                }
            }
            _ => {
                let key = String::from_utf8_lossy(key);
                return refuse(format!("Invalid log option '{key}'{LOG_EXAMPLE}"));
            }
        }
    }
    Ok(())
}

/// `DIRECTORY`, or `META,DISK`.
fn set_path(options: &mut Options, path: &OsStr) -> Result<(), OptionError> {
    let parts: Vec<&[u8]> = path.as_bytes().split(|b| *b == b',').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return refuse(format!("Invalid path '{}'", path.display()));
    }
    let path_of = |part: &[u8]| PathBuf::from(OsStr::from_bytes(part));
    match parts[..] {
        [directory] => options.directory = path_of(directory),
        [directory, disk] => {
            options.directory = path_of(directory);
            options.disk = Some(path_of(disk));
        }
        _ => return refuse("More than one disk per sheep is not supported: run one sheep for each disk"),
    }
    Ok(())
}

const LOG_EXAMPLE: &str = "\nExample:\n\t$ sheep -l level=debug,dir=/var/log,format=server ...";

/// What `sheep -X` prints where X lacks its argument.
fn example(opt: &Opt) -> &'static str {
    match opt.long {
        "log" => LOG_EXAMPLE,
        "cluster" => "\nExample:\n\t$ sheep -c local:/var/lib/sheepdog/cluster ...",
        "nbd" => "\nExample:\n\t$ sheep --nbd 0.0.0.0:10809 ...",
        "vhost-user" => "\nExample:\n\t$ sheep --vhost-user /run/sheepdog ...",
        _ => "\nTry 'sheep --help' for more information.",
    }
}

pub fn version_text() -> String {
    format!(
        "Sheepdog daemon version {}\n\nSupported features:\n\tCluster drivers: local\n\tMiscellaneous: none\n",
        env!("CARGO_PKG_VERSION")
    )
}

pub fn help_text() -> String {
    let mut text = format!(
        "Sheepdog daemon (version {})\nUsage: sheep [OPTION]... [PATH] (default: /tmp)\nOptions:\n",
        env!("CARGO_PKG_VERSION")
    );
    for opt in TABLE.iter().filter(|opt| opt.help != NOT_SUPPORTED) {
        let short = opt.short.map_or_else(|| "   ".to_string(), |short| format!("-{short},"));
        text += &format!("  {short} --{:<18}{}\n", opt.long, opt.help);
    }
    text + "\nOptions with several parts show them when they are given without an argument, as in 'sheep -l'.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Options, String> {
        let args = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from);
        match parse(args) {
            Ok(Invocation::Run(options)) => Ok(*options),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.0),
        }
    }

    fn refused(line: &str, expect: &str) {
        let text = run(line).expect_err(line);
        assert_eq!(text.lines().next().unwrap(), expect, "{line}");
    }

    #[test]
    fn every_option_reaches_its_field() {
        let defaults = run("").unwrap();
        assert_eq!((defaults.port, defaults.directory.to_str()), (7000, Some("/tmp")));
        assert!(!defaults.write_back);
        assert_eq!(defaults.cache_bytes, 64 << 20);
        let options = run("/meta,/dev/sdb -b :: -c local:/c -fg -p 7001 -P /pid -y 10.0.0.1 -z 4294967295");
        assert_eq!(
            options,
            Err("A gateway ('-g') stores nothing: give it one directory and no disks".into())
        );
        let options = run(
            "/m,/dev/sdb -b :: -c local:/c -f -p 7001 -P /pid -y 10.0.0.1 -z 4294967295 --nbd 10809 --vhost-user /v --writeback --disk-size 1.5G --disk-timeout 7 --cache 2G --io-threads 3 \
             -l level=debug,dir=/log,format=json",
        );
        let expect = Options {
            bind: Some("::".parse().unwrap()),
            cache_bytes: 2 << 30,
            driver: DriverChoice::Local { directory: Some("/c".into()) },
            disk_size_bytes: Some(1536 << 20),
            disk_timeout: Duration::from_secs(7),
            foreground: true,
            gateway: false,
            io_threads: 3,
            log: LogOptions {
                level: LogLevel::Debug,
                directory: Some("/log".into()),
                format: LogFormat::Json,
                destination: LogDestination::File,
            },
            nbd: Some("127.0.0.1:10809".parse().unwrap()),
            port: 7001,
            pid_file: Some("/pid".into()),
            advertised: Some("10.0.0.1".parse().unwrap()),
            vhost_user: Some("/v".into()),
            write_back: true,
            zone: Some(ZoneId(u32::MAX)),
            directory: "/m".into(),
            disk: Some("/dev/sdb".into()),
        };
        assert_eq!(options, Ok(expect));
        assert!(run("-l dst=stdout").unwrap().foreground);
        assert_eq!(run("--nbd [::1]:5").unwrap().nbd, Some("[::1]:5".parse().unwrap()));
    }

    #[test]
    fn wrong_values_are_refused_in_the_known_words() {
        for port in ["0", "65536", "42a", "+1", "-1", ""] {
            refused(&format!("-p={port}"), &format!("Invalid port number '={port}'"));
            refused(&format!("--port={port}"), &format!("Invalid port number '{port}'"));
        }
        for seconds in ["0", "3601", "1.5", "-1", ""] {
            refused(
                &format!("--disk-timeout={seconds}"),
                &format!("Invalid disk timeout '{seconds}': must be a number of seconds between 1 and 3600"),
            );
        }
        refused("-z a", "Invalid zone id 'a': must be an integer between 0 and 4294967295");
        refused("-z 4294967296", "Invalid zone id '4294967296': must be an integer between 0 and 4294967295");
        refused("-V 0", "Invalid number of vnodes '0': must be an integer between 1 and 65535");
        refused("-g -V 3", "Options '-g' and '-V' can not be both specified");
        refused("-b host", "Invalid address 'host': must be an IPv4 or IPv6 address");
        refused("-y 0.0.0.0", "Invalid address '0.0.0.0': other sheep cannot connect to it");
        refused("-c corosync", "Invalid cluster driver 'corosync'");
        refused("-l level=loud", "Invalid log level 'loud'");
        refused("-l format=xml", "Invalid log format 'xml'");
        refused("-l dst=mail", "Invalid log destination 'mail'");
        refused(
            "-l dir=/x,dst=stdout",
            "A log directory can be given only together with the destination 'default'",
        );
        refused("-l colour=red", "Invalid log option 'colour'");
        refused("-l debug", "Invalid log option 'debug'");
        for size in ["12X", "", "1KB", "-1", "G", ".", "1e3", "inf"] {
            refused(&format!("--disk-size={size}"), &format!("Invalid size '{size}'"));
        }
        refused("--nbd x", "Invalid NBD address 'x': must be [ADDRESS:]PORT");
        refused("/a,/b,/c", "More than one disk per sheep is not supported: run one sheep for each disk");
        refused("/a /b", "Unexpected argument '/b'");
        refused("-Z", "unrecognized option '-Z'");
        refused("-l", "option '-l' requires an argument");
    }

    #[test]
    fn options_that_cannot_be_honoured_are_named() {
        for option in [
            "-D",
            "-i host=a",
            "-j size=64M",
            "-n",
            "-r x",
            "-R max=1",
            "-u",
            "-w net=1",
            "-W",
            "-x 3",
            "-V 4",
        ] {
            let text = run(option).expect_err(option);
            let name = &option[..2];
            assert!(text.starts_with(&format!("Option '{name}' (--")), "{text}");
            assert!(text.contains("is not supported: "), "{text}");
        }
    }

    #[test]
    fn help_and_version_win_over_later_mistakes() {
        assert!(run("-h -Z").unwrap_err().starts_with("Help"));
        assert!(run("-p x -v").unwrap_err().starts_with("Version"));
        assert!(version_text().contains("\n\tCluster drivers: local\n\tMiscellaneous: none\n"));
        assert!(
            help_text().contains("\n  -p, --port              specify the TCP port on which to listen\n")
        );
        assert!(!help_text().contains("journal"));
    }
}

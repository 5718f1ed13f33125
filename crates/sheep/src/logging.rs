//! The log: one line per event, to `sheep.log` or to stdout.
//!
//! The file is set aside (`sheep.log.YYYY-MM-DD-HH-MM`) and a new one begun on SIGHUP and when it has become large. Every
//! line is written at once, so that the last words of a daemon are not lost. What repeats without end is written now and
//! then only ([`bound`]); lines of level debug are all written, as whoever sets that level asks for.

mod bound;

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

use crate::options::{LogFormat, LogLevel};

use bound::Bounds;

const FILE_BYTES_MAX: u64 = 500 << 20;

/// Where lines go. Clones share it.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Sink>>);

struct Sink {
    out: Out,
    written: u64,
}

enum Out {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Log {
    pub fn to_stdout() -> Log {
        Log(Arc::new(Mutex::new(Sink { out: Out::Stdout, written: 0 })))
    }

    pub fn to_file(path: PathBuf) -> io::Result<Log> {
        let file = open(&path)?;
        let written = file.metadata()?.len();
        Ok(Log(Arc::new(Mutex::new(Sink { out: Out::File { path, file }, written }))))
    }

    /// Becomes the log of the whole process.
    pub fn install(&self, level: LogLevel, format: LogFormat, port: u16) {
        let level = match level {
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        };
        let lines = Lines { log: self.clone(), level, format, port, bounds: Bounds::new(Instant::now) };
        // Only a test that runs in one process with another can have installed one before.
        let _ = registry().with(lines).try_init();
    }

    /// Sets the file aside and begins a new one.
    pub fn rotate(&self) -> io::Result<()> {
        self.sink().rotate()
    }

    fn write(&self, line: &str) {
        let mut sink = self.sink();
        // There is nobody left to tell about a log that cannot be written.
        let _ = match &mut sink.out {
            Out::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Out::File { file, .. } => file.write_all(line.as_bytes()),
        };
        sink.written += line.len() as u64;
        if sink.written > FILE_BYTES_MAX {
            let _ = sink.rotate();
        }
    }

    fn sink(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    fn rotate(&mut self) -> io::Result<()> {
        self.written = 0;
        let Out::File { path, file } = &mut self.out else { return Ok(()) };
        let now = LocalTime::of(SystemTime::now());
        let stamp =
            format!("{:04}-{:02}-{:02}-{:02}-{:02}", now.year, now.month, now.day, now.hour, now.minute);
        let aside = PathBuf::from(format!("{}.{stamp}", path.display()));
        match fs::rename(&*path, aside) {
            // Somebody (logrotate) has taken it away already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        *file = open(path)?;
        Ok(())
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

/// Turns events into lines.
struct Lines {
    log: Log,
    level: Level,
    format: LogFormat,
    port: u16,
    bounds: Bounds,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.level
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_bounded = *metadata.level() < Level::DEBUG;
        let leave = is_bounded.then(|| self.bounds.take(metadata.callsite()));
        if leave == Some(None) {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        if let Some(leave) = leave.flatten() {
            write!(message.fields, "{leave}").expect("writing to a String does not fail");
        }
        self.log.write(&self.render(event, &message.finish(), SystemTime::now()));
    }
}

impl Lines {
    fn render(&self, event: &Event<'_>, message: &str, now: SystemTime) -> String {
        let metadata = event.metadata();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("main");
        let place = metadata.module_path().unwrap_or(metadata.target());
        let line = metadata.line().unwrap_or(0);
        match self.format {
            LogFormat::Default => format!("{message}\n"),
            LogFormat::Server => {
                let time = LocalTime::of(now);
                let level = match *metadata.level() {
                    Level::ERROR => "ERROR",
                    Level::WARN => "WARN",
                    Level::INFO => "INFO",
                    _ => "DEBUG",
                };
                format!("{time} {level:>6} [{thread}] {place}({line}) {message}\n")
            }
            LogFormat::Json => {
                let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
                let mut text =
                    format!("{{\"user_info\": {{\"program_name\": \"sheep\", \"port\": {}}},", self.port);
                let _ = write!(
                    text,
                    " \"body\": {{\"second\": {}, \"usecond\": {}, \"worker_name\": ",
                    since.as_secs(),
                    since.subsec_micros()
                );
                push_json(&mut text, thread);
                text += ", \"worker_idx\": 0, \"func\": ";
                push_json(&mut text, place);
                let _ = write!(text, ", \"line\": {line}, \"msg\": ");
                push_json(&mut text, message);
                text + "}}\n"
            }
        }
    }
}

/// The message of an event, then its other fields.
#[derive(Default)]
struct Message {
    message: String,
    fields: String,
}

impl Message {
    fn finish(self) -> String {
        // One event, one line: a name with a newline in it must not look like two.
        (self.message + &self.fields).replace('\n', "\\n")
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }
}

fn push_json(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

struct LocalTime {
    year: i32,
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
}

impl LocalTime {
    fn of(time: SystemTime) -> LocalTime {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as libc::time_t;
        // SAFETY: plain numbers and a pointer, for all of which zero is a valid value.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both point to values that live through the call; the re-entrant form keeps no state.
        unsafe { libc::localtime_r(&seconds, &mut tm) };
        LocalTime {
            year: tm.tm_year + 1900,
            month: tm.tm_mon + 1,
            day: tm.tm_mday,
            hour: tm.tm_hour,
            minute: tm.tm_min,
            second: tm.tm_sec,
        }
    }
}

/// `Nov 22 11:22:54`
impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let month = MONTHS.get((self.month - 1) as usize).unwrap_or(&"???");
        write!(f, "{month} {:2} {:02}:{:02}:{:02}", self.day, self.hour, self.minute, self.second)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    fn lines(format: LogFormat, emit: impl FnOnce()) -> String {
        lines_at(format, Level::INFO, Instant::now, emit)
    }

    fn lines_at(
        format: LogFormat,
        level: Level,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
        emit: impl FnOnce(),
    ) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheep.log");
        let log = Log::to_file(path.clone()).unwrap();
        let layer = Lines { log, level, format, port: 7000, bounds: Bounds::new(clock) };
        tracing::subscriber::with_default(registry().with(layer), emit);
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn formats_are_those_that_scripts_know() {
        let emit = || {
            tracing::info!(vid = 7, "a \"name\"\nwith a newline");
            tracing::debug!("below the level");
        };
        assert_eq!(lines(LogFormat::Default, emit), "a \"name\"\\nwith a newline, vid: 7\n");
        let server = lines(LogFormat::Server, emit);
        assert!(server.contains("   INFO ["), "{server}");
        assert!(server.contains("] sheep::logging::tests("), "{server}");
        let json = lines(LogFormat::Json, emit);
        assert!(
            json.starts_with("{\"user_info\": {\"program_name\": \"sheep\", \"port\": 7000}, \"body\": ")
        );
        assert!(json.ends_with("\"msg\": \"a \\\"name\\\"\\\\nwith a newline, vid: 7\"}}\n"), "{json}");
    }

    #[test]
    fn a_flood_from_one_place_costs_no_line_of_another() {
        let start = Instant::now();
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = {
            let seconds = seconds.clone();
            move || start + Duration::from_secs(seconds.load(Ordering::Relaxed))
        };
        let flood = |count| (0..count).for_each(|oid| tracing::error!(oid, "a read fails"));
        let text = lines_at(LogFormat::Default, Level::DEBUG, clock, || {
            flood(1000);
            tracing::error!("a write fails");
            (0..1000).for_each(|_| tracing::debug!("everything"));
            seconds.store(60, Ordering::Relaxed);
            flood(1000);
        });
        let count = |what: &str| text.lines().filter(|line| line.starts_with(what)).count();
        assert_eq!(count("a read fails"), 110, "a burst, and ten in the minute after it");
        assert_eq!(count("a write fails"), 1);
        assert_eq!(count("everything"), 1000, "as the level asks for");
        assert!(text.contains("a read fails, oid: 99, like_it_left_out_for: 6s\n"));
        assert!(text.contains("a read fails, oid: 0, like_it_left_out_before: 900\n"));
        assert!(text.contains("a read fails, oid: 9, like_it_left_out_for: 6s\n"));
    }

    #[test]
    fn a_rotated_log_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheep.log");
        let log = Log::to_file(path.clone()).unwrap();
        log.write("before\n");
        log.rotate().unwrap();
        log.write("after\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        let old = names.iter().find(|name| **name != path).unwrap();
        assert_eq!(fs::read_to_string(old).unwrap(), "before\n");
    }
}

//! Becoming a daemon: two forks, a new session, and a launcher that waits for the outcome.
//!
//! The launching process ends with 0 once the daemon listens, and with 1 and the reason on stderr if it cannot: scripts
//! learn from the exit status what is usually hidden in a log. Forking must come before any thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

/// Reports the outcome of starting, once.
pub struct Launch {
    /// To the launcher; `None` in the foreground.
    report: Option<File>,
}

const READY: u8 = 0;

pub enum Forked {
    /// This process is the daemon.
    Daemon(Launch),
    /// This process launched it, and ends so.
    Launcher(ExitCode),
}

/// Goes on in a daemon process.
///
/// # Safety
/// The process has one thread: the child of a fork finds every lock that another thread held locked for ever.
pub unsafe fn daemonise() -> io::Result<Forked> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: one thread, as the caller promises.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            let launch = Launch { report: Some(File::from(write)) };
            rustix::process::setsid()?;
            // SAFETY: as above. The second fork leaves the session leader behind, so that no terminal can become ours.
            match unsafe { libc::fork() } {
                -1 => {
                    launch.failed(&format!("cannot fork: {}", io::Error::last_os_error()));
                    std::process::exit(1)
                }
                0 => Ok(Forked::Daemon(launch)),
                // SAFETY: ends this process without running handlers that belong to the daemon.
                _ => unsafe { libc::_exit(0) },
            }
        }
        middle => {
            drop(write);
            let mut status = 0;
            // SAFETY: waits for our own child; `status` lives through the call.
            unsafe { libc::waitpid(middle, &mut status, 0) };
            Ok(Forked::Launcher(await_outcome(read)))
        }
    }
}

fn await_outcome(read: OwnedFd) -> ExitCode {
    let mut report = Vec::new();
    // It ends when the daemon has closed its end, at the latest with its life.
    let _ = File::from(read).read_to_end(&mut report);
    match report.split_first() {
        Some((&READY, _)) => ExitCode::SUCCESS,
        Some((_, text)) => {
            eprintln!("{}", String::from_utf8_lossy(text));
            ExitCode::FAILURE
        }
        None => {
            eprintln!("the daemon ended while starting");
            ExitCode::FAILURE
        }
    }
}

impl Launch {
    pub fn foreground() -> Launch {
        Launch { report: None }
    }

    /// The daemon listens. From here on the log is all that is heard of it.
    pub fn ready(self) -> io::Result<()> {
        let Some(mut report) = self.report else { return Ok(()) };
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for standard in 0..3 {
            // SAFETY: nobody in this program owns 0, 1 or 2 as a value that would close them.
            if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // The launcher may have been interrupted: the daemon goes on.
        let _ = report.write_all(&[READY]);
        Ok(())
    }

    pub fn failed(self, text: &str) {
        match self.report {
            Some(mut report) => {
                let _ = report.write_all(&[&[1], text.as_bytes()].concat());
            }
            None => eprintln!("{text}"),
        }
    }
}

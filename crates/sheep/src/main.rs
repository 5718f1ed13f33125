//! `sheep`, the daemon.

use std::process::ExitCode;

use sheep::launch::{Forked, Launch, daemonise};
use sheep::options::{Invocation, help_text, parse, version_text};
use sheep::serve;

/// Takes a tenth less of the processor than glibc's under a load of small writes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Help) => {
            print!("{}", help_text());
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Version) => {
            print!("{}", version_text());
            return ExitCode::SUCCESS;
        }
        Ok(Invocation::Run(options)) => *options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let setting = match serve::prepare(options) {
        Ok(setting) => setting,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    buffer::use_huge_pages();
    let launch = if setting.options.foreground {
        Launch::foreground()
    } else {
        // SAFETY: nothing so far has started a thread.
        match unsafe { daemonise() } {
            Ok(Forked::Daemon(launch)) => launch,
            Ok(Forked::Launcher(code)) => return code,
            Err(error) => {
                eprintln!("cannot become a daemon: {error}");
                return ExitCode::FAILURE;
            }
        }
    };
    serve::run(setting, launch)
}

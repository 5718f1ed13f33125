//! The program `dog`: hands its arguments and environment to the library.

use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = std::env::args_os().map(OsStringExt::into_vec).collect();
    ExitCode::from(dog::run(args, dog::Environment::from_process()))
}

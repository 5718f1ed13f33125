//! How a command ends badly: the exit code scripts test, and what is printed.

use std::io;

/// Exit codes of `dog`.
pub mod exit {
    pub const SUCCESS: u8 = 0;
    /// The request was understood and refused.
    pub const FAILURE: u8 = 1;
    /// No connection, no answer, or none that makes sense.
    pub const SYSTEM: u8 = 2;
    /// It is there already, and was to be new.
    pub const EXISTS: u8 = 3;
    /// What was to be read or changed is not there.
    pub const MISSING: u8 = 5;
    /// `dog node safe-to-stop`: everything would be served, with fewer copies. No failure of another kind has this code, or the next.
    pub const SHORT: u8 = 6;
    /// The same: writes would wait, or something could not be read.
    pub const NEEDED: u8 = 7;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// `dog node recovery set-throttle` and `get-throttle` did not reach their sheep, or were refused.
    pub const THROTTLE: u8 = 255;
}

/// A command that did not do what was asked.
///
/// `message` goes to stderr as it is, without program name or level: programs compare its beginning or end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// Without the last newline. Empty where everything has been said already.
    pub message: String,
    /// Print the subcommand's usage block as well.
    pub with_usage: bool,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn refused(message: impl Into<String>) -> Failure {
        Failure { code: exit::FAILURE, message: message.into(), with_usage: false }
    }

    pub fn system(message: impl Into<String>) -> Failure {
        Failure { code: exit::SYSTEM, message: message.into(), with_usage: false }
    }

    /// A wrong command line, such as a word too many or an option too few: answered with the usage block.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: exit::USAGE, message: message.into(), with_usage: true }
    }

    /// A value that makes no sense: the exit code of a wrong command line, but the block would not help.
    pub fn bad_value(message: impl Into<String>) -> Failure {
        Failure { code: exit::USAGE, message: message.into(), with_usage: false }
    }

    /// The end of a command that has printed why already.
    pub fn silent(code: u8) -> Failure {
        Failure { code, message: String::new(), with_usage: false }
    }
}

/// Results could not be written. A reader that has gone, as in `dog vdi list | head -1`, is no news.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(exit::SYSTEM),
            _ => Failure::system(format!("Failed to write the output: {}", reason(&error))),
        }
    }
}

/// An error of the system as strerror words it, which is what users and scripts know.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_string()
        }
        None if error.kind() == io::ErrorKind::TimedOut => "Connection timed out".to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_strerror() {
        assert_eq!(reason(&io::Error::from_raw_os_error(111)), "Connection refused");
        assert_eq!(reason(&io::Error::from(io::ErrorKind::TimedOut)), "Connection timed out");
    }

    #[test]
    fn a_reader_that_has_gone_is_not_reported() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::silent(2));
    }
}

//! Points in time as the commands print them: local time, in three fixed forms.

use std::ffi::CString;

/// A broken-down local time.
#[derive(Clone, Copy)]
pub struct LocalTime(libc::tm);

impl LocalTime {
    /// In the time zone that `TZ` or the system names. Times that libc cannot break down count as the epoch.
    pub fn from_seconds(seconds: u64) -> LocalTime {
        let time = libc::time_t::try_from(seconds).unwrap_or(0);
        // SAFETY: an all-zero `tm` is a valid one: integers, and a zone pointer that may be null.
        let mut broken_down: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals; localtime_r keeps neither.
        unsafe { libc::localtime_r(&time, &mut broken_down) };
        LocalTime(broken_down)
    }

    /// `2026-11-22 11:22`
    pub fn minutes(&self) -> String {
        self.format("%Y-%m-%d %H:%M")
    }

    /// `2026-11-22`
    pub fn date(&self) -> String {
        self.format("%Y-%m-%d")
    }

    /// `11:23:11`
    pub fn time_of_day(&self) -> String {
        self.format("%H:%M:%S")
    }

    /// `2026-11-22 11:23:11`
    pub fn seconds(&self) -> String {
        self.format("%Y-%m-%d %H:%M:%S")
    }

    /// `Sun Nov 22 11:23:11 2026`
    pub fn sentence(&self) -> String {
        self.format("%a %b %e %H:%M:%S %Y")
    }

    /// `2026 Nov 22 11:23:11 `, as the log of invocations has it.
    pub fn log(&self) -> String {
        self.format("%Y %b %e %H:%M:%S ")
    }

    fn format(&self, format: &str) -> String {
        let format = CString::new(format).expect("formats have no NUL");
        let mut text = [0u8; 64];
        // SAFETY: the buffer's true length is passed; the format is NUL-terminated; the `tm` came from localtime_r.
        // No locale was set, so names of days and months are English.
        let len = unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &self.0) };
        String::from_utf8_lossy(&text[..len]).into_owned()
    }
}

/// The seconds of a cluster's or VDI's time, which keeps nanoseconds in its low half.
pub fn seconds_of(time: u64) -> u64 {
    time >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_in_the_forms_of_the_original() {
        // Tests run in whatever zone the machine has: compare what does not depend on it.
        let time = LocalTime::from_seconds(1_795_347_607);
        assert_eq!(time.minutes().len(), "2026-11-22 11:22".len());
        assert!(time.seconds().starts_with(&time.minutes()));
        assert!(time.sentence().ends_with(" 2026"), "{}", time.sentence());
        assert_eq!(time.log().len(), "2026 Nov 22 11:40:07 ".len());
        assert_eq!(seconds_of(7 << 32 | 9), 7);
    }
}

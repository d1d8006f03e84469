//! How a process ended.

use std::fmt;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitStatus(Option<i32>);

impl ExitStatus {
    /// From what `waitpid` says.
    pub fn from_raw(raw: i32) -> Self {
        Self(Some(raw))
    }

    /// The process has ended, and nobody knows how: another one took the status, or its zygote
    /// died.
    pub const UNKNOWN: Self = Self(None);

    /// The exit code, if it ended by exiting.
    pub fn code(self) -> Option<i32> {
        self.0
            .filter(|raw| raw & 0x7f == 0)
            .map(|raw| raw >> 8 & 0xff)
    }

    /// The signal, if it was killed by one.
    pub fn signal(self) -> Option<i32> {
        self.0.map(|raw| raw & 0x7f).filter(|&signal| signal != 0)
    }

    /// Whether it exited with code 0.
    pub fn success(self) -> bool {
        self.code() == Some(0)
    }

    /// As Python has it: the exit code, minus the signal's number, or 255 if it is not known.
    pub fn as_python(self) -> i32 {
        match (self.code(), self.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => -signal,
            (None, None) => 255,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code(), self.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("an unknown exit code"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_codes_from_signals() {
        assert_eq!(ExitStatus::from_raw(5 << 8).code(), Some(5));
        assert_eq!(ExitStatus::from_raw(5 << 8).as_python(), 5);
        assert_eq!(ExitStatus::from_raw(9).as_python(), -9);
        assert_eq!(
            ExitStatus::from_raw(6 | 0x80).signal(),
            Some(6),
            "with a core dump"
        );
        assert_eq!(ExitStatus::UNKNOWN.as_python(), 255);
        assert!(ExitStatus::from_raw(0).success() && !ExitStatus::UNKNOWN.success());
    }
}

//! Watching processes from outside: their end, and a parent's.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::ExitStatus;
use crate::error::Result;
use crate::os::pidfd;
pub use crate::os::pidfd::{send_signal, wait_readable};
pub use crate::os::signal::die_with_parent;

/// A descriptor that is readable once process `pid` has ended (at once if there is none).
///
/// # Errors
/// The system's, when it is out of descriptors.
pub fn open(pid: u32) -> Result<OwnedFd> {
    pidfd::open(pid)
}

/// Waits for the end of a child, reaps it and says how it ended; `None` if the deadline passed.
///
/// A child that somebody else has reaped is not lost: this returns all the same, with the status
/// where the system keeps it (Linux 6.15), else with [`ExitStatus::UNKNOWN`].
///
/// # Errors
/// `is_interrupted()` when a signal came; waiting again is right.
pub fn wait(child: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
    if !pidfd::wait_readable(child, deadline)? {
        return Ok(None);
    }
    Ok(Some(
        pidfd::reap(child).map_or(ExitStatus::UNKNOWN, ExitStatus::from_raw),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn an_end_is_told_even_if_others_took_it() {
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let fd = open(child.id()).unwrap();
        assert_eq!(wait(fd.as_fd(), None).unwrap().unwrap().code(), Some(7));
        let again = wait(fd.as_fd(), None).unwrap().unwrap();
        assert!(again.code() == Some(7) || again == ExitStatus::UNKNOWN);
        drop(child);
    }
}

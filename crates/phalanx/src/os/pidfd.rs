//! Descriptors of processes: waiting, signalling and learning the end, safe against reuse of pids.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::error::{Error, Result};

/// A descriptor of process `pid`, readable when that has ended.
///
/// If there is no such process any more, the descriptor is one that is readable for ever.
///
/// # Errors
/// The system's, when it is out of descriptors or knows no pidfds.
pub(crate) fn open(pid: u32) -> Result<OwnedFd> {
    let gone = || eventfd(1, EventfdFlags::CLOEXEC);
    let fd = match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        None => gone(),
        Some(pid) => match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => gone(),
            other => other,
        },
    };
    fd.map_err(|e| Error::os(format!("process {pid} cannot be watched"), e))
}

/// Waits until `fd` is readable (or at its end); false if the deadline passed first.
///
/// # Errors
/// `is_interrupted()` when a signal came; waiting again is right.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        return match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if left.is_some_and(|left| !left.is_zero()) => continue,
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Err(Error::interrupted()),
            Err(e) => Err(Error::os("a descriptor cannot be waited for", e)),
        };
    }
}

/// Reaps the ended child behind `fd`; its status as `waitpid` gives it.
///
/// `None` if somebody else has reaped it and the system does not keep the status (before Linux
/// 6.15), or if it is no child of this process. Does not block: a child that runs is `None` too.
pub(crate) fn reap(fd: BorrowedFd<'_>) -> Option<i32> {
    status(fd, WaitIdOptions::empty())
}

/// Like [`reap`], but the child stays a zombie: its pid can mean no other process.
pub(crate) fn look(fd: BorrowedFd<'_>) -> Option<i32> {
    status(fd, WaitIdOptions::NOWAIT)
}

fn status(fd: BorrowedFd<'_>, more: WaitIdOptions) -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | more;
    match waitid(WaitId::PidFd(fd), options) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some((code & 0xff) << 8),
            (None, signal) => signal,
        },
        Ok(None) => None,
        Err(_) => status_of_reaped(fd),
    }
}

/// What the system remembers of a process that was reaped, as long as a pidfd of it is open.
fn status_of_reaped(fd: BorrowedFd<'_>) -> Option<i32> {
    const EXIT: u64 = 1 << 3;

    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }

    /// `_IOWR(0xff, 11, struct pidfd_info)`
    const GET_INFO: u32 = 3 << 30 | (size_of::<Info>() as u32) << 16 | 0xff << 8 | 11;

    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    // SAFETY: `info` has the layout and the size that the request's number announces, so the
    // system writes inside of it; on another kind of descriptor or an older system the call fails.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), GET_INFO as _, &raw mut info) };
    (done == 0 && info.mask & EXIT != 0).then_some(info.exit_code)
}

/// Sends signal `signal` to the process behind `fd`; false if it has ended and been reaped.
///
/// # Errors
/// The system's, if the signal does not exist or may not be sent.
pub fn send_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<bool> {
    // SAFETY: the call takes no memory: the third argument, a siginfo, may be null.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        // A descriptor made by `open` for a process that was gone is not a pidfd.
        Some(libc::ESRCH | libc::EBADF) => Ok(false),
        _ => Err(Error::os(format!("signal {signal} cannot be sent"), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn sees_an_end_once_and_for_all() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert!(!wait_readable(fd.as_fd(), soon).unwrap());
        assert_eq!(reap(fd.as_fd()), None, "it runs");
        assert!(send_signal(fd.as_fd(), libc::SIGTERM).unwrap());
        assert!(wait_readable(fd.as_fd(), None).unwrap());
        assert_eq!(look(fd.as_fd()), Some(libc::SIGTERM));
        assert_eq!(reap(fd.as_fd()), Some(libc::SIGTERM));
        assert!(!send_signal(fd.as_fd(), libc::SIGTERM).unwrap());
        assert!(matches!(reap(fd.as_fd()), None | Some(libc::SIGTERM)));
        let _ = child.wait();
    }

    #[test]
    fn a_process_that_is_gone_is_ready() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let fd = open(child.id()).unwrap();
        assert!(wait_readable(fd.as_fd(), None).unwrap());
        assert_eq!(reap(fd.as_fd()), None);
        assert!(!send_signal(fd.as_fd(), libc::SIGTERM).unwrap());
    }
}

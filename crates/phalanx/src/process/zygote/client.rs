//! The side that asks for children.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use super::{LONGEST_NOTE, News, PLAIN, WATCHED, news};
use crate::error::{Error, Kind, Result};
use crate::os::{fdpass, pidfd};
use crate::process::ExitStatus;

/// A child that a zygote has started for this process.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// Readable when it has ended; for [`wait`].
    pub connection: OwnedFd,
}

/// A request that has been sent; the child's pid is still to come. Dropped, it is taken back: a
/// child that has begun meanwhile is killed.
#[derive(Debug)]
pub struct Pending(Option<OwnedFd>);

/// Asks the zygote at the other end of `control` for a child. Blocks only if the socket is full.
///
/// The child gets `note` and copies of `fds`. If `watched`, it is killed when this process ends.
///
/// # Errors
/// `is_peer_death()` if the zygote has ended, `is_too_large()` for a note that is too long.
pub fn request(
    control: BorrowedFd<'_>,
    note: &[u8],
    fds: &[BorrowedFd<'_>],
    watched: bool,
) -> Result<Pending> {
    if note.len() > LONGEST_NOTE {
        return Err(Error::new(
            Kind::TooLarge,
            format!(
                "a note of {} bytes is longer than {LONGEST_NOTE}",
                note.len()
            ),
        ));
    }
    let (ours, theirs) = fdpass::pair()?;
    let me = pidfd::open(std::process::id())?;
    let message = [&[if watched { WATCHED } else { PLAIN }], note].concat();
    let all: Vec<_> = [theirs.as_fd(), me.as_fd()]
        .into_iter()
        .chain(fds.iter().copied())
        .collect();
    loop {
        match fdpass::send(control, &message, &all) {
            // Nothing was sent. It will not take long: there is always somebody who reads.
            Err(error) if error.is_interrupted() => {}
            done => return done.map(|()| Pending(Some(ours))),
        }
    }
}

impl Pending {
    /// Waits until the child exists.
    ///
    /// # Errors
    /// `is_peer_death()` if the zygote or its ready child died meanwhile: nothing has begun, ask again.
    /// `is_interrupted()`: call it again.
    pub fn wait(&self) -> Result<u32> {
        let Some(connection) = &self.0 else {
            return Err(Error::new(Kind::Invalid, "nothing was requested"));
        };
        pidfd::wait_readable(connection.as_fd(), None)?;
        // It stays in the socket until somebody owns the child.
        match news(connection.as_fd(), true)? {
            Some(News::Began(pid)) => Ok(pid),
            _ => Err(Error::new(
                Kind::PeerDeath,
                "the fork server, or the child it had ready, ended before the process began",
            )),
        }
    }

    /// The child `pid` that [`wait`](Self::wait) told of.
    ///
    /// # Errors
    /// `is_invalid()` if it has told of none.
    pub fn started(mut self, pid: u32) -> Result<Started> {
        if let Some(connection) = &self.0
            && news(connection.as_fd(), false)? == Some(News::Began(pid))
            && let Some(connection) = self.0.take()
        {
            return Ok(Started { pid, connection });
        }
        Err(Error::new(Kind::Invalid, "no such child has begun"))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(connection) = self.0.take() else {
            return;
        };
        // A child that has not told of its beginning yet can do so no more, and exits.
        let _ = shutdown(&connection, Shutdown::Read);
        if let Ok(Some(News::Began(pid))) = news(connection.as_fd(), true)
            && let Ok(child) = pidfd::open(pid)
        {
            let _ = pidfd::send_signal(child.as_fd(), libc::SIGKILL);
            while pidfd::wait_readable(child.as_fd(), None).is_err_and(|e| e.is_interrupted()) {}
        }
    }
}

/// Waits for the end of a child; `None` if the deadline passed. May be asked again and again.
///
/// Until this has told of its end, the child's pid means no other process.
///
/// # Errors
/// `is_interrupted()` when a signal came; waiting again is right.
pub fn wait(connection: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
    if !pidfd::wait_readable(connection, deadline)? {
        return Ok(None);
    }
    // From here on the zygote may give the pid back to the system.
    let _ = shutdown(connection, Shutdown::Write);
    // It stays in the socket, so that every thread that waits gets the same answer.
    Ok(Some(match news(connection, true)? {
        Some(News::Ended(status)) => ExitStatus::from_raw(status),
        _ => ExitStatus::UNKNOWN,
    }))
}

/// Whether a zygote reads from the other end of `control`.
pub fn is_alive(control: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&control, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

//! Whether a process lives, and when it started.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

/// Seconds of the monotonic clock, which all processes share.
pub(crate) fn seconds() -> u64 {
    clock_gettime(ClockId::Monotonic).tv_sec as u64
}

/// Whether process `pid` runs and is the one that started at `start` (0: any).
///
/// A zombie does not run. If the system will not say, the process counts as running: taking a lock
/// from a live owner would be worse than waiting for a dead one.
pub(crate) fn is_running(pid: u32, start: u64) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    match pidfd_open(id, PidfdFlags::empty()) {
        Ok(fd) => {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0) {
                return false;
            }
        }
        Err(Errno::SRCH) => return false,
        Err(_) => {}
    }
    start == 0 || start_of(pid).is_none_or(|s| s == start)
}

/// When process `pid` started, in clock ticks since boot.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    // Some 350 bytes, which the system gives all at once; `std::fs::read` makes seven calls of it.
    let file = rustix::fs::open(
        format!("/proc/{pid}/stat"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut stat = [0; 1024];
    let len = rustix::io::read(&file, &mut stat).ok()?;
    let stat = &stat[..len];
    // The name, in brackets, may hold anything; the fields after it are numbers.
    let after = stat.iter().rposition(|&b| b == b')')?;
    let fields = std::str::from_utf8(stat.get(after + 2..)?).ok()?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_living_and_the_dead() {
        let me = std::process::id();
        let start = start_of(me).unwrap();
        assert!(is_running(me, start) && is_running(me, 0));
        assert!(
            !is_running(me, start + 1),
            "another start is another process"
        );
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        assert!(is_running(child.id(), 0));
        child.kill().unwrap();
        while is_running(child.id(), 0) {
            std::thread::yield_now();
        }
        // Still a zombie: it has not been waited for.
        assert!(std::path::Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
        assert!(!is_running(0, 0));
    }
}

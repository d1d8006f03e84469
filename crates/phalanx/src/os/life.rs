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

/// Microseconds of the same clock.
pub(crate) fn microseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Clock ticks since boot: the unit in which the system tells when a process started.
pub(crate) fn ticks() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let hertz = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * hertz + now.tv_nsec as u64 * hertz / 1_000_000_000
}

/// Whether process `pid` runs and is the one that ran at `seen` (see [`ticks`]; 0: any).
///
/// A later process of that pid has started after that one's end: a pid comes back only when all
/// others have been used. Within the tick itself nobody uses up all pids.
///
/// A zombie does not run. If the system will not say, the process counts as running: taking a lock
/// from a live owner would be worse than waiting for a dead one.
pub(crate) fn is_running(pid: u32, seen: u64) -> bool {
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
    seen == 0 || start_of(pid).is_none_or(|start| start <= seen)
}

/// When process `pid` started, in clock ticks since boot.
fn start_of(pid: u32) -> Option<u64> {
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
        assert!(
            start <= ticks() && ticks() < start + 100 * 3600,
            "one clock"
        );
        assert!(is_running(me, ticks()) && is_running(me, start) && is_running(me, 0));
        assert!(
            !is_running(me, start - 1),
            "the process seen then has ended before this one began"
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

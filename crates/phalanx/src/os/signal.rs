//! Signals: the one that tells of a parent's death.

use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::error::{Error, Result};

/// The process whose death ends this one; 0: none.
static PARENT: AtomicI32 = AtomicI32::new(0);

/// The signal that the system sends at the death of the parent: the last but one of the real-time
/// signals, which nobody is known to use.
fn number() -> i32 {
    libc::SIGRTMAX() - 1
}

/// Ends this process if its parent is not the expected one any more.
///
/// The system tells of the end of the *thread* that forked, so this may be a false alarm; the
/// setting stays for the parent's next thread, to which this process has been handed over.
extern "C" fn on_parent_signal(_: libc::c_int) {
    end_if_orphaned();
}

fn end_if_orphaned() {
    // SYNC: stored by this process before the handler was installed.
    let parent = PARENT.load(Relaxed);
    // SAFETY: `getppid`, `kill` and `getpid` take plain numbers, may be called in a signal handler
    // and leave no state behind; the signal ends all threads at once, wherever they are.
    unsafe {
        if parent != 0 && libc::getppid() != parent {
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}

/// From here on this process is killed when its parent, `parent`, ends, however that ends.
///
/// At once if it has ended already. It needs no thread and works while Python or C code runs.
///
/// # Errors
/// The system's, which should not happen.
pub fn die_with_parent(parent: u32) -> Result<()> {
    PARENT.store(parent as i32, Relaxed);
    // SAFETY: a zeroed sigaction with a handler of the right type is a valid one; the handler only
    // makes calls that are allowed in a signal handler.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_parent_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(number(), &raw const action, std::ptr::null_mut())
    };
    if done != 0 {
        return Err(last(
            "the handler of the parent's death cannot be installed",
        ));
    }
    set(number())?;
    // It may have died before.
    end_if_orphaned();
    Ok(())
}

/// The system kills this process at the end of the thread that forked it; `false`: no longer.
///
/// Right only for children of a single-threaded parent.
///
/// # Errors
/// The system's, which should not happen.
pub(crate) fn killed_with_forking_thread(on: bool) -> Result<()> {
    set(if on { libc::SIGKILL } else { 0 })
}

fn set(signal: i32) -> Result<()> {
    // SAFETY: this prctl takes a number.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) } {
        0 => Ok(()),
        _ => Err(last("the system will not tell of the parent's death")),
    }
}

fn last(what: &str) -> Error {
    Error::os(what, std::io::Error::last_os_error())
}

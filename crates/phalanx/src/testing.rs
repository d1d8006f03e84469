//! What the unit tests of several layers need: an object, and children.

use std::sync::atomic::AtomicU64;

use crate::arena::{Shareable, fork};

/// The simplest shared object.
#[repr(C)]
pub(crate) struct Counter(pub(crate) AtomicU64);

// SAFETY: one atomic.
unsafe impl Shareable for Counter {
    const KIND: u32 = u32::MAX;
    const NAME: &'static str = "Counter";
}

pub(crate) struct Child(libc::pid_t);

/// Runs `work` in a forked child, which then ends without running anything of the parent's.
pub(crate) fn in_child(work: impl FnOnce()) -> Child {
    fork::prepare();
    // SAFETY: the child only runs `work`, which the tests keep free of other threads' locks.
    match unsafe { libc::fork() } {
        0 => {
            fork::child();
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        pid => {
            fork::parent();
            assert!(pid > 0, "fork failed");
            Child(pid)
        }
    }
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.0 as u32
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&self) -> bool {
        crate::os::life::is_running(self.pid(), 0)
    }

    /// Waits for the child, which must have ended well.
    pub(crate) fn wait(self) {
        assert_eq!(self.end(), 0, "the child failed");
    }

    /// Kills the child and waits for it.
    pub(crate) fn kill(self) {
        // SAFETY: the pid is that of our child, which has not been waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.end();
    }

    fn end(&self) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is ours.
        while unsafe { libc::waitpid(self.0, &mut status, 0) } < 0 {}
        status
    }
}

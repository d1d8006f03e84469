//! Places to be killed at.
//!
//! A `crash_point!("layer.what")` stands in every critical section, between two steps that a death
//! could tear apart. Without the feature `crash-points` it is nothing. With it, a process that has
//! [armed](arm) a point kills itself there with SIGKILL; `tests/crash.rs` does so at each point in
//! turn, under load, and checks what the survivors find. It reads the names from the sources, so a
//! new point cannot be forgotten.

/// See the module.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::fault::reached($name);
    };
}
pub(crate) use crash_point;

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicU32, AtomicU64};

    static POINT: AtomicU64 = AtomicU64::new(0);
    static COUNTDOWN: AtomicU32 = AtomicU32::new(0);

    /// FNV-1a: tells the names apart without a pointer.
    fn hash(name: &str) -> u64 {
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// Makes this process kill itself when it comes to the point `name` for the `nth` time.
    pub fn arm(name: &str, nth: u32) {
        COUNTDOWN.store(nth, Relaxed);
        POINT.store(hash(name), Relaxed);
    }

    pub(crate) fn reached(name: &str) {
        if POINT.load(Relaxed) == hash(name) && COUNTDOWN.fetch_sub(1, Relaxed) == 1 {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(feature = "crash-points")]
pub use armed::arm;
#[cfg(feature = "crash-points")]
pub(crate) use armed::reached;

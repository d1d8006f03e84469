//! Processes and shared memory for the tests of this layer, without the arena.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::Acquire};
use std::time::{Duration, Instant};

use super::slots::{Part, Space};
use super::{MemberId, Members};
use crate::os::futex;

/// Members that are processes, named by their pid.
#[derive(Clone, Copy)]
pub(crate) struct Processes;

impl Members for Processes {
    fn me(&self) -> MemberId {
        MemberId::new(std::process::id()).expect("a pid is small and not zero")
    }

    fn is_alive(&self, member: MemberId) -> bool {
        let Ok(stat) = std::fs::read(format!("/proc/{}/stat", member.get())) else {
            return false;
        };
        let after_name = stat
            .iter()
            .rposition(|&byte| byte == b')')
            .map_or(0, |at| at + 2);
        !matches!(stat.get(after_name), None | Some(b'Z' | b'X'))
    }
}

/// The same members, with room for further slots on this process's heap.
#[derive(Clone, Copy)]
pub(crate) struct Heap;

impl Members for Heap {
    fn me(&self) -> MemberId {
        Processes.me()
    }

    fn is_alive(&self, member: MemberId) -> bool {
        Processes.is_alive(member)
    }
}

impl Space for Heap {
    fn new_part(&self) -> Option<u64> {
        // SAFETY: all-zero bytes are a part.
        let part: Part = unsafe { std::mem::zeroed() };
        Some(Box::into_raw(Box::new(part)).expose_provenance() as u64)
    }

    fn part(&self, at: u64) -> Option<&Part> {
        // SAFETY: the tests hand back only what `new_part` gave them, and free it last.
        unsafe { std::ptr::with_exposed_provenance::<Part>(at as usize).as_ref() }
    }

    fn free_part(&self, at: u64) {
        // SAFETY: it came from `new_part`, and the caller does not use it any more.
        drop(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut::<Part>(at as usize)) });
    }
}

/// A zeroed `T` of atomics in memory that forked children share.
pub(crate) struct Mapped<T> {
    at: NonNull<T>,
}

// SAFETY: it hands out shared references to a `T` only.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: Default> Mapped<T> {
    pub(crate) fn new() -> Self {
        // SAFETY: a new anonymous mapping touches no memory of anybody's.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        let at = NonNull::new(at.cast::<T>()).expect("mmap does not map at 0");
        // SAFETY: the mapping is new, page-aligned and large enough for a `T`.
        unsafe { at.write(T::default()) };
        Self { at }
    }
}

impl<T> Deref for Mapped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised in `new`, mapped until drop.
        unsafe { self.at.as_ref() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size, and nobody can borrow from it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), size_of::<T>()) };
    }
}

/// A forked child of the test; killed, if need be, when dropped.
pub(crate) struct Child {
    pid: libc::pid_t,
    ended: bool,
}

impl Child {
    /// Runs `work` in a forked child, which exits with 0 after it, or with 101 on a panic.
    ///
    /// `work` must not allocate: another thread of the test may have held the allocator's lock.
    pub(crate) fn run(work: impl FnOnce()) -> Self {
        // SAFETY: the child runs `work` and exits without returning into the test.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // The watchdog of a child that hangs.
            // SAFETY: no memory is involved.
            unsafe { libc::alarm(60) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            Self::exit(if done.is_ok() { 0 } else { 101 });
        }
        Self { pid, ended: false }
    }

    /// Ends a child at once.
    pub(crate) fn exit(code: i32) -> ! {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code) }
    }

    pub(crate) fn sleep_for_ever() -> ! {
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::pause() };
        }
    }

    /// Makes SIGUSR1 interrupt waits and do nothing else.
    pub(crate) fn handle_usr1() {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: the handler does nothing, so it may run anywhere.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            assert_eq!(
                libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
                0
            );
        }
    }

    pub(crate) fn id(&self) -> MemberId {
        MemberId::new(self.pid as u32).expect("a pid is small and not zero")
    }

    /// Waits until the child has set `word`; panics if it has ended without.
    pub(crate) fn wait_for(&self, word: &AtomicU32) {
        // SYNC: pairs with the child's release of the word.
        while word.load(Acquire) == 0 {
            futex::wait(word, 0, Some(Instant::now() + Duration::from_millis(20)));
            assert!(
                word.load(Acquire) != 0 || Processes.is_alive(self.id()),
                "the child died"
            );
        }
    }

    fn wait(&mut self, options: libc::c_int) -> Option<i32> {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, options) };
        if pid != self.pid {
            return None;
        }
        self.ended = true;
        let signalled = libc::WIFSIGNALED(status);
        Some(if signalled {
            -libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        })
    }

    /// The exit code; minus the signal if one has killed it.
    pub(crate) fn join(mut self) -> i32 {
        self.wait(0).expect("the child is ours")
    }

    /// Kills it and waits for the end.
    pub(crate) fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.wait(0);
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: the pid is our child's, which has not been waited for.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Sends the signal again and again until the child has ended.
    pub(crate) fn signal_until_exit(mut self, signal: libc::c_int) -> i32 {
        loop {
            self.signal(signal);
            std::thread::sleep(Duration::from_millis(5));
            if let Some(code) = self.wait(libc::WNOHANG) {
                return code;
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(libc::SIGKILL);
            self.wait(0);
        }
    }
}

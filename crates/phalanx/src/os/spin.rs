//! Spinning a little before sleeping, where that pays.
//!
//! Waking a sleeper on another core costs some 10 to 60 µs, handing over to a spinner under one.
//! So a wait begins with a spin. But spinning is a bet on the other side running *now*, on another
//! core, and a lost bet takes the core from it. So a thread
//!
//! * does not spin at all where it has one CPU only,
//! * bets a few times what its bets have won after lately, at most about the price of a wake-up,
//! * skips spinning for twice as many waits each time it lost (up to `MAX_SKIP`), and for half as
//!   many when it has won,
//! * skips `PREEMPTED_SKIP` waits when the kernel has taken the core from it since it looked
//!   last (`ru_nivcsw` of `RUSAGE_THREAD`): then there are more threads than cores. Without
//!   this rule a ping-pong on two busy cores ran at 0.6 of the speed of plain sleeping, with it
//!   at 1.5 to 4.
//!
//! All state is the thread's own.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The longest spin, in nanoseconds: about the price of waking a sleeper on another core.
const MOST: u32 = 40_000;
/// The shortest.
const LEAST: u32 = 4_000;
/// A spin that ends sooner than this is not worth asking the kernel about preemption.
const CHEAP: u32 = 3_000;
/// The most waits that go without spinning after spins that did not pay.
const MAX_SKIP: u32 = 128;
/// Waits without spinning after this thread was preempted.
const PREEMPTED_SKIP: u32 = 64;

#[derive(Clone, Copy)]
struct State {
    /// Waits still to go without spinning.
    skip: u32,
    /// What `skip` becomes at the next lost bet.
    penalty: u32,
    /// After how many nanoseconds bets are won, on average; lost ones count as the longest.
    typical: u32,
    /// Involuntary context switches of this thread when we looked last.
    preemptions: i64,
}

thread_local! {
    static STATE: Cell<State> = const {
        Cell::new(State { skip: 0, penalty: 1, typical: MOST / 4, preemptions: -1 })
    };
}

/// Spins until `ready` returns true, for as long as it seems to pay; says whether it did.
///
/// Never sleeps, takes at most some 40 µs of CPU time, and calls `ready` at least once.
pub fn until(mut ready: impl FnMut() -> bool) -> bool {
    if ready() {
        return true;
    }
    // Not accessible while the thread is being torn down: then do not spin.
    let Ok(mut state) = STATE.try_with(Cell::get) else {
        return false;
    };
    if state.skip > 0 {
        state.skip -= 1;
        STATE.set(state);
        return false;
    }
    if cpus() < 2 {
        return false;
    }
    let won = spin(&mut ready, &mut state);
    STATE.set(state);
    won
}

fn spin(ready: &mut impl FnMut() -> bool, state: &mut State) -> bool {
    // The first few looks need no clock: about 1 to 2 µs.
    for _ in 0..32 {
        spin_loop();
        if ready() {
            state.won_after(1_000);
            return true;
        }
    }
    let begin = Instant::now();
    let budget = (state.typical * 4).clamp(LEAST, MOST);
    let mut won = false;
    let mut spent = 0;
    while !won && spent < budget {
        for _ in 0..16 {
            spin_loop();
            won = ready();
            if won {
                break;
            }
        }
        spent = u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX);
    }
    if spent > CHEAP && preempted(state) {
        state.skip = PREEMPTED_SKIP;
        count_cpus();
    } else if won {
        state.won_after(spent);
    } else {
        state.lost();
    }
    won
}

impl State {
    fn won_after(&mut self, spent: u32) {
        self.penalty = (self.penalty / 2).max(1);
        self.remember(spent);
    }

    fn lost(&mut self) {
        self.skip = self.penalty;
        self.penalty = (self.penalty * 2).min(MAX_SKIP);
        self.remember(MOST);
    }

    fn remember(&mut self, spent: u32) {
        self.typical = self.typical - self.typical / 8 + spent.min(MOST) / 8;
    }
}

/// Whether this thread has lost its core to another one since we asked last.
fn preempted(state: &mut State) -> bool {
    let before = state.preemptions;
    state.preemptions = involuntary_switches();
    before >= 0 && state.preemptions != before
}

fn involuntary_switches() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a writable rusage, which the call fills.
    let done = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if done != 0 {
        return 0;
    }
    // SAFETY: all-zero bytes are a valid rusage, and the call has filled it.
    unsafe { usage.assume_init() }.ru_nivcsw
}

/// The CPUs this thread may run on, as last counted; 0: not counted yet.
static CPUS: AtomicUsize = AtomicUsize::new(0);

fn cpus() -> usize {
    match CPUS.load(Ordering::Relaxed) {
        0 => count_cpus(),
        n => n,
    }
}

/// Counts again: a program may be pinned to fewer cores while it runs.
#[cold]
fn count_cpus() -> usize {
    let n = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => set.count() as usize,
        Err(_) => 1,
    };
    CPUS.store(n.max(1), Ordering::Relaxed);
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_at_once() {
        assert!(until(|| true));
    }

    #[test]
    fn gives_up_for_a_while() {
        let mut looks = 0_u64;
        assert!(!until(|| {
            looks += 1;
            false
        }));
        assert!(looks >= 1);
        if cpus() > 1 {
            assert!(STATE.get().skip >= 1);
        }
        let before = STATE.get().skip;
        assert!(!until(|| false));
        assert!(before == 0 || STATE.get().skip == before - 1);
    }

    #[test]
    fn sees_another_thread() {
        let flag = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| flag.store(true, Ordering::Release));
            // SYNC: pairs with the store in the thread above.
            while !until(|| flag.load(Ordering::Acquire)) {
                std::thread::yield_now();
            }
        });
    }
}

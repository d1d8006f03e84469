//! `Condition`: waiting to be notified, beside a lock that the caller brings.
//!
//! Each waiter has a slot with a ticket (its place in the queue) and a word to sleep on:
//!
//! | state | meaning | left by |
//! | --- | --- | --- |
//! | 0 | not waiting (yet, or any more) | the waiter |
//! | `WAITING` | to be notified; awake | the waiter falling asleep or giving up; a notifier |
//! | `SLEEPING` | to be notified; asleep, or about to be | the same |
//! | `CALLED` | notified; not yet woken | the notifier; the waiter, by going |
//! | `NOTIFIED` | notified; needs no waking | the waiter, by going |
//!
//! ```text
//! waiter                                   notifier
//! (holds the lock)
//! claim a slot, ticket, WAITING
//! release the lock  ─────────────────────▶ acquire the lock
//! spin; SLEEPING; futex wait               oldest ticket: WAITING -> NOTIFIED, done
//!                                                     or: SLEEPING -> CALLED
//!   ◀─────────────────────── futex wake ──
//! free the slot                                           CALLED -> NOTIFIED
//! acquire the lock  ◀───────────────────── release the lock
//! ```
//!
//! A notification goes to exactly one slot, by one compare-exchange; giving up is one, too, so a
//! waiter whose time runs out at that moment either has the notification or has not taken it.
//!
//! **Deaths.** A waiter may die in any state; its slot stays. A notification that hits the dead
//! would be lost for the living, so when nobody was woken, and somebody else could have had the
//! notification, the notifier looks whether the owner lives, and if not takes the next oldest. A
//! notifier that dies before its wake-up leaves a slot `CALLED`: whoever reaps it wakes that, or
//! whoever waits or notifies next. Slots of the dead are used again before the table grows.

use std::time::Instant;

use super::slots::{Slot, Slots, Space};
use super::{Members, Stop};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU64;
use crate::os::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::os::futex::{self, Wait};
use crate::os::spin;

const WAITING: u32 = 1;
const SLEEPING: u32 = 2;
const CALLED: u32 = 3;
const NOTIFIED: u32 = 4;

/// Waiters and notifications, between processes. The lock that guards them is the caller's.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Condition {
    tickets: AtomicU64,
    slots: Slots,
}

/// A place in the queue of a [`Condition`]; given up when dropped.
#[derive(Debug)]
#[must_use]
pub struct Waiter<'a> {
    slot: &'a Slot,
}

impl Condition {
    /// A condition that nobody waits for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins the queue. Call it with the lock held, release the lock, then
    /// [`wait`](Waiter::wait). `None` if there is no room for another waiter.
    pub fn enlist<'a>(&'a self, home: &'a (impl Members + Space)) -> Option<Waiter<'a>> {
        self.slots.iter(home).for_each(call);
        let slot = self.slots.claim(home)?;
        slot.number
            .store(self.tickets.fetch_add(1, Relaxed), Relaxed);
        crash_point!("condition.ticketed");
        // SYNC: pairs with the acquire in `queue`: the ticket.
        slot.state.store(WAITING, Release);
        Some(Waiter { slot })
    }

    /// Notifies at most `n` waiters, those first who have waited longest; says how many.
    ///
    /// Call it with the lock held. Never blocks. A waiter that is dead does not count, unless
    /// there is nobody else.
    pub fn notify(&self, n: usize, home: &(impl Members + Space)) -> usize {
        let mut notified = 0;
        while notified < n {
            let (mut waiting, mut oldest) = (0_usize, None);
            for (ticket, slot) in self.queue(home) {
                waiting += 1;
                if oldest.is_none_or(|(least, _)| ticket < least) {
                    oldest = Some((ticket, slot));
                }
            }
            // Nobody goes without if all are meant: then neither order nor life matters.
            let Some((_, slot)) = oldest.filter(|_| waiting > n - notified) else {
                return notified + self.notify_all(home);
            };
            match give(slot) {
                Given::Gone => {}
                Given::Woken => notified += 1,
                Given::Awake if slot.owner().is_some_and(|owner| !home.is_alive(owner)) => {
                    slot.free();
                }
                Given::Awake => notified += 1,
            }
        }
        notified
    }

    /// Notifies all waiters; says how many. Call it with the lock held. Never blocks.
    pub fn notify_all(&self, space: &impl Space) -> usize {
        self.queue(space)
            .filter(|(_, slot)| give(slot) != Given::Gone)
            .count()
    }

    /// How many wait and have not been notified.
    pub fn waiters(&self, space: &impl Space) -> usize {
        self.queue(space).count()
    }

    fn queue<'a>(&'a self, space: &'a impl Space) -> impl Iterator<Item = (u64, &'a Slot)> {
        self.slots.iter(space).filter_map(|slot| {
            call(slot);
            // SYNC: pairs with the release in `enlist`.
            let state = slot.state.load(Acquire);
            matches!(state, WAITING | SLEEPING).then(|| (slot.number.load(Relaxed), slot))
        })
    }

    /// A process has died, perhaps between a notification and its wake-up: who has been notified is
    /// woken.
    pub(super) fn peer_died(&self, space: &impl Space) {
        self.slots.iter(space).for_each(call);
    }

    /// Gives back what lies outside of the object. Nobody may use it any more.
    pub fn reclaim(&self, space: &impl Space) {
        self.slots.reclaim(space);
    }
}

/// What became of a notification.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    /// The waiter has it, and was asleep until now.
    Woken,
    /// The waiter has it and is awake, or dead.
    Awake,
    /// The waiter had gone.
    Gone,
}

fn give(slot: &Slot) -> Given {
    let to = |state| match state {
        WAITING => Some(NOTIFIED),
        SLEEPING => Some(CALLED),
        _ => None,
    };
    // SYNC: pairs with the acquire in `Waiter::is_notified`.
    match slot.state.fetch_update(AcqRel, Relaxed, to) {
        Err(_) => Given::Gone,
        Ok(WAITING) => Given::Awake,
        Ok(_) if wake(slot) => Given::Woken,
        Ok(_) => Given::Awake,
    }
}

/// Wakes a waiter whose notifier died before it could do so.
fn call(slot: &Slot) {
    if slot.state.load(Relaxed) == CALLED {
        wake(slot);
    }
}

fn wake(slot: &Slot) -> bool {
    crash_point!("condition.called");
    let woken = futex::wake(&slot.state, 1) > 0;
    let _ = slot
        .state
        .compare_exchange(CALLED, NOTIFIED, Relaxed, Relaxed);
    woken
}

impl Waiter<'_> {
    /// Sleeps until notified, until `deadline` at most. Call it without the lock.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`]. The place in the queue is kept either way:
    /// [`leave`](Self::leave) has the last word on whether there was a notification.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<(), Stop> {
        if spin::until(|| self.is_notified()) {
            return Ok(());
        }
        let state = &self.slot.state;
        loop {
            let _ = state.compare_exchange(WAITING, SLEEPING, Relaxed, Relaxed);
            if self.is_notified() {
                return Ok(());
            }
            crash_point!("condition.about_to_sleep");
            match futex::wait(state, SLEEPING, deadline) {
                Wait::Woken => {}
                _ if self.is_notified() => return Ok(()),
                Wait::TimedOut => return Err(Stop::TimedOut),
                Wait::Interrupted => return Err(Stop::Interrupted),
            }
        }
    }

    /// Leaves the queue; says whether this waiter had been notified.
    pub fn leave(self) -> bool {
        let notified = self.withdraw();
        std::mem::forget(self);
        notified
    }

    fn is_notified(&self) -> bool {
        // SYNC: pairs with the release in `give`.
        matches!(self.slot.state.load(Acquire), CALLED | NOTIFIED)
    }

    fn withdraw(&self) -> bool {
        // SYNC: pairs with the release in `give`.
        let notified = matches!(self.slot.state.swap(0, AcqRel), CALLED | NOTIFIED);
        crash_point!("condition.leaving");
        self.slot.free();
        notified
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Lock;
    use crate::sync::testing::{Child, Heap, Mapped};
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    #[test]
    fn the_oldest_first_and_exact_counts() {
        let condition = Condition::new();
        let mut waiters: Vec<_> = (0..40).map(|_| condition.enlist(&Heap).unwrap()).collect();
        assert_eq!(condition.notify(3, &Heap), 3);
        assert_eq!(condition.waiters(&Heap), 37);
        for (i, waiter) in waiters.drain(..4).enumerate() {
            let now = Some(Instant::now());
            assert_eq!(
                waiter.wait(now),
                if i < 3 { Ok(()) } else { Err(Stop::TimedOut) }
            );
            assert_eq!(waiter.leave(), i < 3);
        }
        assert_eq!(condition.notify(100, &Heap), 36);
        assert_eq!(condition.notify(1, &Heap), 0);
        assert!(waiters.into_iter().all(Waiter::leave));
        condition.reclaim(&Heap);
    }

    #[test]
    fn times_out() {
        let condition = Condition::new();
        let waiter = condition.enlist(&Heap).unwrap();
        let end = Instant::now() + Duration::from_millis(20);
        assert_eq!(waiter.wait(Some(end)), Err(Stop::TimedOut));
        assert!(Instant::now() >= end);
        assert!(!waiter.leave());
        assert_eq!(condition.notify_all(&Heap), 0);
    }

    #[derive(Default)]
    struct Scene {
        lock: Lock,
        condition: Condition,
        woken: AtomicU32,
    }

    impl Scene {
        fn wait(&self) {
            let _ = self.lock.acquire(&Heap, None).unwrap();
            let waiter = self.condition.enlist(&Heap).unwrap();
            self.lock.release().unwrap();
            waiter.wait(None).unwrap();
            assert!(waiter.leave());
            self.woken.fetch_add(1, Relaxed);
        }

        /// With the lock held, until `n` wait.
        fn when(&self, n: usize) {
            loop {
                let _ = self.lock.acquire(&Heap, None).unwrap();
                if self.condition.waiters(&Heap) == n {
                    return;
                }
                self.lock.release().unwrap();
                std::thread::yield_now();
            }
        }

        fn asleep(&self, n: usize) {
            let asleep = |s: &&Slot| s.state.load(Relaxed) == SLEEPING;
            while self.condition.slots.iter(&Heap).filter(asleep).count() != n {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn the_dead_swallow_no_notification() {
        let scene = Mapped::<Scene>::new();
        let victims = [Child::run(|| scene.wait()), Child::run(|| scene.wait())];
        scene.when(2);
        scene.lock.release().unwrap();
        victims.into_iter().for_each(Child::kill);
        let survivors = [Child::run(|| scene.wait()), Child::run(|| scene.wait())];
        scene.when(4);
        assert_eq!(scene.condition.notify(1, &Heap), 1);
        assert_eq!(scene.condition.notify(1, &Heap), 1);
        scene.lock.release().unwrap();
        for child in survivors {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(scene.woken.load(Relaxed), 2);
    }

    #[test]
    fn a_notifier_that_died_before_waking_is_helped() {
        let scene = Mapped::<Scene>::new();
        let child = Child::run(|| scene.wait());
        scene.asleep(1);
        // As if a notifier had been killed before its wake-up.
        for slot in scene.condition.slots.iter(&Heap) {
            let _ = slot
                .state
                .compare_exchange(SLEEPING, CALLED, Release, Relaxed);
        }
        assert_eq!(scene.condition.notify(1, &Heap), 0);
        assert_eq!(child.join(), 0);
    }

    #[test]
    fn hands_over_between_processes() {
        let scene = Mapped::<Scene>::new();
        let waiters: Vec<_> = (0..4).map(|_| Child::run(|| scene.wait())).collect();
        scene.when(4);
        assert_eq!(scene.condition.notify_all(&Heap), 4);
        scene.lock.release().unwrap();
        for child in waiters {
            assert_eq!(child.join(), 0);
        }
    }
}

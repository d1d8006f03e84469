//! `Barrier`: rounds that begin when everybody is there.
//!
//! Waiters sleep on one word: the round (30 bits, wrapping) and its phase. Each has a slot with
//! its own outcome, so that one who wakes late, two rounds on, still knows how *its* round ended.
//! All changes are made under a [`RawLock`].
//!
//! | phase | meaning | left by |
//! | --- | --- | --- |
//! | `FILLING` | `count` have arrived | the last one to arrive; a break |
//! | `ACTION` | all have; the last one runs its action | its [`release`](Barrier::release); a break; a reset |
//! | `BROKEN` | nobody can wait | a reset |
//!
//! | slot | meaning |
//! | --- | --- |
//! | `WAITING`, `SLEEPING` | has arrived, and waits awake or asleep |
//! | `RELEASED`, `BROKE` | how the round ended for it |
//!
//! ```text
//! waiter                          last to arrive
//! slot WAITING, count + 1         FILLING -> ACTION, runs the action
//! spin; SLEEPING; futex wait      all slots -> RELEASED, count 0, round + 1, FILLING
//!   ◀──────────────────────────── futex wake all (if any was SLEEPING)
//! ```
//!
//! **Deaths.** Somebody who arrived and died would be missed for ever, so the waiters look once a
//! slice whether all the others, and the one in the action, live; so does whoever reaps a process
//! of the family. A death breaks the barrier. Who finds the lock abandoned breaks it, too: the dead
//! one was on its way in or out. If the one who ends a round dies before its wake-up, the sleepers
//! see it at the end of their slice.

use std::time::Instant;

use super::raw::Guard;
use super::slots::{Slot, Slots, Space};
use super::{LastLook, MemberId, Members, RawLock, Stop, passed, slice_end};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::os::futex::{self, Wait};
use crate::os::spin;

const FILLING: u32 = 0;
const ACTION: u32 = 1;
const BROKEN: u32 = 2;
const PHASE: u32 = 3;
const ONE_ROUND: u32 = 4;

const WAITING: u32 = 1;
const SLEEPING: u32 = 2;
const RELEASED: u32 = 3;
const BROKE: u32 = 4;

/// A meeting point for a fixed number of processes and threads, again and again.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Barrier {
    lock: RawLock,
    /// The round and its phase.
    word: AtomicU32,
    parties: AtomicU32,
    /// Slots that are `WAITING` or `SLEEPING`.
    count: AtomicU32,
    /// Who runs the action.
    runner: AtomicU32,
    looked: LastLook,
    slots: Slots,
}

/// How an arrival ended.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// Not the last: [`wait`](Waiter::wait) for the others.
    Waiter(Waiter<'a>),
    /// The last, with that index. If it asked for it, it now runs its action, and then ends the
    /// round by [`release`](Turn::release); else the round has ended.
    Last(u32, Option<Turn<'a>>),
}

/// Why there was no meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The barrier is broken, or was reset meanwhile.
    Broken,
    /// There is no room for another waiter.
    NoRoom,
    /// The time ran out (which has broken nothing yet) or a signal came.
    Stopped(Stop),
}

impl Barrier {
    /// A barrier for `parties`, at least 1.
    pub fn new(parties: u32) -> Self {
        Self {
            parties: AtomicU32::new(parties.max(1)),
            ..Self::default()
        }
    }

    /// How many make a round.
    pub fn parties(&self) -> u32 {
        self.parties.load(Relaxed)
    }

    /// How many wait for the others now.
    pub fn waiting(&self) -> u32 {
        match self.word.load(Relaxed) & PHASE {
            FILLING => self.count.load(Relaxed),
            _ => 0,
        }
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.word.load(Relaxed) & PHASE == BROKEN
    }

    /// Arrives. Blocks, until `deadline` at most, only while another one runs its action.
    ///
    /// # Errors
    /// [`Failure`]; the caller has not arrived then.
    pub fn arrive<'a, H: Members + Space>(
        &'a self,
        with_action: bool,
        home: &'a H,
        deadline: Option<Instant>,
    ) -> Result<Arrival<'a>, Failure> {
        loop {
            let guard = self.guard(home);
            let word = self.word.load(Relaxed);
            match word & PHASE {
                FILLING => {}
                ACTION => {
                    drop(guard);
                    self.await_action(word, home, deadline)?;
                    continue;
                }
                _ => return Err(Failure::Broken),
            }
            let index = self.count.load(Relaxed);
            if index + 1 >= self.parties() {
                if with_action {
                    self.runner.store(home.claimant().get(), Relaxed);
                    self.word.store(word + ACTION, Relaxed);
                    let turn = Turn {
                        barrier: self,
                        word: word + ACTION,
                    };
                    return Ok(Arrival::Last(index, Some(turn)));
                }
                self.end_round(RELEASED, FILLING, home, guard);
                return Ok(Arrival::Last(index, None));
            }
            let slot = self.slots.claim(home).ok_or(Failure::NoRoom)?;
            self.count.store(index + 1, Relaxed);
            crash_point!("barrier.counted");
            slot.state.store(WAITING, Relaxed);
            return Ok(Arrival::Waiter(Waiter {
                barrier: self,
                slot,
                index,
            }));
        }
    }

    /// Breaks it: all who wait, and who come later, fail, until it is reset. Never blocks.
    pub fn abort(&self, home: &(impl Members + Space)) {
        let guard = self.guard(home);
        if !self.is_broken() {
            self.end_round(BROKE, BROKEN, home, guard);
        }
    }

    /// Makes it as new: all who wait fail, who come later do not. Never blocks.
    pub fn reset(&self, home: &(impl Members + Space)) {
        let guard = self.guard(home);
        self.end_round(BROKE, FILLING, home, guard);
    }

    /// Gives back what lies outside of the object. Nobody may use it any more.
    pub fn reclaim(&self, space: &impl Space) {
        self.slots.reclaim(space);
    }

    fn await_action(
        &self,
        word: u32,
        home: &(impl Members + Space),
        deadline: Option<Instant>,
    ) -> Result<(), Failure> {
        match futex::wait(&self.word, word, Some(slice_end(deadline))) {
            Wait::Woken => {}
            Wait::Interrupted => return Err(Failure::Stopped(Stop::Interrupted)),
            Wait::TimedOut => {
                self.look(home);
                if passed(deadline) {
                    return Err(Failure::Stopped(Stop::TimedOut));
                }
            }
        }
        Ok(())
    }

    fn guard(&self, home: &(impl Members + Space)) -> Guard<'_> {
        let guard = self.lock.guard(home);
        if guard.recovered {
            self.end_slots(BROKE, BROKEN, home);
            futex::wake_all(&self.word);
        }
        guard
    }

    /// Tells all who wait how their round ended, and begins the next. Under the lock.
    fn end_round(&self, outcome: u32, phase: u32, space: &impl Space, guard: Guard<'_>) {
        let before = self.word.load(Relaxed) & PHASE;
        let asleep = self.end_slots(outcome, phase, space);
        drop(guard);
        crash_point!("barrier.ended_unwoken");
        // Who came during an action sleeps without a slot.
        if asleep || before == ACTION {
            futex::wake_all(&self.word);
        }
    }

    /// Says whether any of them slept. Under the lock.
    fn end_slots(&self, outcome: u32, phase: u32, space: &impl Space) -> bool {
        let mut asleep = false;
        let mut left = self.count.load(Relaxed);
        for slot in self.slots.iter(space) {
            if left == 0 {
                break;
            }
            let to = |state| matches!(state, WAITING | SLEEPING).then_some(outcome);
            // SYNC: pairs with the acquire in `Waiter::outcome`.
            if let Ok(state) = slot.state.fetch_update(AcqRel, Relaxed, to) {
                asleep |= state == SLEEPING;
                left -= 1;
            }
        }
        crash_point!("barrier.ending");
        self.count.store(0, Relaxed);
        self.runner.store(0, Relaxed);
        let round = (self.word.load(Relaxed) & !PHASE).wrapping_add(ONE_ROUND);
        // SYNC: pairs with the acquire in `Waiter::wait`: the outcomes.
        self.word.store(round | phase, Release);
        asleep
    }

    /// Somebody who used it has died. If that was one who waited, nobody may be left who looks, and
    /// those to come would wait for one who never goes on with them.
    pub(super) fn peer_died(&self, home: &(impl Members + Space)) {
        self.break_if_dead(home);
    }

    fn look(&self, home: &(impl Members + Space)) {
        if self.looked.is_due() {
            self.break_if_dead(home);
        }
    }

    /// Breaks the barrier if one of those who wait, or who runs the action, is dead.
    fn break_if_dead(&self, home: &(impl Members + Space)) {
        let waits = |slot: &Slot| matches!(slot.state.load(Relaxed), WAITING | SLEEPING);
        let dead = |owner: Option<MemberId>| owner.is_some_and(|owner| !home.is_alive(owner));
        let someone_is_dead = || {
            dead(MemberId::new(self.runner.load(Relaxed)))
                || self
                    .slots
                    .iter(home)
                    .any(|slot| waits(slot) && dead(slot.owner()))
        };
        if someone_is_dead() {
            let guard = self.guard(home);
            // The round may have ended, and the dead have been one of its past.
            if !self.is_broken() && someone_is_dead() {
                self.end_round(BROKE, BROKEN, home, guard);
            }
        }
    }
}

/// Somebody who has arrived and waits for the others.
#[derive(Debug)]
#[must_use = "who has arrived must wait or leave"]
pub struct Waiter<'a> {
    barrier: &'a Barrier,
    slot: &'a Slot,
    index: u32,
}

impl Waiter<'_> {
    /// Waits for the others, until `deadline` at most; returns this waiter's index.
    ///
    /// # Errors
    /// [`Failure::Broken`]; [`Failure::Stopped`] on a signal: then call it again, or
    /// [`leave`](Self::leave). Running out of time breaks the barrier.
    pub fn wait(
        &self,
        home: &(impl Members + Space),
        deadline: Option<Instant>,
    ) -> Result<u32, Failure> {
        self.wait_on(true, home, deadline)
    }

    /// As [`wait`](Self::wait), but running out of time breaks nothing: it may be called again.
    ///
    /// # Errors
    /// The same.
    pub fn wait_a_while(
        &self,
        home: &(impl Members + Space),
        until: Option<Instant>,
    ) -> Result<u32, Failure> {
        self.wait_on(false, home, until)
    }

    fn wait_on(
        &self,
        breaks: bool,
        home: &(impl Members + Space),
        deadline: Option<Instant>,
    ) -> Result<u32, Failure> {
        let barrier = self.barrier;
        let mut outcome = None;
        if spin::until(|| {
            outcome = self.outcome();
            outcome.is_some()
        }) {
            return outcome.unwrap_or(Err(Failure::Broken));
        }
        loop {
            // SYNC: pairs with the release in `end_slots`.
            let word = barrier.word.load(Acquire);
            let _ = self
                .slot
                .state
                .compare_exchange(WAITING, SLEEPING, AcqRel, Relaxed);
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            crash_point!("barrier.about_to_sleep");
            match futex::wait(&barrier.word, word, Some(slice_end(deadline))) {
                Wait::Woken => {}
                Wait::Interrupted => return Err(Failure::Stopped(Stop::Interrupted)),
                Wait::TimedOut => {
                    barrier.look(home);
                    if passed(deadline) {
                        if !breaks {
                            let ended = self.outcome();
                            return ended.unwrap_or(Err(Failure::Stopped(Stop::TimedOut)));
                        }
                        let guard = barrier.guard(home);
                        if self.outcome().is_none() {
                            barrier.end_round(BROKE, BROKEN, home, guard);
                        }
                    }
                }
            }
        }
    }

    fn outcome(&self) -> Option<Result<u32, Failure>> {
        // SYNC: pairs with the release in `end_slots`.
        match self.slot.state.load(Acquire) {
            WAITING | SLEEPING => None,
            RELEASED => Some(Ok(self.index)),
            _ => Some(Err(Failure::Broken)),
        }
    }

    /// Goes, as if it had never come if its round has not ended.
    pub fn leave(self, home: &(impl Members + Space)) {
        if self.outcome().is_none() {
            let guard = self.barrier.guard(home);
            if self.outcome().is_none() {
                let count = self.barrier.count.load(Relaxed);
                self.barrier.count.store(count.saturating_sub(1), Relaxed);
            }
            self.slot.free();
            drop(guard);
        } else {
            self.slot.free();
        }
    }
}

/// The turn of the last to arrive: everybody waits for its action, so it has to be ended in one
/// way or the other.
#[derive(Debug)]
#[must_use = "everybody waits for the turn to end"]
pub struct Turn<'a> {
    barrier: &'a Barrier,
    word: u32,
}

impl Turn<'_> {
    /// The action is done: everybody may go.
    ///
    /// # Errors
    /// [`Failure::Broken`] if the barrier was broken or reset meanwhile.
    pub fn release(self, home: &(impl Members + Space)) -> Result<(), Failure> {
        self.end(RELEASED, FILLING, home)
    }

    /// The action has failed: breaks the barrier.
    pub fn break_up(self, home: &(impl Members + Space)) {
        let _ = self.end(BROKE, BROKEN, home);
    }

    fn end(&self, outcome: u32, phase: u32, home: &(impl Members + Space)) -> Result<(), Failure> {
        let guard = self.barrier.guard(home);
        if self.barrier.word.load(Relaxed) != self.word {
            return Err(Failure::Broken);
        }
        self.barrier.end_round(outcome, phase, home, guard);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Heap, Mapped};
    use std::time::Duration;

    #[derive(Default)]
    struct Scene {
        barrier: Barrier,
        sum: AtomicU32,
    }

    impl Scene {
        fn new(parties: u32) -> Mapped<Self> {
            let scene = Mapped::<Self>::new();
            scene.barrier.parties.store(parties, Relaxed);
            scene
        }

        fn meet(&self, deadline: Option<Instant>) -> Result<u32, Failure> {
            match self.barrier.arrive(false, &Heap, deadline)? {
                Arrival::Last(index, _) => Ok(index),
                Arrival::Waiter(waiter) => {
                    let outcome = waiter.wait(&Heap, deadline);
                    waiter.leave(&Heap);
                    outcome
                }
            }
        }

        fn when(&self, waiting: u32) {
            while self.barrier.waiting() != waiting {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn rounds() {
        let scene = Scene::new(3);
        let turns = || {
            for round in 0..500 {
                let index = scene.meet(None).unwrap();
                scene.sum.fetch_add(index, Relaxed);
                scene.meet(None).unwrap();
                assert!(scene.sum.load(Relaxed) >= 3 * (round + 1));
            }
        };
        let children = [Child::run(turns), Child::run(turns)];
        turns();
        for child in children {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(scene.sum.load(Relaxed), 500 * (1 + 2));
    }

    #[test]
    fn a_dead_waiter_breaks_it_and_a_reset_mends_it() {
        let scene = Scene::new(3);
        let victim = Child::run(|| {
            let _ = scene.meet(None);
        });
        scene.when(1);
        let survivor = Child::run(|| assert_eq!(scene.meet(None), Err(Failure::Broken)));
        scene.when(2);
        victim.kill();
        assert_eq!(survivor.join(), 0);
        assert!(scene.barrier.is_broken());
        assert_eq!(scene.meet(None), Err(Failure::Broken));
        scene.barrier.reset(&Heap);
        let others = [
            Child::run(|| assert!(scene.meet(None).is_ok())),
            Child::run(|| assert!(scene.meet(None).is_ok())),
        ];
        assert!(scene.meet(None).is_ok());
        for other in others {
            assert_eq!(other.join(), 0);
        }
    }

    #[test]
    fn a_dead_waiter_that_is_reaped_breaks_it_with_nobody_else_there() {
        let scene = Scene::new(2);
        let victim = Child::run(|| {
            let _ = scene.meet(None);
        });
        scene.when(1);
        victim.kill();
        scene.barrier.peer_died(&Heap);
        assert_eq!(scene.meet(None), Err(Failure::Broken));
    }

    #[test]
    fn running_out_of_time_breaks_it() {
        let scene = Scene::new(2);
        let end = Instant::now() + Duration::from_millis(20);
        assert_eq!(scene.meet(Some(end)), Err(Failure::Broken));
        assert!(Instant::now() >= end && scene.barrier.is_broken());
    }

    #[test]
    fn abort_and_reset_release_the_waiters() {
        for reset in [false, true] {
            let scene = Scene::new(2);
            let child = Child::run(|| assert_eq!(scene.meet(None), Err(Failure::Broken)));
            scene.when(1);
            if reset {
                scene.barrier.reset(&Heap);
            } else {
                scene.barrier.abort(&Heap);
            }
            assert_eq!(child.join(), 0);
            assert_eq!(scene.barrier.is_broken(), !reset);
        }
    }

    #[test]
    fn an_action_holds_everybody_until_it_is_done() {
        let scene = Scene::new(2);
        let child = Child::run(|| assert_eq!(scene.meet(None), Ok(0)));
        scene.when(1);
        let Ok(Arrival::Last(1, Some(turn))) = scene.barrier.arrive(true, &Heap, None) else {
            panic!("the second of two is the last");
        };
        let soon = Some(Instant::now() + Duration::from_millis(10));
        assert_eq!(scene.meet(soon), Err(Failure::Stopped(Stop::TimedOut)));
        assert_eq!(turn.release(&Heap), Ok(()));
        assert_eq!(child.join(), 0);
    }

    #[test]
    fn dying_in_the_action_breaks_it() {
        let scene = Scene::new(2);
        let survivor = Child::run(|| assert_eq!(scene.meet(None), Err(Failure::Broken)));
        scene.when(1);
        let runner = Child::run(|| {
            let _ = scene.barrier.arrive(true, &Heap, None);
        });
        assert_eq!(runner.join(), 0);
        assert_eq!(survivor.join(), 0);
    }
}

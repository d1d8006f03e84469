//! The scenarios of locks, semaphores, conditions, events and barriers: see `../crash.rs`.
//!
//! The victim does what two survivors do. They must finish, whatever it holds or waits for when it
//! dies, and find the primitives working afterwards.

use std::time::{Duration, Instant};

use phalanx::arena::Shared;
use phalanx::shared::Memory;
use phalanx::sync::barrier::{Arrival, Failure};
use phalanx::sync::{
    Barrier, BoundedSemaphore, Condition, Event, Lock, Members, RLock, Semaphore, Stop,
};

use super::{Child, Run, SeqCst, audited};

fn in_ms(milliseconds: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(milliseconds))
}

/// Waits again after a signal.
fn again<T>(mut wait: impl FnMut() -> Result<T, Stop>) -> Option<T> {
    loop {
        match wait() {
            Ok(done) => return Some(done),
            Err(Stop::TimedOut) => return None,
            Err(Stop::Interrupted) => {}
        }
    }
}

/// Forks the victim, and goes on when it has done `first` or is dead.
fn victim_first(run: &Run, first: impl FnOnce(), then: impl FnOnce()) -> Child {
    let started = Shared::create(Event::new()).unwrap();
    let victim = run.victim(|| {
        first();
        started.set();
        then();
    });
    while again(|| started.wait(in_ms(5))).is_none() {
        if victim.poll().is_some() {
            break;
        }
    }
    victim
}

/// Long enough now and then that the others fall asleep.
fn linger(turn: u64) {
    if turn.is_multiple_of(8) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Counting under a Lock and under an RLock: no update of a survivor is lost.
pub(super) fn locks(run: &Run) {
    const TURNS: u64 = 100;
    audited(run, || {
        let lock = Shared::create(Lock::new()).unwrap();
        let rlock = Shared::create(RLock::new()).unwrap();
        let counts = Memory::new(16).unwrap();
        let members = lock.arena();
        let work = || {
            for turn in 0..TURNS {
                let _ = again(|| lock.acquire(members, None)).unwrap();
                let count = counts.get::<u64>(0);
                linger(turn);
                counts.set(0, count + 1);
                lock.release().unwrap();

                let _ = again(|| rlock.acquire(members, None)).unwrap();
                let _ = again(|| rlock.acquire(members, None)).unwrap();
                let count = counts.get::<u64>(1);
                linger(turn + 4);
                counts.set(1, count + 1);
                rlock.release(members).unwrap();
                rlock.release(members).unwrap();
            }
        };
        // Dies holding both, for the victim to take over.
        let holder = Child::fork(|| {
            let _ = again(|| lock.acquire(members, None));
            let _ = again(|| rlock.acquire(members, None));
        });
        holder.wait();
        let both = || {
            assert!(again(|| lock.acquire(members, None)).unwrap().recovered);
            assert!(again(|| rlock.acquire(members, None)).unwrap().recovered);
            lock.release().unwrap();
            rlock.release(members).unwrap();
        };
        let victim = victim_first(run, both, work);
        let sibling = Child::fork(work);
        work();
        run.check(sibling.wait() == 0, "a sibling failed");
        victim.wait();
        run.bury(&victim);
        for index in 0..2 {
            let count = counts.get::<u64>(index);
            let right = (2 * TURNS..=3 * TURNS).contains(&count);
            run.check(right, format_args!("{count} updates"));
        }
        run.check(again(|| lock.acquire(members, None)).is_some(), "no lock");
        run.check(again(|| rlock.acquire(members, None)).is_some(), "no lock");
    });
}

/// Permits go round; those of a bounded semaphore are all there at the end.
pub(super) fn semaphores(run: &Run) {
    const TURNS: u64 = 100;
    audited(run, || {
        let plain = Shared::create(Semaphore::new(1)).unwrap();
        let bounded = Shared::create(BoundedSemaphore::new(2)).unwrap();
        let home = bounded.arena();
        let work = || {
            for turn in 0..TURNS {
                // A permit of the dead stays away: that is what a plain semaphore is.
                let taken = again(|| plain.acquire(in_ms(100))).is_some();
                linger(turn);
                if taken || run.board.done.swap(1, SeqCst) == 0 {
                    plain.release().unwrap();
                }
                again(|| bounded.acquire(home, None)).unwrap();
                linger(turn / 2);
                bounded.release(home).unwrap();
            }
        };
        // Dies with a permit, for the victim to bury.
        let holder = Child::fork(|| again(|| bounded.acquire(home, None)).unwrap());
        holder.wait_unburied();
        let empty = Shared::create(Semaphore::new(0)).unwrap();
        let both = || {
            // Sleeps for certain.
            assert!(again(|| empty.acquire(in_ms(20))).is_none());
            for _ in 0..2 {
                again(|| bounded.acquire(home, None)).unwrap();
            }
            bounded.release(home).unwrap();
            bounded.release(home).unwrap();
        };
        let victim = victim_first(run, both, work);
        let siblings = [Child::fork(work), Child::fork(work)];
        work();
        for sibling in siblings {
            run.check(sibling.wait() == 0, "a sibling failed");
        }
        holder.wait();
        victim.wait();
        run.bury(&victim);
        for _ in 0..2 {
            let taken = again(|| bounded.acquire(home, in_ms(5_000)));
            run.check(taken.is_some(), "a permit is lost");
        }
        run.check(!bounded.try_acquire(home), "a permit too many");
    });
}

/// Notifications and pulses while waiters and notifiers die.
pub(super) fn conditions(run: &Run) {
    audited(run, || {
        let condition = Shared::create(Condition::new()).unwrap();
        let event = Shared::create(Event::new()).unwrap();
        let lock = Shared::create(Lock::new()).unwrap();
        let home = condition.arena();
        let locked = |work: &dyn Fn()| {
            let _ = again(|| lock.acquire(home, None)).unwrap();
            work();
            lock.release().unwrap();
        };
        let wait = |deadline| {
            let _ = again(|| lock.acquire(home, None)).unwrap();
            let waiter = condition.enlist(home).unwrap();
            lock.release().unwrap();
            let notified = again(|| waiter.wait(deadline)).is_some();
            assert!(waiter.leave() || !notified);
        };
        let work = || {
            for turn in 0..30 {
                wait(in_ms(turn % 3));
                locked(&|| {
                    condition.notify(1, home);
                });
                again(|| event.wait(in_ms(1)));
                event.set();
                event.clear();
            }
        };
        // More waiters than have room in the object itself.
        let crowd = || {
            let many: Vec<_> = (0..20).map(|_| condition.enlist(home).unwrap()).collect();
            drop(many);
        };
        let victim = victim_first(run, crowd, work);
        let sibling = Child::fork(work);
        work();
        run.check(sibling.wait() == 0, "a sibling failed");
        victim.wait();
        run.bury(&victim);
        // No dead waiter has the notification that is meant for the living.
        let last = Child::fork(|| wait(None));
        // (A slot that the victim left waiting has an older ticket.)
        while last.poll().is_none() {
            locked(&|| {
                condition.notify(1, home);
            });
            std::thread::yield_now();
        }
        run.check(last.wait() == 0, "the last waiter failed");
    });
}

/// Rounds of two among three.
pub(super) fn barriers(run: &Run) {
    const ROUNDS: u32 = 60;
    audited(run, || {
        let barrier = Shared::create(Barrier::new(2)).unwrap();
        let home = barrier.arena();
        let meet = |turn: u32| -> Result<u32, Failure> {
            linger(u64::from(turn));
            let with_action = turn.is_multiple_of(3);
            match barrier.arrive(with_action, home, in_ms(2_000))? {
                Arrival::Last(index, None) => Ok(index),
                Arrival::Last(index, Some(action)) => {
                    linger(u64::from(turn));
                    action.release(home)?;
                    Ok(index)
                }
                Arrival::Waiter(waiter) => {
                    let met = waiter.wait(home, in_ms(2_000));
                    waiter.leave(home);
                    met
                }
            }
        };
        let done = || run.board.done.load(SeqCst) > 0;
        let work = || {
            let (mut met, mut turn) = (0, 0);
            while met < ROUNDS && !done() {
                turn += 1;
                match meet(turn) {
                    Ok(_) => met += 1,
                    Err(_) if done() => {}
                    Err(_) if barrier.is_broken() => barrier.reset(home),
                    Err(_) => {}
                }
            }
            // Who has met often enough releases the others.
            run.board.done.store(1, SeqCst);
            barrier.abort(home);
        };
        let victim = victim_first(run, || {}, work);
        let sibling = Child::fork(work);
        work();
        run.check(sibling.wait() == 0, "a sibling failed");
        victim.wait();
        run.bury(&victim);
        barrier.reset(home);
        let partner = Child::fork(|| assert!(meet(1).is_ok()));
        run.check(meet(2).is_ok(), "no meeting any more");
        run.check(partner.wait() == 0, "the partner failed");
        run.check(home.is_alive(home.me()), "we are dead");
    });
}

/// The victim dies between a change and the wake-up that belongs to it. Nobody touches the objects
/// afterwards: it is the reaper that wakes the sleepers.
pub(super) fn sleepers(run: &Run) {
    audited(run, || {
        let event = Shared::create(Event::new()).unwrap();
        let condition = Shared::create(Condition::new()).unwrap();
        let lock = Shared::create(Lock::new()).unwrap();
        let bounded = Shared::create(BoundedSemaphore::new(2)).unwrap();
        let home = condition.arena();
        let notify = || {
            let _ = again(|| lock.acquire(home, None)).unwrap();
            condition.notify(1, home);
            lock.release().unwrap();
        };
        let waits = Child::fork(|| {
            let _ = again(|| lock.acquire(home, None)).unwrap();
            let waiter = condition.enlist(home).unwrap();
            lock.release().unwrap();
            again(|| waiter.wait(None)).unwrap();
        });
        let listens = Child::fork(|| again(|| event.wait(None)).unwrap());
        while !(waits.is_asleep() && listens.is_asleep()) {
            std::thread::yield_now();
        }
        let victim = run.victim(|| {
            again(|| bounded.acquire(home, None)).unwrap();
            notify();
            event.set();
        });
        victim.wait();
        run.bury(&victim);
        run.check(
            bounded.value() == 2,
            "a dead holder's permit is not counted",
        );
        // Killed anywhere else, it may have changed nothing yet.
        if run.killed() && run.point != "event.set_unwoken" {
            event.set();
            if run.point != "condition.called" {
                notify();
            }
        }
        run.check(waits.wait() == 0, "a waiter failed");
        run.check(listens.wait() == 0, "a listener failed");
    });
}

//! The models of what sleeps on a futex.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{Relaxed, SeqCst};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

use crate::Model;
use crate::bell::Bell;
use crate::futex;
use crate::sync::barrier::{Arrival, Failure};
use crate::sync::slots::{Part, Space};
use crate::sync::{
    Barrier, BoundedSemaphore, Condition, Event, MemberId, Members, RLock, RawLock, Semaphore,
};
use crate::tally::Tally;

pub(crate) const MODELS: &[Model] = &[
    ("lock: three exclude each other", 3, lock_excludes),
    ("lock: a dead owner is followed once", 2, dead_owner),
    (
        "semaphore: permits reach all sleepers",
        3,
        semaphore_permits,
    ),
    ("semaphore: one permit excludes", 2, semaphore_excludes),
    ("rlock: who is in may enter again, others not", 3, rlock),
    (
        "rlock: reading beside it shows nothing half done",
        3,
        rlock_read,
    ),
    (
        "bounded semaphore: one permit excludes",
        3,
        bounded_excludes,
    ),
    (
        "bounded semaphore: permits reach all sleepers",
        3,
        bounded_permits,
    ),
    ("barrier: all go, round after round", 3, barrier_rounds),
    ("barrier: who breaks it wakes all", 3, barrier_abort),
    ("event: set wakes all", 3, event_set),
    ("event: a pulse wakes all who waited", 2, event_pulse),
    (
        "event: the reaper wakes for a dead setter",
        3,
        event_after_death,
    ),
    (
        "condition: notify wakes one, and one more the other",
        2,
        condition_notify,
    ),
    ("condition: notify_all wakes all", 2, condition_notify_all),
    ("bell: two rings reach two sleepers", 3, bell_two),
    ("bell: rings that meet", 2, bell_meeting),
    ("queue: a shutdown wakes all", 2, shutdown_wakes),
    ("queue: shutdown and the last task done", 3, shutdown_joins),
];

/// A member of the family, by its number. Number 9 is dead.
#[derive(Clone, Copy)]
struct Member(u32);

impl Members for Member {
    fn me(&self) -> MemberId {
        MemberId::new(self.0).unwrap()
    }

    fn is_alive(&self, member: MemberId) -> bool {
        member.get() != 9
    }
}

/// The slots in the objects themselves have to do.
impl Space for Member {
    fn new_part(&self) -> Option<u64> {
        None
    }

    fn part(&self, _at: u64) -> Option<&Part> {
        None
    }

    fn free_part(&self, _at: u64) {}
}

/// Runs `work` in `n` threads with members 1 to n, and `last` here, to the end of all.
fn all<T: Send + Sync + 'static>(
    n: u32,
    shared: T,
    work: impl Fn(Member, &T) + Copy + Send + 'static,
    last: impl FnOnce(Member, &T),
) -> Arc<T> {
    let shared = Arc::new(shared);
    let threads: Vec<_> = (1..=n)
        .map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(Member(number), &shared))
        })
        .collect();
    last(Member(n + 1), &shared);
    threads.into_iter().for_each(|t| t.join().unwrap());
    shared
}

/// What a lock guards: loom reports two that touch it at a time, or without order.
struct Guarded<L> {
    lock: L,
    count: UnsafeCell<u32>,
    recovered: AtomicU32,
}

impl<L> Guarded<L> {
    fn new(lock: L) -> Self {
        Self {
            lock,
            count: UnsafeCell::new(0),
            recovered: AtomicU32::new(0),
        }
    }

    fn add(&self) {
        // SAFETY: under the lock; that it excludes is what loom checks here.
        self.count.with_mut(|count| unsafe { *count += 1 });
    }

    fn count(&self) -> u32 {
        // SAFETY: as above.
        self.count.with(|count| unsafe { *count })
    }
}

// SAFETY: the cell is used under the lock.
unsafe impl<L: Sync> Sync for Guarded<L> {}

fn lock_excludes() {
    let turn = |me: Member, guarded: &Guarded<RawLock>| {
        let _ = guarded.lock.lock(&me);
        guarded.add();
        guarded.lock.unlock();
    };
    let guarded = all(2, Guarded::new(RawLock::new()), turn, turn);
    let _ = guarded.lock.lock(&Member(1));
    assert_eq!(guarded.count(), 3);
}

fn dead_owner() {
    futex::slices_end();
    let guarded = Guarded::new(RawLock::new());
    // The dead one has done its work half: it never unlocks.
    let _ = guarded.lock.lock(&Member(9));
    guarded.add();
    let turn = |me: Member, guarded: &Guarded<RawLock>| {
        let acquired = guarded.lock.lock(&me);
        guarded.add();
        guarded
            .recovered
            .fetch_add(acquired.recovered.into(), Relaxed);
        guarded.lock.unlock();
    };
    let guarded = all(1, guarded, turn, turn);
    assert_eq!(guarded.recovered.load(SeqCst), 1);
    let _ = guarded.lock.lock(&Member(1));
    assert_eq!(guarded.count(), 3);
}

fn semaphore_permits() {
    let take = |_: Member, semaphore: &Semaphore| semaphore.acquire(None).unwrap();
    let give = |_: Member, semaphore: &Semaphore| {
        semaphore.release().unwrap();
        semaphore.release().unwrap();
    };
    let semaphore = all(2, Semaphore::new(0), take, give);
    assert_eq!(semaphore.value(), 0);
}

fn semaphore_excludes() {
    let turn = |_: Member, guarded: &Guarded<Semaphore>| {
        guarded.lock.acquire(None).unwrap();
        guarded.add();
        guarded.lock.release().unwrap();
    };
    let guarded = all(2, Guarded::new(Semaphore::new(1)), turn, turn);
    guarded.lock.acquire(None).unwrap();
    assert_eq!(guarded.count(), 3);
}

fn rlock() {
    let turn = |me: Member, guarded: &Guarded<RLock>| {
        let _ = guarded.lock.acquire(&me, None).unwrap();
        let _ = guarded.lock.acquire(&me, None).unwrap();
        guarded.add();
        guarded.lock.release(&me).unwrap();
        guarded.add();
        guarded.lock.release(&me).unwrap();
    };
    let guarded = all(2, Guarded::new(RLock::new()), turn, turn);
    let _ = guarded.lock.acquire(&Member(1), None).unwrap();
    assert_eq!(guarded.count(), 6);
}

fn rlock_read() {
    // Odd is half done.
    let add = |value: &AtomicU32| {
        let before = value.load(Relaxed);
        value.store(before + 1, Relaxed);
        value.store(before + 2, Relaxed);
    };
    let write = move |me: Member, (lock, value): &(RLock, AtomicU32)| {
        let _ = lock.acquire(&me, None).unwrap();
        add(value);
        lock.release(&me).unwrap();
        lock.with_free(&me, || add(value));
    };
    let read = |me: Member, (lock, value): &(RLock, AtomicU32)| {
        let mut last = 0;
        for _ in 0..2 {
            if let Some(seen) = lock.read_if_free(&me, || value.load(Relaxed)) {
                assert!(seen % 2 == 0 && seen >= last);
                last = seen;
            }
        }
    };
    let shared = all(1, (RLock::new(), AtomicU32::new(0)), read, write);
    let (lock, value) = &*shared;
    let seen = lock.read_if_free(&Member(1), || value.load(Relaxed));
    assert_eq!(seen, Some(4));
}

fn bounded_excludes() {
    let turn = |me: Member, guarded: &Guarded<BoundedSemaphore>| {
        guarded.lock.acquire(&me, None).unwrap();
        guarded.add();
        guarded.lock.release(&me).unwrap();
    };
    let guarded = all(1, Guarded::new(BoundedSemaphore::new(1)), turn, turn);
    guarded.lock.acquire(&Member(1), None).unwrap();
    assert_eq!(guarded.count(), 2);
}

fn bounded_permits() {
    let semaphore = BoundedSemaphore::new(2);
    semaphore.acquire(&Member(3), None).unwrap();
    semaphore.acquire(&Member(3), None).unwrap();
    let take = |me: Member, semaphore: &BoundedSemaphore| semaphore.acquire(&me, None).unwrap();
    let give = |me: Member, semaphore: &BoundedSemaphore| {
        semaphore.release(&me).unwrap();
        semaphore.release(&me).unwrap();
    };
    let semaphore = all(2, semaphore, take, give);
    assert_eq!(semaphore.value(), 0);
}

/// Arrives and waits; whether it was the last.
fn meet(barrier: &Barrier, me: Member) -> Result<bool, Failure> {
    match barrier.arrive(false, &me, None)? {
        Arrival::Last(..) => Ok(true),
        Arrival::Waiter(waiter) => {
            let outcome = waiter.wait(&me, None);
            waiter.leave(&me);
            outcome.map(|_| false)
        }
    }
}

fn barrier_rounds() {
    let turn = |me: Member, guarded: &Guarded<Barrier>| {
        for _ in 0..2 {
            if meet(&guarded.lock, me).unwrap() {
                guarded.recovered.fetch_add(1, Relaxed);
            }
        }
    };
    let guarded = all(1, Guarded::new(Barrier::new(2)), turn, turn);
    assert_eq!(guarded.recovered.load(SeqCst), 2, "one is the last in each");
    assert_eq!(guarded.lock.waiting(), 0);
}

fn barrier_abort() {
    let wait = |me: Member, barrier: &Barrier| {
        assert!(matches!(meet(barrier, me), Err(Failure::Broken)));
    };
    let barrier = all(2, Barrier::new(3), wait, |me, barrier| barrier.abort(&me));
    assert!(barrier.is_broken());
}

fn event_set() {
    let wait = |_: Member, guarded: &Guarded<Event>| {
        guarded.lock.wait(None).unwrap();
        assert_eq!(guarded.count(), 1);
    };
    let set = |_: Member, guarded: &Guarded<Event>| {
        guarded.add();
        guarded.lock.set();
    };
    all(2, Guarded::new(Event::new()), wait, set);
}

fn event_pulse() {
    let event = Event::new();
    let moment = event.now();
    let pulse = |_: Member, event: &Event| {
        event.set();
        event.clear();
    };
    all(
        2,
        event,
        move |_, event| event.wait_since(moment, None).unwrap(),
        pulse,
    );
}

/// A setter dies before its wake-up, whoever reaps it comes at any time after that.
fn event_after_death() {
    let wait = |_: Member, event: &Event| event.wait(None).unwrap();
    let set_and_die = |_: Member, event: &Event| {
        event.mark();
        event.peer_died();
    };
    all(2, Event::new(), wait, set_and_die);
}

struct Meeting {
    lock: RawLock,
    condition: Condition,
    tokens: AtomicU32,
}

impl Meeting {
    fn new() -> Self {
        Self {
            lock: RawLock::new(),
            condition: Condition::new(),
            tokens: AtomicU32::new(0),
        }
    }

    fn take(&self, me: Member) {
        let _ = self.lock.lock(&me);
        while self.tokens.load(Relaxed) == 0 {
            let waiter = self.condition.enlist(&me).unwrap();
            self.lock.unlock();
            waiter.wait(None).unwrap();
            assert!(waiter.leave());
            let _ = self.lock.lock(&me);
        }
        self.tokens.fetch_sub(1, Relaxed);
        self.lock.unlock();
    }

    fn give(&self, me: Member, n: u32, all: bool) {
        let _ = self.lock.lock(&me);
        self.tokens.fetch_add(n, Relaxed);
        if all {
            self.condition.notify_all(&me);
        } else {
            self.condition.notify(1, &me);
        }
        self.lock.unlock();
    }
}

fn condition_notify() {
    let take = |me: Member, meeting: &Meeting| meeting.take(me);
    all(2, Meeting::new(), take, |me, meeting| {
        meeting.give(me, 1, false);
        meeting.give(me, 1, false);
    });
}

fn condition_notify_all() {
    let take = |me: Member, meeting: &Meeting| meeting.take(me);
    all(2, Meeting::new(), take, |me, meeting| {
        meeting.give(me, 2, true)
    });
}

struct Tokens {
    bell: Bell,
    tokens: AtomicU32,
}

impl Tokens {
    fn new() -> Self {
        Self {
            bell: Bell::new(),
            tokens: AtomicU32::new(0),
        }
    }

    fn take(&self) {
        let less = |n: u32| n.checked_sub(1);
        while self.tokens.fetch_update(SeqCst, SeqCst, less).is_err() {
            self.bell
                .wait(|| self.tokens.load(SeqCst) > 0, None)
                .unwrap();
        }
    }

    fn give(&self) {
        self.tokens.fetch_add(1, SeqCst);
        self.bell.ring(1);
    }
}

fn bell_two() {
    all(
        2,
        Tokens::new(),
        |_, tokens| tokens.take(),
        |_, tokens| {
            tokens.give();
            tokens.give();
        },
    );
}

/// Two ring at a time, two sleep.
fn bell_meeting() {
    let work = |me: Member, tokens: &Tokens| {
        if me.0 == 1 {
            tokens.give()
        } else {
            tokens.take()
        }
    };
    all(3, Tokens::new(), work, |_, tokens| tokens.give());
}

/// What `channel/queue.rs` puts together: a log, here a count, its bell and the tally.
struct Ending {
    lock: RawLock,
    puts: AtomicU64,
    items: Bell,
    tally: Tally,
}

impl Ending {
    fn new(puts: u64) -> Self {
        Self {
            lock: RawLock::new(),
            puts: AtomicU64::new(puts),
            items: Bell::new(),
            tally: Tally::new(),
        }
    }

    /// As `Queue::try_put`: the phase is looked at under the lock.
    fn put(&self, me: Member) {
        let guard = self.lock.guard(&me);
        let put = self.tally.is_open();
        if put {
            self.puts.fetch_add(1, SeqCst);
        }
        drop(guard);
        if put {
            self.items.ring(1);
        }
    }

    /// As `Queue::shutdown`.
    fn shutdown(&self, me: Member, taken: Option<u64>) {
        let guard = self.lock.guard(&me);
        self.tally.end(taken.is_some(), taken.unwrap_or(0));
        drop(guard);
        self.items.ring(u32::MAX);
        self.tally.ring();
    }

    /// As `Queue::get`, of a queue in which nothing is taken: whether there was an item.
    fn get(&self) -> bool {
        loop {
            let is_open = self.tally.is_open();
            let any = self.puts.load(SeqCst) > 0;
            if any || !is_open {
                return any;
            }
            let ready = || self.puts.load(SeqCst) > 0 || !self.tally.is_open();
            self.items.wait(ready, None).unwrap();
        }
    }
}

fn shutdown_wakes() {
    let work = |me: Member, queue: &Ending| {
        if me.0 == 1 {
            queue.put(me);
        } else if !queue.get() {
            assert_eq!(queue.puts.load(SeqCst), 0, "an item after the end");
        }
    };
    all(3, Ending::new(0), work, |me, queue| {
        queue.shutdown(me, None)
    });
}

/// Three were put and two taken, of which one is done: the shutdown makes the other the last.
fn shutdown_joins() {
    let queue = Ending::new(3);
    assert!(queue.tally.task_done(3));
    let work = |me: Member, queue: &Ending| {
        if me.0 == 1 {
            assert!(queue.tally.task_done(3));
        } else {
            queue.tally.join(|| queue.puts.load(SeqCst), None).unwrap();
        }
    };
    all(2, queue, work, |me, queue| queue.shutdown(me, Some(2)));
}

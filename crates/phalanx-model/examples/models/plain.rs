//! What lies in the arena, repeated on small structs: the same loads and stores in the same order.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU64, AtomicUsize};
use loom::thread;

use crate::Model;

pub(crate) const MODELS: &[Model] = &[
    ("log: what is published is whole", 3, log_publishes),
    (
        "references: the last one reclaims, and nobody after",
        3,
        references,
    ),
    ("free list: each block has one owner", 2, free_list),
];

/// Two segments with room for two records each: see `channel/log.rs`, `append` and `peek`.
#[derive(Default)]
struct Segment {
    next: AtomicUsize,
    commit: AtomicU64,
    records: [UnsafeCell<u64>; 2],
}

struct Log {
    segments: [Segment; 2],
    puts: AtomicU64,
}

// SAFETY: records are written before `commit` or `next` publishes them, and read after that.
unsafe impl Sync for Log {}

impl Log {
    fn append(&self, number: u64) {
        let segment = &self.segments[(number / 2) as usize];
        let place = (number % 2) as usize;
        // SAFETY: nobody reads beyond `commit`; that this is so is what loom checks.
        segment.records[place].with_mut(|record| unsafe { *record = 100 + number });
        if number > 0 && place == 0 {
            segment.commit.store(1, Relaxed);
            self.segments[0].next.store(1, Release);
        } else {
            segment.commit.store(place as u64 + 1, Release);
        }
        self.puts.store(number + 1, Release);
    }

    /// The record of that number, if it is there: `next` is looked at before `commit`.
    fn peek(&self, number: u64) -> Option<u64> {
        let place = number % 2;
        let mut segment = &self.segments[0];
        if number >= 2 {
            let next = segment.next.load(Acquire);
            assert!(
                next == 0 || segment.commit.load(Acquire) == 2,
                "messages passed over"
            );
            if next == 0 {
                return None;
            }
            segment = &self.segments[1];
        }
        (place < segment.commit.load(Acquire)).then(|| {
            // SAFETY: it lies before `commit`.
            segment.records[place as usize].with(|record| unsafe { *record })
        })
    }
}

fn log_publishes() {
    let log = Arc::new(Log {
        segments: Default::default(),
        puts: AtomicU64::new(0),
    });
    let producer = {
        let log = Arc::clone(&log);
        thread::spawn(move || (0..4).for_each(|number| log.append(number)))
    };
    let mut taken = 0;
    while taken < 4 {
        let puts = log.puts.load(Acquire);
        match log.peek(taken) {
            Some(record) => {
                assert_eq!(record, 100 + taken);
                taken += 1;
            }
            None => {
                assert!(puts <= taken, "counted, and not to be found");
                thread::yield_now();
            }
        }
    }
    producer.join().unwrap();
}

/// A counted object: see `arena/refs.rs`, `add_ref` and `drop_count`.
struct Counted {
    refs: AtomicU64,
    value: UnsafeCell<u64>,
}

// SAFETY: the value is used by holders, and changed by the last one.
unsafe impl Sync for Counted {}

impl Counted {
    fn add(&self) -> bool {
        let more = |n: u64| (n > 0).then(|| n + 1);
        self.refs.fetch_update(AcqRel, Relaxed, more).is_ok()
    }

    fn look(&self) {
        // SAFETY: a reference is held.
        self.value.with(|value| assert_eq!(unsafe { *value }, 1));
    }

    fn release(&self) {
        let less = |n: u64| n.checked_sub(1);
        if self.refs.fetch_update(AcqRel, Relaxed, less) == Ok(1) {
            // SAFETY: nobody else holds one; that this is so is what loom checks.
            self.value.with_mut(|value| unsafe { *value = 0 });
        }
    }
}

fn references() {
    let object = Arc::new(Counted {
        refs: AtomicU64::new(1),
        value: UnsafeCell::new(1),
    });
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let object = Arc::clone(&object);
            // By a handle, which may have come too late.
            thread::spawn(move || {
                if object.add() {
                    object.look();
                    object.release();
                }
            })
        })
        .collect();
    object.look();
    object.release();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(object.refs.load(Relaxed), 0);
    assert!(!object.add());
}

/// A free list: see `arena/alloc.rs`, `pop` and `free`. Blocks are numbered from 1.
struct List {
    lock: crate::sync::RawLock,
    head: AtomicUsize,
    next: [AtomicUsize; 2],
    blocks: [UnsafeCell<u32>; 2],
}

// SAFETY: a block is used by whoever has taken it off the list.
unsafe impl Sync for List {}

struct Member(u32);

impl crate::sync::Members for Member {
    fn me(&self) -> crate::sync::MemberId {
        crate::sync::MemberId::new(self.0).unwrap()
    }

    fn is_alive(&self, _member: crate::sync::MemberId) -> bool {
        true
    }
}

impl List {
    fn pop(&self, me: &Member) -> Option<usize> {
        if self.head.load(Relaxed) == 0 {
            return None;
        }
        let _guard = self.lock.guard(me);
        let head = self.head.load(Acquire);
        if head == 0 {
            return None;
        }
        self.head.store(self.next[head - 1].load(Relaxed), Release);
        Some(head)
    }

    fn push(&self, block: usize, me: &Member) {
        let _guard = self.lock.guard(me);
        self.next[block - 1].store(self.head.load(Relaxed), Relaxed);
        self.head.store(block, Release);
    }

    fn turn(&self, me: &Member) {
        if let Some(block) = self.pop(me) {
            // SAFETY: it is ours; that it is nobody else's is what loom checks.
            self.blocks[block - 1].with_mut(|content| unsafe { *content = me.0 });
            self.push(block, me);
        }
    }
}

fn free_list() {
    let list = Arc::new(List {
        lock: crate::sync::RawLock::new(),
        head: AtomicUsize::new(1),
        next: [AtomicUsize::new(2), AtomicUsize::new(0)],
        blocks: Default::default(),
    });
    let threads: Vec<_> = (1..=2)
        .map(|number| {
            let list = Arc::clone(&list);
            thread::spawn(move || list.turn(&Member(number)))
        })
        .collect();
    list.turn(&Member(3));
    threads.into_iter().for_each(|t| t.join().unwrap());
    let mut both = [list.pop(&Member(1)).unwrap(), list.pop(&Member(1)).unwrap()];
    both.sort_unstable();
    assert_eq!((both, list.pop(&Member(1))), ([1, 2], None));
}

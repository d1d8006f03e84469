//! The futex of the model: a table of sleepers under one lock, as in the kernel.
//!
//! Deadlines never come, unless [`slices_end`] says so: a wait that only its slice would end is
//! then a deadlock, which the model checker reports as such.

use std::collections::VecDeque;
use std::time::Instant;

use loom::sync::Mutex;
use loom::sync::atomic::AtomicU32;
use loom::sync::atomic::Ordering::SeqCst;
use loom::thread::{self, Thread};

/// As in `phalanx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Woken,
    TimedOut,
    /// There are no signals in the model.
    Interrupted,
}

struct Sleeper {
    word: usize,
    ticket: u64,
    thread: Thread,
}

#[derive(Default)]
struct Table {
    sleepers: VecDeque<Sleeper>,
    tickets: u64,
    slices_end: bool,
}

loom::lazy_static! {
    static ref TABLE: Mutex<Table> = Mutex::new(Table::default());
}

/// From now on in this model, each wait with a deadline times out at once.
pub(crate) fn slices_end() {
    TABLE.lock().unwrap().slices_end = true;
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Wait {
    let key = std::ptr::from_ref(word) as usize;
    let mut table = TABLE.lock().unwrap();
    if word.load(SeqCst) != expected {
        return Wait::Woken;
    }
    if table.slices_end && deadline.is_some() {
        drop(table);
        thread::yield_now();
        return Wait::TimedOut;
    }
    table.tickets += 1;
    let ticket = table.tickets;
    table.sleepers.push_back(Sleeper {
        word: key,
        ticket,
        thread: thread::current(),
    });
    loop {
        drop(table);
        thread::park();
        table = TABLE.lock().unwrap();
        if table.sleepers.iter().all(|s| s.ticket != ticket) {
            return Wait::Woken;
        }
    }
}

pub(crate) fn wake(word: &AtomicU32, n: u32) -> usize {
    let key = std::ptr::from_ref(word) as usize;
    let mut table = TABLE.lock().unwrap();
    let mut woken = Vec::new();
    table.sleepers.retain(|sleeper| {
        let chosen = sleeper.word == key && (woken.len() as u64) < u64::from(n);
        if chosen {
            woken.push(sleeper.thread.clone());
        }
        !chosen
    });
    drop(table);
    woken.iter().for_each(Thread::unpark);
    woken.len()
}

pub(crate) fn wake_all(word: &AtomicU32) -> usize {
    wake(word, u32::MAX)
}

//! A queue that gets and gives many small messages at a time.

use phalanx::channel::Queue;
use std::sync::atomic::Ordering::SeqCst;

use super::{Child, Run, VICTIMS, audited, body, has_buffer, retry, size_of_message, soon};

/// Messages that are put, and taken, at a time.
const MANY: usize = 6;

/// The ids of small messages from `begin` to `end`.
fn small(begin: u32, end: u32) -> Vec<u32> {
    (begin..end)
        .filter(|&id| !has_buffer(id) && size_of_message(id) < 10_000)
        .collect()
}

fn put(queue: &Queue, ids: &[u32]) {
    let mut run = phalanx::channel::Run::new();
    for &id in ids {
        assert!(run.add(&body(id), 0));
    }
    retry(|| queue.put_run(&mut run, None)).unwrap();
}

/// Takes some, and says how many.
fn take(queue: &Queue, run: &Run) -> usize {
    let mut taken = phalanx::channel::Run::new();
    let count = queue
        .try_get_run(&mut taken, MANY, 20_000, |tag| tag == 0)
        .unwrap();
    run.check(taken.len() == count, "a run of another length");
    for (_, bytes) in taken.iter() {
        let id = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
        run.check(bytes == body(id), format_args!("message {id} is torn"));
        let before = run.board.seen[id as usize].fetch_add(1, SeqCst);
        run.check(before == 0, format_args!("message {id} was received twice"));
    }
    count
}

pub(super) fn runs(run: &Run, bound: Option<u64>) {
    const SIBLINGS: u32 = 150;
    audited(run, || {
        let queue = Queue::new(bound).unwrap();
        let ids = small(0, SIBLINGS);
        // Those that are no messages of this scenario count as received.
        for id in (0..SIBLINGS).filter(|id| !ids.contains(id)) {
            run.board.seen[id as usize].store(1, SeqCst);
        }
        let sibling = Child::fork(|| ids.chunks(MANY).for_each(|ids| put(&queue, ids)));
        let victim = run.victim(|| {
            for ids in small(VICTIMS, VICTIMS + 300).chunks(MANY) {
                put(&queue, ids);
                for &id in ids {
                    run.board.sent[id as usize].store(1, SeqCst);
                }
                take(&queue, run);
            }
        });
        loop {
            let over = run.bury(&victim) && sibling.poll().is_some();
            if take(&queue, run) > 0 {
                continue;
            }
            match retry(|| queue.wait_for_item(soon())) {
                Ok(()) => {}
                Err(error) => {
                    run.check(error.is_empty(), &error);
                    if over {
                        break;
                    }
                }
            }
        }
        run.check(sibling.wait() == 0, "a sibling failed");
        run.check(queue.len().unwrap() == 0, "something is left");
        run.all_arrived_but(SIBLINGS, MANY);
    });
}

//! The scenarios of a queue's end and of `join`: see `../crash.rs`.

use phalanx::channel::Queue;

use super::{Child, Run, VICTIMS, audited, put, retry, soon};

/// The victim shuts one queue, in which others sleep, and reports the last work of another, which
/// somebody waits for. Nobody sleeps on, whoever has to wake them.
pub(super) fn shutdown(run: &Run) {
    const WORK: u32 = 3;
    audited(run, || {
        let [queue, work] = [(); 2].map(|()| Queue::new(Some(u64::from(WORK))).unwrap());
        for id in 0..WORK {
            put(&work, id);
            drop(work.try_get().unwrap());
        }
        let reader = Child::fork(|| while retry(|| queue.get(None)).is_ok() {});
        let joiner = Child::fork(|| retry(|| work.join(None)).unwrap());
        let victim = run.victim(|| {
            for id in VICTIMS..VICTIMS + 2 * WORK {
                put(&queue, id);
            }
            (0..WORK).for_each(|_| work.task_done().unwrap());
            queue.shutdown(true).unwrap();
        });
        victim.wait();
        run.bury(&victim);
        while work.unfinished() > 0 {
            work.task_done().unwrap();
        }
        // Once more would wake them; it must not be needed.
        if !queue.is_shut() {
            queue.shutdown(true).unwrap();
        }
        run.check(reader.wait() == 0, "the reader failed");
        run.check(joiner.wait() == 0, "who waited for the work failed");
        run.check(queue.len().unwrap() == 0, "something is left");
        let error = retry(|| queue.get(None)).unwrap_err();
        run.check(error.is_closed(), error);
    });
}

/// What the dead have taken and not reported counts as done, and nothing else does.
pub(super) fn work(run: &Run) {
    const WORK: u32 = 24;
    audited(run, || {
        let queue = Queue::joinable(None).unwrap();
        (0..WORK).for_each(|id| put(&queue, id));
        let do_all = || {
            while queue.try_get().unwrap().is_some() {
                queue.task_done().unwrap();
            }
        };
        // Dies with something in its hands, for the victim to write off.
        Child::fork(|| drop(queue.try_get().unwrap())).wait_unburied();
        let victim = run.victim(|| {
            do_all();
            retry(|| queue.join(None)).unwrap();
        });
        let sibling = Child::fork(do_all);
        victim.wait();
        run.check(sibling.wait() == 0, "the sibling failed");
        run.bury(&victim);
        do_all();
        let joined = retry(|| queue.join(soon()));
        run.check(joined.is_ok(), "work of the dead is waited for");
        put(&queue, WORK);
        run.check(queue.unfinished() == 1, "too much is done");
        do_all();
        run.check(queue.unfinished() == 0, "too little is done");
        run.check(queue.task_done().is_err(), "more is done than was put");
    });
}

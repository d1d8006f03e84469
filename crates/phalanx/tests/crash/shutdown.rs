//! The scenario of a queue's end and of `join`: see `../crash.rs`.

use phalanx::channel::Queue;

use super::{Child, Run, VICTIMS, audited, put, retry};

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

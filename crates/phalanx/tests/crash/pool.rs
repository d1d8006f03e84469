//! The scenario of the pool: see `../crash.rs`.
//!
//! The victim is one of three workers. Every task comes back once, but for one that the victim may
//! have had in hand, which is told once.

use phalanx::pool::{Parent, Ticket, Worker};

use super::{Child, Run, audited, body, buffers, has_buffer, retry, soon};

const TASKS: u32 = 180;

/// Delivers each task as it is. Ends when the pool does.
fn work(parent: &Parent) {
    let worker = Worker::enter(parent.core().clone()).unwrap();
    worker.ready();
    let mut bytes = Vec::new();
    while let Ok(task) = retry(|| worker.next(&mut bytes, None)) {
        let number = task.number;
        let large = task.large(&worker).unwrap();
        let body = large.body.as_deref().unwrap_or(&bytes);
        worker.finish(number, body, 0, large.buffers).unwrap();
    }
    worker.leave();
}

/// What has come and what was lost, by task.
struct Books<'a> {
    run: &'a Run<'a>,
    parent: &'a Parent,
    delivered: Vec<u32>,
    lost: Vec<u64>,
}

impl Books<'_> {
    fn collect(&mut self) {
        let mut bytes = Vec::new();
        while let Some(delivery) = self.parent.collect(&mut bytes).unwrap() {
            let id = delivery.ticket.unwrap().index as u32;
            self.delivered[id as usize] += 1;
            let inline = delivery.body(&bytes).to_vec();
            let large = delivery.large(self.parent).unwrap();
            let whole = large.body.as_deref().unwrap_or(&inline) == body(id)
                && large.buffers.len() == usize::from(has_buffer(id))
                && large
                    .buffers
                    .iter()
                    .all(|b| b.len() == 60_000 && b[7] == id as u8);
            self.run.check(whole, format_args!("task {id} is torn"));
        }
    }

    /// Buries the victim once it is dead.
    fn look(&mut self, victim: &Child, buried: &mut bool) {
        if *buried || victim.poll().is_none() {
            return;
        }
        *buried = true;
        self.run.bury(victim);
        let fallen = self.parent.bury(victim.pid as u32).unwrap();
        self.collect();
        let lost = fallen.task.and_then(|task| self.parent.lose(task));
        self.lost.extend(lost.map(|ticket| ticket.index));
        let again = self.parent.bury(victim.pid as u32).unwrap();
        self.run.check(again.worker.is_none(), "buried twice");
    }
}

/// A parent, two workers that live, and the victim.
pub(super) fn pool(run: &Run) {
    audited(run, || {
        let parent = Parent::new().unwrap();
        // The victim comes first, so that it makes the roster.
        let victim = run.victim(|| work(&parent));
        while parent.workers().is_empty() && victim.poll().is_none() {
            std::thread::yield_now();
        }
        let mut books = Books {
            run,
            parent: &parent,
            delivered: vec![0; TASKS as usize],
            lost: Vec::new(),
        };
        let submit = |id: u32| {
            let ticket = Ticket {
                job: 1,
                index: u64::from(id),
            };
            parent
                .submit(ticket, b"", &body(id), 0, buffers(id))
                .unwrap();
        };
        // The first task is the victim's alone: its siblings might leave it none.
        submit(0);
        while parent.due() > 0 && victim.poll().is_none() {
            let _ = retry(|| parent.wait(|| false, soon()));
            books.collect();
        }
        let siblings = [Child::fork(|| work(&parent)), Child::fork(|| work(&parent))];
        let mut buried = false;
        for id in 1..TASKS {
            submit(id);
            // In bursts, with the workers idle in between.
            if id % 9 == 8 {
                while parent.due() > 0 {
                    let _ = retry(|| parent.wait(|| false, soon()));
                    books.collect();
                    books.look(&victim, &mut buried);
                }
            }
        }
        parent.close();
        for sibling in &siblings {
            run.check(sibling.wait() == 0, "a sibling failed");
        }
        victim.wait();
        books.look(&victim, &mut buried);
        run.check(parent.due() == 0, "something is due");
        let (delivered, lost) = (books.delivered, books.lost);
        let twice = delivered.iter().any(|&times| times > 1);
        run.check(!twice, format_args!("came twice: {delivered:?}"));
        let whole = delivered.iter().filter(|&&times| times == 1).count() + lost.len();
        run.check(
            whole == TASKS as usize,
            format_args!("lost, and not told: {lost:?}"),
        );
        let no_task_in_hand = run.point.starts_with("pool.");
        let allowed = usize::from(run.killed() && !no_task_in_hand);
        run.check(
            lost.len() <= allowed,
            format_args!("too much is lost: {lost:?}"),
        );
    });
}

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::{Function, Parent, Ticket, Worker};
use crate::arena::{Arena, Buffer, Shared};
use crate::testing::{Child, Counter, in_child};

/// A worker whose results are its tasks' bytes, and that kills itself over a task "die".
fn echo(parent: &Parent) -> Child {
    in_child(|| work(parent))
}

fn work(parent: &Parent) {
    let worker = Worker::enter(parent.core().clone()).unwrap();
    worker.ready();
    let mut bytes = Vec::new();
    loop {
        let task = match worker.next(&mut bytes, None) {
            Ok(task) => task,
            Err(error) if error.is_interrupted() => continue,
            Err(error) => {
                assert!(error.is_closed(), "{error}");
                worker.leave();
                return;
            }
        };
        let (number, tag) = (task.number, task.tag);
        if bytes == b"die" {
            // SAFETY: kills this process, as intended.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        let large = task.large(&worker).unwrap();
        let body = large.body.as_deref().unwrap_or(&bytes);
        worker.finish(number, body, tag, large.buffers).unwrap();
    }
}

fn ticket(index: u64) -> Ticket {
    Ticket { job: 1, index }
}

/// What has come and what was lost, checked to be so once.
struct Run<'a> {
    parent: &'a Parent,
    seen: HashSet<u64>,
    lost: HashSet<u64>,
}

impl<'a> Run<'a> {
    fn new(parent: &'a Parent) -> Self {
        Self {
            parent,
            seen: HashSet::new(),
            lost: HashSet::new(),
        }
    }

    fn collect(&mut self) {
        let mut bytes = Vec::new();
        while let Some(delivery) = self.parent.collect(&mut bytes).unwrap() {
            let ticket = delivery.ticket.expect("workers send no notes here");
            assert!(self.seen.insert(ticket.index), "{ticket:?} came twice");
        }
    }

    fn wait(&self) {
        let slice = Instant::now() + Duration::from_millis(5);
        if let Err(error) = self.parent.wait(|| false, Some(slice)) {
            assert!(error.is_timeout() || error.is_interrupted(), "{error}");
        }
    }

    /// Buries a dead worker; true if that costs a task.
    fn bury(&mut self, pid: u32) -> bool {
        let fallen = self.parent.bury(pid).unwrap();
        self.collect();
        match fallen.task.and_then(|task| self.parent.lose(task)) {
            Some(ticket) => {
                assert!(!self.seen.contains(&ticket.index));
                assert!(self.lost.insert(ticket.index), "{ticket:?} was lost twice");
                true
            }
            None => false,
        }
    }

    fn finish(mut self, children: Vec<Child>, total: u64) -> Self {
        while self.parent.due() > 0 {
            self.wait();
            self.collect();
        }
        self.parent.close();
        children.into_iter().for_each(Child::wait);
        self.collect();
        assert_eq!((self.seen.len() + self.lost.len()) as u64, total);
        self
    }
}

#[test]
fn smoke() {
    let parent = Parent::new().unwrap();
    let children = vec![echo(&parent), echo(&parent)];
    for i in 0..2_000u64 {
        let number = parent.submit(ticket(i), b"", &i.to_ne_bytes(), 3, Vec::new());
        assert_eq!(number.unwrap(), i);
    }
    let run = Run::new(&parent).finish(children, 2_000);
    assert_eq!(run.seen.len(), 2_000);
    assert!(
        parent
            .submit(ticket(0), b"", b"", 0, Vec::new())
            .unwrap_err()
            .is_closed()
    );
}

#[test]
fn large_bodies_and_buffers_go_there_and_back() {
    let parent = Parent::new().unwrap();
    let child = echo(&parent);
    let arena = Arena::get().unwrap();
    let body: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let buffer = Buffer::copy(arena, &body[1..100_000]).unwrap();
    let mut bytes = Vec::new();
    parent
        .submit(ticket(0), b"head", &body, 5, vec![buffer])
        .unwrap();
    parent
        .submit(ticket(1), b"head", b"+ body", 5, Vec::new())
        .unwrap();
    let mut next = || loop {
        if let Some(delivery) = parent.collect(&mut bytes).unwrap() {
            return (delivery, bytes.clone());
        }
        let _ = parent.wait(|| false, None);
    };
    let (first, _) = next();
    assert_eq!(
        (first.ticket, first.tag, first.is_plain()),
        (Some(ticket(0)), 5, false)
    );
    let large = first.large(&parent).unwrap();
    assert!(large.body.as_deref() == Some(&body));
    assert!(large.buffers[0][..] == body[1..100_000]);
    let (second, bytes) = next();
    assert!(second.is_plain());
    assert_eq!(second.body(&bytes), b"head+ body");
    parent.stop();
    child.wait();
}

#[test]
fn a_death_costs_exactly_its_task() {
    let parent = Parent::new().unwrap();
    let total = 300;
    for i in 0..total {
        let body: &[u8] = if i % 30 == 7 { b"die" } else { b"live" };
        parent.submit(ticket(i), b"", body, 0, Vec::new()).unwrap();
    }
    let mut children = vec![echo(&parent), echo(&parent)];
    let mut run = Run::new(&parent);
    let mut deaths = 0;
    while deaths < 10 {
        run.wait();
        run.collect();
        let dead = children.iter().position(|c| !c.is_running());
        if let Some(place) = dead {
            let child = children.swap_remove(place);
            let pid = child.pid();
            child.kill();
            assert!(run.bury(pid), "a death in a task costs that task");
            assert!(!run.bury(pid), "and only once");
            deaths += 1;
            children.push(echo(&parent));
        }
    }
    let run = run.finish(children, total);
    assert!(run.lost.iter().all(|i| i % 30 == 7) && run.lost.len() == 10);
}

#[test]
fn workers_killed_at_any_moment_lose_nothing_else() {
    let parent = Parent::new().unwrap();
    let total = 30_000;
    let mut children: Vec<_> = (0..3).map(|_| echo(&parent)).collect();
    let mut run = Run::new(&parent);
    let (mut submitted, mut kills, mut seed) = (0u64, 0, 0x2545_f491u64);
    while submitted < total {
        for _ in 0..200 {
            let body = submitted.to_ne_bytes();
            parent
                .submit(ticket(submitted), b"", &body, 0, Vec::new())
                .unwrap();
            submitted += 1;
        }
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // Let them run for a moment that differs each time.
        let until = parent.backlog().saturating_sub(seed >> 33 & 127);
        while parent.backlog() > until {
            std::hint::spin_loop();
        }
        let child = children.swap_remove((seed >> 40) as usize % 3);
        let pid = child.pid();
        child.kill();
        kills += 1;
        run.bury(pid);
        children.push(echo(&parent));
    }
    let run = run.finish(children, total);
    assert!(run.lost.len() <= kills);
}

#[test]
fn a_killed_idle_worker_costs_nothing() {
    let parent = Parent::new().unwrap();
    for round in 0..20 {
        let child = echo(&parent);
        let mut run = Run::new(&parent);
        parent
            .submit(ticket(round), b"", b"x", 0, Vec::new())
            .unwrap();
        while parent.due() > 0 {
            run.wait();
            run.collect();
        }
        let pid = child.pid();
        child.kill();
        assert_eq!(parent.workers(), [pid]);
        let fallen = parent.bury(pid).unwrap();
        assert_eq!((fallen.worker, fallen.was_ready), (Some(0), true));
        assert_eq!(fallen.task.and_then(|task| parent.lose(task)), None);
        assert!(parent.workers().is_empty());
    }
}

#[test]
fn a_death_before_the_start_is_told_apart() {
    let parent = Parent::new().unwrap();
    let entered = Shared::create(Counter(0.into())).unwrap();
    let child = in_child(|| {
        let _worker = Worker::enter(parent.core().clone()).unwrap();
        entered.0.store(1, SeqCst);
        loop {
            std::thread::park();
        }
    });
    while entered.0.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    let pid = child.pid();
    child.kill();
    let fallen = parent.bury(pid).unwrap();
    assert_eq!((fallen.was_ready, fallen.task), (false, None));
    assert_eq!(parent.bury(1).unwrap().worker, None);
}

#[test]
fn many_workers_find_a_place() {
    let parent = Parent::new().unwrap();
    let children: Vec<_> = (0..40).map(|_| echo(&parent)).collect();
    for i in 0..400 {
        parent.submit(ticket(i), b"", b"", 0, Vec::new()).unwrap();
    }
    Run::new(&parent).finish(children, 400);
    let workers: HashSet<_> = parent.workers().into_iter().collect();
    assert_eq!(workers.len(), 40);
}

#[test]
fn functions_are_found_by_their_keys_and_go_with_the_last_holder() {
    let arena = Arena::get().unwrap();
    let large = vec![7u8; 200_000];
    let parts: [&[u8]; 2] = [b"partial", &large];
    let function = Function::new(arena, &parts).unwrap();
    let key = super::FunctionKey::from_bytes(function.key().to_bytes());
    assert_eq!(key, function.key());
    in_child(|| {
        let fetched = Function::fetch(arena.family(), key).unwrap();
        assert_eq!(fetched.bytes().unwrap().len(), 200_007);
        assert!(fetched.is(&parts) && !fetched.is(&[b"partial"]));
    })
    .wait();
    drop(function);
    until_gone(|| Function::fetch(arena.family(), key).map(drop));
}

#[test]
fn what_was_never_taken_is_freed_with_the_pool() {
    let arena = Arena::get().unwrap();
    let parent = Parent::new().unwrap();
    let handle = parent.core().handle();
    let buffer = Buffer::copy(arena, &[1; 100_000]).unwrap();
    parent
        .submit(ticket(0), b"", &[2; 100_000], 0, vec![buffer])
        .unwrap();
    drop(parent);
    until_gone(|| Shared::<super::PoolCore>::attach(arena.family(), handle).map(drop));
}

/// The children of tests that run beside this one hold what was there when they were forked.
fn until_gone(fetch: impl Fn() -> crate::Result<()>) {
    loop {
        Arena::get().unwrap().reap_all();
        match fetch() {
            Ok(()) => std::thread::yield_now(),
            Err(error) => return assert!(error.is_gone(), "{error}"),
        }
    }
}

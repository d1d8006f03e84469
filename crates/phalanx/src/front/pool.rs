//! A pool of processes that run tasks.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::crew::{Crew, Ended, Tag};
use super::job::{Job, Results, Task};
use super::{child, task};
use crate::arena::Buffer;
use crate::error::{Error, Kind, Result};
use crate::pool::{Delivery, Parent, Ticket};
use crate::sync::SLICE;

/// Tasks of an `imap` that are under way or unread, for each worker.
const WINDOW: usize = 8;

/// Processes that wait for tasks: functions to call, with their arguments.
///
/// ```
/// use phalanx::Pool;
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let pool = Pool::new(2)?;
///     assert_eq!(pool.map(0..5, |n| n * n)?, [0, 1, 4, 9, 16]);
///     assert_eq!(pool.apply(|word: String| word.len(), "four".into())?, 4);
///     pool.join()
/// }
/// ```
///
/// Tasks are functions and closures that capture nothing, as for [`Process`](crate::Process);
/// arguments and results go by serde. Any thread may submit tasks and wait for them.
///
/// # When a process dies
/// The death of a worker costs the task it runs, and no other: that task's error `is_peer_death`,
/// and says how the worker ended. Another worker takes its place. The workers are killed when this
/// process ends, in whatever way, and when the pool and all its [`Task`]s are dropped.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) parent: Parent,
    size: usize,
    crew: Mutex<Crew>,
    rounds: Mutex<Rounds>,
    /// Held while results are taken from the workers: so none is under way when one is struck off.
    space: Mutex<Vec<u8>>,
    pub(super) arrived: Mutex<HashMap<u64, VecDeque<(u64, Outcome)>>>,
    /// Counts what has been put there.
    news: AtomicU64,
    pub(super) next_job: AtomicU64,
}

/// When somebody has to look after the workers next.
#[derive(Debug)]
struct Rounds {
    due: Instant,
    pause: Duration,
}

impl Rounds {
    /// After a death another one is likely.
    const SHORTEST: Duration = Duration::from_millis(2);

    fn looked(&mut self, found_dead: bool) {
        self.pause = if found_dead {
            Self::SHORTEST
        } else {
            SLICE.min(self.pause * 2)
        };
        self.due = Instant::now() + self.pause;
    }
}

/// What came of a task: bytes to decode, or why there are none.
pub(super) type Outcome = Result<Body>;

#[derive(Debug)]
pub(super) enum Body {
    Inline(Vec<u8>),
    Large(Buffer),
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Large(buffer) => buffer,
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of so many worker processes, which are started now.
    ///
    /// # Errors
    /// `is_invalid` for 0 workers, or if [`init`](crate::init) was not called in `main`; else as
    /// [`Process::spawn`](crate::Process::spawn).
    pub fn new(workers: usize) -> Result<Self> {
        if workers == 0 {
            return Err(Error::new(Kind::Invalid, "a pool needs at least 1 worker"));
        }
        child::check_ready()?;
        let parent = Parent::new()?;
        let crew = Crew::new(workers, &parent)?;
        let inner = Inner {
            parent,
            size: workers,
            crew: Mutex::new(crew),
            rounds: Mutex::new(Rounds {
                due: Instant::now() + SLICE,
                pause: SLICE,
            }),
            space: Mutex::default(),
            arrived: Mutex::default(),
            news: AtomicU64::new(0),
            next_job: AtomicU64::new(0),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// How many workers the pool has when all live.
    pub fn workers(&self) -> usize {
        self.inner.size
    }

    /// The process ids of the workers.
    pub fn worker_ids(&self) -> Vec<u32> {
        lock(&self.inner.crew).pids()
    }

    /// Calls `function` with `argument` in a worker, and waits for the result.
    ///
    /// # Errors
    /// `is_panic` if the function panicked, `is_peer_death` if its worker died; `is_arena_full`,
    /// `is_unsupported` if a type cannot be sent; what a shared object in the result says
    /// (`is_gone`).
    pub fn apply<A, R, F>(&self, function: F, argument: A) -> Result<R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.spawn(function, argument)?.join()
    }

    /// Has a worker call `function` with `argument`, and does not wait.
    ///
    /// # Errors
    /// `is_arena_full`, `is_unsupported` if the argument's type cannot be sent.
    pub fn spawn<A, R, F>(&self, function: F, argument: A) -> Result<Task<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        let job = Job::new(&self.inner);
        job.submit(0, task::of_task(function), &argument)?;
        Ok(Task::new(job))
    }

    /// Calls `function` with each of `items`, and gives the results in their order.
    ///
    /// All items are taken and sent at once; see [`imap`](Self::imap) for more than fit into
    /// memory. Each is a task of its own.
    ///
    /// # Errors
    /// If some of the calls fail, all others are still waited for, and then the error of the first
    /// is returned; see [`map_each`](Self::map_each) for all of them, and [`apply`](Self::apply)
    /// for what there may be.
    pub fn map<I, A, R, F>(&self, items: I, function: F) -> Result<Vec<R>>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.map_each(items, function).into_iter().collect()
    }

    /// As [`map`](Self::map), with a result or an error for each item.
    pub fn map_each<I, A, R, F>(&self, items: I, function: F) -> Vec<Result<R>>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.results(items.into_iter(), function, usize::MAX, true)
            .collect()
    }

    /// Calls `function` with each of `items`, and gives the results in their order, as they are
    /// asked for.
    ///
    /// Only some items (8 for each worker) are taken ahead, so there may be any number of them.
    /// Each is a task of its own.
    pub fn imap<I, A, R, F>(&self, items: I, function: F) -> Results<I::IntoIter, R>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.results(items.into_iter(), function, self.inner.size * WINDOW, true)
    }

    /// As [`imap`](Self::imap), with the results in the order in which they come.
    pub fn imap_unordered<I, A, R, F>(&self, items: I, function: F) -> Results<I::IntoIter, R>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.results(items.into_iter(), function, self.inner.size * WINDOW, false)
    }

    fn results<I, R, F>(&self, items: I, function: F, window: usize, order: bool) -> Results<I, R>
    where
        I: Iterator<Item: Serialize + DeserializeOwned>,
        R: Serialize + DeserializeOwned,
        F: Fn(I::Item) -> R + Copy + 'static,
    {
        let job = Job::new(&self.inner);
        Results::new(job, items, task::of_task(function), window, order)
    }

    /// Takes no more tasks, waits until all are done, and for the end of the workers.
    ///
    /// # Errors
    /// `is_peer_death` if all workers are dead and none can be started.
    pub fn join(self) -> Result<()> {
        let inner = &self.inner;
        inner.parent.close();
        loop {
            inner.collect()?;
            inner.look()?;
            let mut crew = lock(&inner.crew);
            if crew.is_empty() {
                return Ok(());
            }
            crew.wait_for_an_end();
        }
    }
}

impl Inner {
    /// Files all results that have come.
    fn collect(&self) -> Result<()> {
        let mut space = lock(&self.space);
        self.collect_into(&mut space)
    }

    fn collect_into(&self, space: &mut Vec<u8>) -> Result<()> {
        while let Some(delivery) = self.parent.collect(space)? {
            if let Some(ticket) = delivery.ticket {
                self.file(ticket, self.outcome(delivery, space));
            }
        }
        Ok(())
    }

    fn outcome(&self, delivery: Delivery, space: &[u8]) -> Outcome {
        let tag = Tag::of(delivery.tag);
        let body = if delivery.is_plain() {
            Body::Inline(delivery.body(space).to_vec())
        } else {
            match delivery.large(&self.parent)?.body {
                Some(buffer) => Body::Large(buffer),
                None => return Err(Error::corrupt("a result without a body")),
            }
        };
        match tag {
            Some(Tag::Result) => Ok(body),
            Some(Tag::Panic) => {
                let text = String::from_utf8_lossy(&body);
                let what = format!("a task of the pool panicked: {text}");
                Err(Error::new(Kind::Panic, what))
            }
            Some(Tag::Failure) => Err(Error::from_bytes(&body)),
            None => Err(Error::corrupt("a pool's result")),
        }
    }

    /// Puts what came of a task where its waiter finds it; nobody waits for one of a dropped job.
    fn file(&self, ticket: Ticket, outcome: Outcome) {
        if let Some(list) = lock(&self.arrived).get_mut(&ticket.job) {
            list.push_back((ticket.index, outcome));
        }
        // SYNC: pairs with the Acquire in `next`.
        self.news.fetch_add(1, Release);
    }

    /// Looks after the workers: files what the dead have lost, and has others started.
    fn look(&self) -> Result<()> {
        // Another thread may be at it.
        let Ok(mut crew) = self.crew.try_lock() else {
            return Ok(());
        };
        let mut ended = Vec::new();
        let looked = crew.look(&self.parent, &mut ended);
        lock(&self.rounds).looked(!ended.is_empty());
        for Ended {
            pid,
            status,
            fallen,
        } in ended
        {
            let mut space = lock(&self.space);
            self.collect_into(&mut space)?;
            if let Some(ticket) = fallen.task.and_then(|task| self.parent.lose(task)) {
                let what = format!("worker {pid} of the pool ended with {status} in this task");
                let error = Error::new(Kind::PeerDeath, what).with_exit(status);
                self.file(ticket, Err(error));
            }
        }
        looked
    }

    /// Waits for something of `job`, until `deadline`: what came first, `None` if nothing did.
    pub(super) fn next(
        &self,
        job: u64,
        deadline: Option<Instant>,
    ) -> Result<Option<(u64, Outcome)>> {
        loop {
            // SYNC: pairs with the Release in `file`.
            let seen = self.news.load(Acquire);
            if let Some(found) = self.take(job) {
                return Ok(Some(found));
            }
            let now = Instant::now();
            let mut due = lock(&self.rounds).due;
            if now >= due {
                self.look()?;
                due = lock(&self.rounds).due;
            }
            self.collect()?;
            if self.news.load(Acquire) != seen {
                // Some of it may be what another thread sleeps for.
                self.parent.wake();
                if let Some(found) = self.take(job) {
                    return Ok(Some(found));
                }
                continue;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            // Another thread is at it if the next look is still due.
            let slice = due.max(now + Rounds::SHORTEST);
            let until = deadline.map_or(slice, |deadline| deadline.min(slice));
            let woken = self
                .parent
                .wait(|| self.news.load(Acquire) != seen, Some(until));
            match woken {
                Err(error) if !error.is_timeout() && !error.is_interrupted() => return Err(error),
                _ => {}
            }
        }
    }

    fn take(&self, job: u64) -> Option<(u64, Outcome)> {
        lock(&self.arrived).get_mut(&job)?.pop_front()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.parent.stop();
        lock(&self.crew).end();
    }
}

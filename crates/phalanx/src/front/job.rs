//! Tasks under way: one to be joined, or many whose results come in a row.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pool::{Inner, Outcome, lock};
use super::{codec, deadline};
use crate::error::{Error, Kind, Result};
use crate::os::program::{self, Function};
use crate::pool::Ticket;

/// Tasks that are waited for together.
pub(super) struct Job {
    inner: Arc<Inner>,
    id: u64,
}

impl Job {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        let id = inner.next_job.fetch_add(1, Relaxed);
        lock(&inner.arrived).insert(id, VecDeque::new());
        Self {
            inner: Arc::clone(inner),
            id,
        }
    }

    pub(super) fn submit<A: Serialize>(
        &self,
        index: u64,
        function: Function,
        argument: &A,
    ) -> Result<()> {
        let head = program::name_of(function)?.to_ne_bytes();
        let ticket = Ticket {
            job: self.id,
            index,
        };
        codec::with_encoded(argument, |body| {
            self.inner
                .parent
                .submit(ticket, &head, body, 0, Vec::new())
                .map(|_| ())
        })
    }

    fn next(&self, deadline: Option<Instant>) -> Result<Option<(u64, Outcome)>> {
        self.inner.next(self.id, deadline)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        lock(&self.inner.arrived).remove(&self.id);
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.id)
    }
}

fn decode<R: DeserializeOwned>(outcome: Outcome) -> Result<R> {
    codec::decode(&outcome?)
}

/// A call that a [`Pool`] makes, and its result to come: see [`Pool::spawn`].
///
/// Dropping it does not end the call; its result is then dropped when it comes.
#[derive(Debug)]
#[must_use = "the result is lost unless it is joined"]
pub struct Task<R> {
    job: Job,
    taken: bool,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Task<R> {
    pub(super) fn new(job: Job) -> Self {
        Self {
            job,
            taken: false,
            result: PhantomData,
        }
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// As [`Pool::apply`]; `is_invalid` if the result was taken by
    /// [`join_timeout`](Self::join_timeout).
    pub fn join(mut self) -> Result<R> {
        self.join_until(None)
    }

    /// Gives the result if it has come. Never blocks for long.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn try_join(&mut self) -> Result<Option<R>> {
        match self.join_until(Some(Instant::now())) {
            Err(error) if error.is_timeout() => Ok(None),
            done => done.map(Some),
        }
    }

    /// Waits for the result for `timeout` at most.
    ///
    /// # Errors
    /// `is_timeout`, and the call goes on; else as [`join`](Self::join).
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<R> {
        self.join_until(deadline(timeout))
    }

    fn join_until(&mut self, deadline: Option<Instant>) -> Result<R> {
        if self.taken {
            let what = "the result of this task has been taken already";
            return Err(Error::new(Kind::Invalid, what));
        }
        match self.job.next(deadline)? {
            Some((_, outcome)) => {
                self.taken = true;
                decode(outcome)
            }
            None => Err(Error::new(
                Kind::Timeout,
                "the task's result has not come in time",
            )),
        }
    }
}

/// The results of [`Pool::imap`] and its like, each a [`Result`].
///
/// Dropping it ends no call that is under way, and begins no other.
#[derive(Debug)]
pub struct Results<I, R> {
    job: Job,
    items: Option<I>,
    function: Function,
    window: usize,
    order: bool,
    submitted: u64,
    given: u64,
    /// Submitted, and nothing has come of them yet.
    due: usize,
    /// What came before its turn.
    early: BTreeMap<u64, Outcome>,
    result: PhantomData<fn() -> R>,
}

impl<I: Iterator<Item: Serialize>, R> Results<I, R> {
    /// The results of `function` for `items`, `window` of them at a time; in their `order` or not.
    pub(super) fn new(job: Job, items: I, function: Function, window: usize, order: bool) -> Self {
        Self {
            job,
            items: Some(items),
            function,
            window,
            order,
            submitted: 0,
            given: 0,
            due: 0,
            early: BTreeMap::new(),
            result: PhantomData,
        }
    }

    /// Submits as many items as the window allows.
    fn fill(&mut self) {
        while self.due + self.early.len() < self.window {
            let Some(item) = self.items.as_mut().and_then(Iterator::next) else {
                self.items = None;
                return;
            };
            let index = self.submitted;
            self.submitted += 1;
            match self.job.submit(index, self.function, &item) {
                Ok(()) => self.due += 1,
                Err(error) => drop(self.early.insert(index, Err(error))),
            }
        }
    }

    fn next_outcome(&mut self) -> Option<Outcome> {
        loop {
            self.fill();
            let ready = match self.early.first_entry() {
                Some(first) if !self.order || *first.key() == self.given => Some(first.remove()),
                _ => None,
            };
            if let Some(outcome) = ready {
                self.given += 1;
                return Some(outcome);
            }
            if self.due == 0 {
                return None;
            }
            match self.job.next(None) {
                Ok(Some((index, outcome))) => {
                    self.due -= 1;
                    self.early.insert(index, outcome);
                }
                Ok(None) => {}
                // Nothing more will come: each that is due has this error.
                Err(error) => {
                    self.due = 0;
                    for index in self.given..self.submitted {
                        self.early
                            .entry(index)
                            .or_insert_with(|| Err(error.again()));
                    }
                }
            }
        }
    }
}

impl<I: Iterator<Item: Serialize>, R: DeserializeOwned> Iterator for Results<I, R> {
    type Item = Result<R>;

    fn next(&mut self) -> Option<Result<R>> {
        self.next_outcome().map(decode)
    }
}

//! A pool's workers: processes that take tasks until there are none, replaced when they die.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::child::panic_text;
use super::handle::travels_as_handle;
use super::{Builder, Process, codec, retry};
use crate::arena::Shared;
use crate::error::{Error, Kind, Result};
use crate::os::program;
use crate::pool::{Fallen, Parent, PoolCore, Worker};
use crate::process::ExitStatus;

/// What a result's bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Tag {
    Result = 1,
    Panic,
    Failure,
}

impl Tag {
    pub(super) fn of(tag: u16) -> Option<Self> {
        [Self::Result, Self::Panic, Self::Failure]
            .into_iter()
            .find(|&t| t as u16 == tag)
    }
}

/// Bytes of a task's head: the name of its function.
pub(super) const HEAD: usize = 8;

/// So many starts that fail in a row, beside one for each worker, and no more are tried.
const PATIENCE: usize = 3;

/// The way to the pool, for a worker.
struct Link(Shared<PoolCore>);

travels_as_handle!(Link, PoolCore, |link| &link.0, Link);

/// What a worker process does.
fn work(link: Link) {
    let worker = Worker::enter(link.0).expect("the parent has made room for its workers");
    worker.ready();
    let mut bytes = Vec::new();
    loop {
        match retry(|| worker.next(&mut bytes, None)) {
            Ok(task) => {
                let number = task.number;
                let body = if task.is_plain() {
                    None
                } else {
                    task.large(&worker).ok().and_then(|large| large.body)
                };
                let done = run(&bytes, body.as_deref());
                deliver(&worker, number, &done);
                codec::keep(done.1);
            }
            Err(error) if error.is_closed() => break,
            Err(error) => panic!("the pool cannot go on: {error}"),
        }
    }
    worker.leave();
}

/// Runs a task: its function's name and, after it or apart, its argument.
fn run(bytes: &[u8], apart: Option<&[u8]>) -> (Tag, Vec<u8>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let damaged = || Error::corrupt("a task without a function");
        let (name, argument) = bytes.split_first_chunk::<HEAD>().ok_or_else(damaged)?;
        // SAFETY: named by our parent, whose executable is this very file: `init` has seen to that.
        let function = unsafe { program::function_of(u64::from_ne_bytes(*name)) }?;
        function(apart.unwrap_or(argument))
    }));
    match outcome {
        Ok(Ok(result)) => (Tag::Result, result),
        Ok(Err(error)) => (Tag::Failure, error.to_bytes()),
        Err(panic) => (Tag::Panic, said(&*panic)),
    }
}

fn said(panic: &(dyn Any + Send)) -> Vec<u8> {
    panic_text(panic).into_bytes()
}

fn deliver(worker: &Worker, number: u64, (tag, bytes): &(Tag, Vec<u8>)) {
    let Err(error) = worker.finish(number, bytes, *tag as u16, Vec::new()) else {
        return;
    };
    // There was no room for it; there will be for this.
    if let Err(error) = worker.finish(number, &error.to_bytes(), Tag::Failure as u16, Vec::new()) {
        panic!("the pool cannot go on: {error}");
    }
}

/// A worker that has ended.
pub(super) struct Ended {
    pub(super) pid: u32,
    pub(super) status: ExitStatus,
    pub(super) fallen: Fallen,
}

/// The workers, as their parent knows them.
#[derive(Debug)]
pub(super) struct Crew {
    workers: Vec<Process<()>>,
    builder: Builder,
    size: usize,
    failed_starts: usize,
    started: usize,
}

impl Crew {
    /// # Errors
    /// As [`Process::spawn`].
    pub(super) fn new(size: usize, parent: &Parent) -> Result<Self> {
        let mut builder = Builder::default();
        builder.die_with_parent(true);
        let mut crew = Self {
            workers: Vec::new(),
            builder,
            size,
            failed_starts: 0,
            started: 0,
        };
        crew.fill(parent)?;
        Ok(crew)
    }

    /// Starts workers where some are missing.
    fn fill(&mut self, parent: &Parent) -> Result<()> {
        while self.workers.len() < self.size {
            self.started += 1;
            let link = Link(parent.core().clone());
            let worker = self
                .builder
                .name(format!("PoolWorker-{}", self.started))
                .spawn(work, link)?;
            self.workers.push(worker);
        }
        Ok(())
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(Process::id).collect()
    }

    /// Buries the workers that have ended, and starts others in their place if there is work.
    ///
    /// # Errors
    /// If no worker lives and none can be started.
    pub(super) fn look(&mut self, parent: &Parent, ended: &mut Vec<Ended>) -> Result<()> {
        let mut index = 0;
        while let Some(worker) = self.workers.get(index) {
            let Some(status) = worker.exit_status() else {
                index += 1;
                continue;
            };
            let pid = self.workers.swap_remove(index).id();
            let fallen = parent.bury(pid)?;
            if fallen.was_ready {
                self.failed_starts = 0;
            } else {
                self.failed_starts += 1;
            }
            if fallen.had_left {
                // It leaves when no more tasks will come; so nobody takes its place.
                self.size -= 1;
            }
            ended.push(Ended {
                pid,
                status,
                fallen,
            });
        }
        let given_up = self.failed_starts >= PATIENCE + self.size;
        let filled = if given_up { Ok(()) } else { self.fill(parent) };
        if !self.workers.is_empty() || self.size == 0 {
            return Ok(());
        }
        filled?;
        Err(Error::new(
            Kind::PeerDeath,
            format!(
                "the pool has no workers: {} ended in a row before they could take a task; does \
                 main call phalanx::init() first?",
                self.failed_starts
            ),
        ))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Waits for one worker's end, for a slice at most.
    pub(super) fn wait_for_an_end(&mut self) {
        if let Some(worker) = self.workers.first_mut() {
            let _ = worker.join_timeout(crate::sync::SLICE);
        }
    }

    /// Kills all workers and waits for them.
    pub(super) fn end(&mut self) {
        for worker in &self.workers {
            let _ = worker.kill();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

//! Handing the parts of a call to the workers, as many at a time as is good.
//!
//! A call over an iterable is not read at once: what is in the workers' hands, in the task log and
//! waiting to be taken is bounded, by number and by bytes. So an endless iterable is no problem, and
//! a long list of arrays does not fill the arena.
//!
//! Who reads on? What is sized (a list, a range) is read by whoever is at it: the submitting thread,
//! then the thread that waits for the call's results. An arbitrary iterable may block, or depend on
//! what is done with the results; it is read by a thread of its own, which sleeps while there is no
//! room and ends with the iterable.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use phalanx::os::futex;
use phalanx::pool::Function;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyTuple};

use super::hub::Hub;
use super::job::Job;
use super::reader::Reader;
use super::wire::Kind;

/// Items of an `imap` that may be on their way or unread.
pub(super) const WINDOW: u64 = 1024;
/// Bytes that a call may have on their way, by the average so far.
const BYTES: u64 = 64 << 20;

/// How far a call has been handed over.
#[derive(Default)]
pub(super) struct Flow {
    /// What is left; `None` if that is nothing, or while a thread is at it.
    pub(super) source: Option<Source>,
    /// The thread that reads it sleeps until there is room.
    pub(super) pump_sleeps: bool,
    /// See [`Source::window`].
    pub(super) window: u64,
    /// Tasks submitted, and their bytes.
    pub(super) fed: u64,
    pub(super) fed_bytes: u64,
    /// Results that have come, and their bytes.
    pub(super) delivered: u64,
    pub(super) delivered_bytes: u64,
    /// Items that have been taken by the front; those of a map count as taken when they come.
    pub(super) taken: u64,
    /// Unread results do not count: nobody will read them soon, but all tasks have to be done.
    pub(super) eager: bool,
    /// See [`Source::strict`].
    pub(super) strict: bool,
    /// Nothing more is read: the results of a strict source have no reader.
    pub(super) stopped: bool,
}

/// Where the parts of a call come from.
pub(super) struct Source {
    pub(super) items: Items,
    /// The place of the next part.
    pub(super) index: u64,
    /// Tasks that may be on their way or unread.
    pub(super) window: u64,
    /// It may block: only a thread of its own reads it.
    pub(super) foreign: bool,
    /// The program has set the window: it is kept to the last task, whatever else would be better.
    pub(super) strict: bool,
}

/// What is read.
pub(super) enum Items {
    /// `chunk` items a task, for one function.
    Calls {
        reader: Reader,
        function: Target,
        kind: Kind,
        chunk: usize,
    },
    /// Tasks as the standard library has them: `(job, index, function, args, kwargs)`.
    Tasks { iterator: Py<PyIterator> },
}

/// A function as the workers will know it.
#[derive(Clone)]
pub(super) enum Target {
    Packed(Arc<Function>),
    /// For workers that get the object itself.
    Object(Arc<Py<PyAny>>),
}

impl Target {
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Packed(one), Self::Packed(other)) => Arc::ptr_eq(one, other),
            (Self::Object(one), Self::Object(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Flow {
    /// Tasks whose results have not come or, as a rule, have not been taken.
    fn under_way(&self) -> u64 {
        let settled = if self.eager {
            self.delivered
        } else {
            self.taken
        };
        self.fed.saturating_sub(settled)
    }

    /// Whether another task may go, for `workers` workers.
    pub(super) fn has_room(&self, window: u64, workers: usize) -> bool {
        let floor = 2 * workers as u64 + 2;
        let under_way = self.under_way();
        if under_way < floor.min(window) {
            return true;
        }
        let average = |bytes: u64, count: u64| bytes.checked_div(count).unwrap_or(0).max(1);
        let in_bytes =
            average(self.fed_bytes, self.fed) + average(self.delivered_bytes, self.delivered);
        under_way < window && under_way < BYTES / in_bytes
    }

    /// Whether half of the window is free: a good time to hand over more. A strict window may be so
    /// narrow that workers would go idle meanwhile: there each free place is.
    pub(super) fn is_low(&self) -> bool {
        let low = if self.strict {
            self.window.saturating_sub(1)
        } else {
            self.window / 2
        };
        self.under_way() <= low
    }

    /// From here on unread results do not hold the call up; a strict one is read no further.
    pub(super) fn give_up_reader(&mut self) {
        if self.strict {
            self.stopped = true;
        } else {
            self.eager = true;
        }
    }
}

impl Hub {
    /// Begins to hand over the parts of `job`: here, or by a thread of its own.
    pub(super) fn begin_feeding(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        source: Source,
    ) -> PyResult<()> {
        let foreign = source.foreign;
        {
            let mut flow = job.flow();
            flow.window = source.window;
            flow.strict = source.strict;
            flow.source = Some(source);
        }
        if foreign {
            return self.read_from_now(py, job);
        }
        self.sources().push(Arc::clone(job));
        self.feed(py, job)
    }

    /// Hands over as much of the call as there is room for, if nobody else is at it.
    ///
    /// Errors of the iterable and of pickling become results of the call, at their place.
    pub(super) fn feed(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
        let Some(mut source) = job.flow().source.take() else {
            return Ok(());
        };
        loop {
            if job.has_ended() {
                return self.end_feeding(py, job, source.index);
            }
            if job.flow().stopped {
                self.stop_reading(py, job, &mut source)?;
                return self.end_feeding(py, job, source.index);
            }
            if !job.flow().has_room(source.window, self.size()) {
                job.flow().source = Some(source);
                return Ok(());
            }
            match self.feed_one(py, job, &mut source) {
                Ok(true) => {}
                Ok(false) => return self.end_feeding(py, job, source.index),
                Err(error) => {
                    // An interruption, not the call's fault. The rest is still to be read.
                    job.flow().source = Some(source);
                    return Err(error);
                }
            }
        }
    }

    /// Reads a foreign iterable to its end, sleeping while there is no room: a thread's work.
    pub(super) fn pump(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
        let Some(mut source) = job.flow().source.take() else {
            return Ok(());
        };
        loop {
            self.wait_for_room(py, job, source.window)?;
            if job.flow().stopped {
                self.stop_reading(py, job, &mut source)?;
                return self.end_feeding(py, job, source.index);
            }
            if job.has_ended() || !self.feed_one(py, job, &mut source)? {
                return self.end_feeding(py, job, source.index);
            }
        }
    }

    fn wait_for_room(&self, py: Python<'_>, job: &Job, window: u64) -> PyResult<()> {
        loop {
            let seen = job.room.load(Acquire);
            {
                let mut flow = job.flow();
                flow.pump_sleeps = !flow.stopped && !flow.has_room(window, self.size());
                if !flow.pump_sleeps {
                    return Ok(());
                }
            }
            if job.has_ended() {
                return Ok(());
            }
            py.detach(|| futex::wait(&job.room, seen, None));
            py.check_signals()?;
        }
    }

    fn end_feeding(&self, py: Python<'_>, job: &Arc<Job>, length: u64) -> PyResult<()> {
        self.sources().retain(|other| !Arc::ptr_eq(other, job));
        let progress = job.set_length(py, length);
        self.after(py, job, progress);
        Ok(())
    }

    /// Reads and submits one task; false at the end.
    fn feed_one(&self, py: Python<'_>, job: &Arc<Job>, source: &mut Source) -> PyResult<bool> {
        let index = source.index;
        match &source.items {
            Items::Calls {
                reader,
                function,
                kind,
                chunk,
            } => {
                let body = match reader.read(py, index, *chunk) {
                    Ok(Some(body)) => body,
                    Ok(None) => return Ok(false),
                    Err(error) => return self.fail_reading(py, job, source, error),
                };
                source.index += 1;
                self.submit(py, job, index, function, *kind, &body)?;
            }
            Items::Tasks { iterator } => {
                let task = match iterator.bind(py).clone().next() {
                    Some(Ok(task)) => task,
                    None => return Ok(false),
                    Some(Err(error)) => return self.fail_reading(py, job, source, error),
                };
                source.index += 1;
                self.submit_task(py, job, index, &task)?;
            }
        }
        Ok(true)
    }

    /// Submits `(job, index, function, args, kwargs)`.
    fn submit_task(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        index: u64,
        task: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        type Parts<'py> = (
            u64,
            u64,
            Bound<'py, PyAny>,
            Bound<'py, PyAny>,
            Bound<'py, PyAny>,
        );
        let (_, _, function, args, kwargs): Parts<'_> = task.extract()?;
        let raiser = py
            .import("phalanx.pool")?
            .getattr("_helper_reraises_exception")?;
        if function.is(&raiser) {
            // An error of the iterable is not an error of a worker.
            let error = args.get_item(0)?;
            return self.deliver(py, job, index, false, error, 0);
        }
        match self.target(&function) {
            Ok(target) => {
                job.hold_target(&target);
                let body = PyTuple::new(py, [args, kwargs])?;
                self.submit(py, job, index, &target, Kind::CallKw, body.as_any())
            }
            Err(error) => {
                self.deliver(py, job, index, false, error.value(py).clone().into_any(), 0)
            }
        }
    }

    /// What a reader who comes all the same finds at the end, lest it takes that for the iterable's.
    fn stop_reading(&self, py: Python<'_>, job: &Arc<Job>, source: &mut Source) -> PyResult<()> {
        let error = PyRuntimeError::new_err(
            "the pool was joined before all results of this call were taken: with buffersize, no \
             more items are read then",
        );
        self.fail_reading(py, job, source, error).map(drop)
    }

    /// The iterable has failed: that is what its next item is, and there are no more.
    fn fail_reading(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        source: &mut Source,
        error: PyErr,
    ) -> PyResult<bool> {
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        let index = source.index;
        source.index += 1;
        // Before the error is delivered: a map has places for results that will never come.
        let progress = job.set_length(py, source.index);
        self.after(py, job, progress);
        let value = error.value(py).clone().into_any();
        self.deliver(py, job, index, false, value, 0)?;
        Ok(false)
    }
}

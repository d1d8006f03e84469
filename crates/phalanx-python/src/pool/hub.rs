//! The parent's side: jobs, and the threads that wait for them.
//!
//! Nobody stands between caller and worker. Of the threads that wait for results one *leads*: it
//! takes results out of the arena, for whichever job they are, and each [`SLICE`] it looks whether
//! a worker has died. The others sleep until their job is complete or the lead is free.
//!
//! ```text
//! wait(job) ─ complete? ─────────────────────────────────> return
//!    │ no
//!    ├─ nobody leads: lead ─ collect, deliver, look ─ complete? ─> give up the lead, wake one, return
//!    └─ somebody leads: sleep ─ woken: again from the top
//! ```
//!
//! A *supervisor* thread exists only while work is outstanding that nobody may be waiting for. It
//! calls callbacks (one at a time, as ever), and leads only where nobody else would: for jobs with
//! callbacks, and for what is not handed over yet. Otherwise it just looks after the workers.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use phalanx::arena::Arena;
use phalanx::os::futex;
use phalanx::pool::{Function, Parent, Ticket};
use phalanx::sync::{MemberId, Members};
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::feed::Target;
use super::function::{Outbox, Pickled};
use super::job::{Job, Progress};
use super::wire::{self, Kind, Outcome};
use crate::arena::arena;
use crate::codec;
use crate::error::to_py;
use crate::process::borrow_all;

/// How long the leader sleeps before it looks after the workers.
pub(super) const SLICE: Duration = Duration::from_millis(50);
/// The same when a worker has said that it is about to end.
const SOON: Duration = Duration::from_millis(2);
/// Results that the leader takes before it looks at anything else.
pub(super) const ROUND: usize = 256;
/// Stands for "any job" in [`Parked`].
const ANY: u64 = u64::MAX;

/// See the module.
pub(super) struct Hub {
    pub(super) me: Weak<Self>,
    pub(super) engine: Engine,
    front: Front,
    /// The process that made the pool: the only one that may use it.
    owner: Owner,
    size: AtomicUsize,
    jobs: Mutex<Jobs>,
    /// Jobs that are not handed over completely, but for those that a thread of their own reads.
    sources: Mutex<Vec<Arc<Job>>>,
    lead: Mutex<Lead>,
    parked: AtomicUsize,
    /// Counts what the leader has to look at beside results.
    epoch: AtomicU32,
    looked: Mutex<Instant>,
    /// Workers that have said that they are about to end.
    leaving: AtomicUsize,
    sentinels: Mutex<Vec<i32>>,
    outbox: Mutex<Outbox>,
    /// Complete jobs whose callbacks have not been called.
    pub(super) calls: Mutex<VecDeque<Call>>,
    /// Jobs with callbacks that have not returned.
    pub(super) called: AtomicUsize,
    /// Whether there is a supervisor, and what wakes it.
    pub(super) supervised: AtomicBool,
    pub(super) supervisor: AtomicUsize,
    pub(super) poke: AtomicU32,
    /// The exception that the last failed initializer raised.
    start_error: Mutex<Option<Py<PyAny>>>,
}

/// A job, its callback and the callback's argument.
pub(super) type Call = (Arc<Job>, Py<PyAny>, Py<PyAny>);

/// How tasks get to the workers.
pub(super) enum Engine {
    /// Through the arena.
    Arena(Parent),
    /// By a Python function that takes `(job, index, function, args, kwargs)`; results come back by
    /// `_set`.
    Put(Py<PyAny>),
}

/// A process, told apart from those that it forks.
enum Owner {
    /// Cheap to compare with: no system call.
    Member(MemberId),
    Pid(u32),
}

impl Owner {
    fn this_process() -> Self {
        match Arena::current() {
            Some(arena) => Self::Member(arena.me()),
            None => Self::Pid(std::process::id()),
        }
    }

    fn is_this_process(&self) -> bool {
        match self {
            Self::Member(member) => Arena::current().is_some_and(|arena| arena.me() == *member),
            Self::Pid(pid) => std::process::id() == *pid,
        }
    }
}

/// Hashes the numbers of jobs, which are consecutive.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&b| self.write_u64(self.0 << 8 | u64::from(b)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What is Python's part.
pub(super) struct Front {
    /// Called when a worker seems to have ended.
    pub(super) maintain: Py<PyAny>,
    /// Starts a thread that calls its argument.
    pub(super) start_thread: Py<PyAny>,
}

#[derive(Default)]
struct Jobs {
    open: HashMap<u64, Arc<Job>, BuildHasherDefault<NumberHasher>>,
    /// No more will come; workers leave when the last is complete.
    closing: bool,
    stopped: bool,
    /// Why new jobs fail at once.
    broken: Option<Py<PyAny>>,
}

#[derive(Default)]
struct Lead {
    /// The thread that leads.
    by: Option<usize>,
    parked: Vec<Parked>,
}

/// A thread that sleeps until its job is complete, or until nobody leads.
struct Parked {
    thread: usize,
    job: u64,
    parker: Arc<AtomicU32>,
}

/// Why a leader stopped.
enum Led {
    Done,
    TimedOut,
    /// Somebody else is to lead.
    Yield,
}

/// Holds the lead; gives it back and wakes one who waits for it.
struct Leading<'a>(&'a Hub);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let mut lead = self.0.lead();
        lead.by = None;
        if let Some(next) = lead.parked.first() {
            wake(&next.parker);
        }
    }
}

fn wake(parker: &AtomicU32) {
    parker.store(1, SeqCst);
    futex::wake(parker, 1);
}

/// A number for the calling thread, which no other living thread has.
pub(super) fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(super) fn new(engine: Engine, front: Front) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            engine,
            front,
            owner: Owner::this_process(),
            size: AtomicUsize::new(1),
            jobs: Mutex::default(),
            sources: Mutex::default(),
            lead: Mutex::default(),
            parked: AtomicUsize::new(0),
            epoch: AtomicU32::new(0),
            looked: Mutex::new(Instant::now()),
            leaving: AtomicUsize::new(0),
            sentinels: Mutex::default(),
            outbox: Mutex::default(),
            calls: Mutex::default(),
            called: AtomicUsize::new(0),
            supervised: AtomicBool::new(false),
            supervisor: AtomicUsize::new(0),
            poke: AtomicU32::new(0),
            start_error: Mutex::default(),
        })
    }

    fn lead(&self) -> MutexGuard<'_, Lead> {
        locked(&self.lead)
    }

    pub(super) fn sources(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        locked(&self.sources)
    }

    pub(super) fn front(&self) -> &Front {
        &self.front
    }

    pub(super) fn parent(&self) -> Option<&Parent> {
        match &self.engine {
            Engine::Arena(parent) => Some(parent),
            Engine::Put(_) => None,
        }
    }

    /// How many workers there should be.
    pub(super) fn size(&self) -> usize {
        self.size.load(Relaxed)
    }

    pub(super) fn set_size(&self, size: usize) {
        self.size.store(size, Relaxed);
    }

    pub(super) fn set_sentinels(&self, sentinels: Vec<i32>) {
        *locked(&self.sentinels) = sentinels;
    }

    pub(super) fn start_error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        locked(&self.start_error).as_ref().map(|e| e.clone_ref(py))
    }

    // --- jobs -----------------------------------------------------------------------------------

    /// A number for a new job, unique in this process.
    pub(super) fn new_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Relaxed)
    }

    /// Makes the job known, so that results find it. It fails at once if the pool cannot work.
    ///
    /// # Errors
    /// ValueError in a process that inherited the pool by a fork.
    pub(super) fn open(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
        if !self.owner.is_this_process() {
            return Err(PyValueError::new_err(
                "Pool not running in this process: it belongs to the one that made it",
            ));
        }
        if job.has_callbacks() {
            self.called.fetch_add(1, AcqRel);
        }
        let mut jobs = locked(&self.jobs);
        jobs.open.insert(job.id, Arc::clone(job));
        let broken = jobs.broken.as_ref().map(|e| e.clone_ref(py));
        drop(jobs);
        if let Some(error) = broken {
            self.fail(py, job, error.bind(py));
        }
        Ok(())
    }

    pub(super) fn job(&self, id: u64) -> Option<Arc<Job>> {
        locked(&self.jobs).open.get(&id).cloned()
    }

    /// The numbers of the jobs that are not complete.
    pub(super) fn open_jobs(&self) -> Vec<u64> {
        locked(&self.jobs).open.keys().copied().collect()
    }

    /// Lets no call wait for the reader of its results any more.
    pub(super) fn make_eager(&self) {
        let open: Vec<_> = locked(&self.jobs).open.values().cloned().collect();
        open.iter().for_each(|job| job.make_eager());
    }

    /// Whether nothing is outstanding, callbacks included.
    pub(super) fn is_idle(&self) -> bool {
        self.called.load(Acquire) == 0 && locked(&self.jobs).open.is_empty()
    }

    pub(super) fn is_stopped(&self) -> bool {
        locked(&self.jobs).stopped
    }

    /// Takes in a result, from a worker or made here.
    pub(super) fn deliver(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        index: u64,
        success: bool,
        value: Bound<'_, PyAny>,
        bytes: usize,
    ) -> PyResult<()> {
        let progress = job.deliver(py, index, success, value)?;
        let low = job.count_delivery(bytes);
        self.after(py, job, progress);
        if low && self.parent().is_none() {
            // Nobody leads here.
            self.feed(py, job)?;
        }
        Ok(())
    }

    /// Ends a job with an exception.
    pub(super) fn fail(&self, py: Python<'_>, job: &Arc<Job>, error: &Bound<'_, PyAny>) {
        let progress = job.fail(error);
        self.after(py, job, progress);
    }

    /// Tells those whom it concerns.
    pub(super) fn after(&self, py: Python<'_>, job: &Arc<Job>, progress: Progress) {
        match progress {
            Progress::None => {}
            Progress::Item => self.notify(job.id),
            Progress::Complete => self.complete(py, job),
        }
    }

    fn complete(&self, py: Python<'_>, job: &Arc<Job>) {
        let (known, close) = {
            let mut jobs = locked(&self.jobs);
            let known = jobs.open.remove(&job.id);
            (known, jobs.closing && jobs.open.is_empty())
        };
        self.sources().retain(|other| !Arc::ptr_eq(other, job));
        if close && let Some(parent) = self.parent() {
            parent.close();
        }
        job.wake_pump();
        if job.has_callbacks() {
            if let Some((callback, value)) = job.take_callback(py) {
                locked(&self.calls).push_back((Arc::clone(job), callback, value));
                if self.supervise_from_now(py).is_ok() {
                    self.poke();
                } else {
                    self.run_callbacks(py);
                }
                return;
            }
            if known.is_some() {
                self.called.fetch_sub(1, AcqRel);
            }
        }
        self.end(job);
    }

    /// The last thing that happens to a job.
    fn end(&self, job: &Job) {
        job.set_done();
        self.notify(job.id);
        // Last: if nobody else has the pool, this ends it.
        job.release();
    }

    /// Calls the callbacks of complete jobs. What they raise is reported and goes no further.
    pub(super) fn run_callbacks(&self, py: Python<'_>) {
        loop {
            let Some((job, callback, value)) = locked(&self.calls).pop_front() else {
                return;
            };
            if let Err(error) = callback.call1(py, (value,)) {
                error.write_unraisable(py, Some(callback.bind(py)));
            }
            self.called.fetch_sub(1, AcqRel);
            self.end(&job);
        }
    }

    /// No more jobs will come: workers leave when all are complete.
    pub(super) fn close(&self) {
        let mut jobs = locked(&self.jobs);
        jobs.closing = true;
        if jobs.open.is_empty()
            && let Some(parent) = self.parent()
        {
            parent.close();
        }
    }

    /// Ends everything: all jobs fail with `error`, and so will those to come.
    pub(super) fn stop(&self, py: Python<'_>, error: &Bound<'_, PyAny>) {
        if let Some(parent) = self.parent() {
            parent.stop();
        }
        locked(&self.jobs).stopped = true;
        self.break_off(py, error);
        self.poke();
    }

    /// Fails all jobs, and those to come.
    pub(super) fn break_off(&self, py: Python<'_>, error: &Bound<'_, PyAny>) {
        let (jobs, before) = {
            let mut jobs = locked(&self.jobs);
            let before = jobs.broken.replace(error.clone().unbind());
            let open: Vec<_> = jobs.open.values().cloned().collect();
            (open, before)
        };
        drop(before);
        for job in jobs {
            self.fail(py, &job, error);
        }
    }

    // --- to the workers -------------------------------------------------------------------------

    /// The function as tasks name it.
    ///
    /// # Errors
    /// Whatever pickling raises.
    pub(super) fn target(&self, function: &Bound<'_, PyAny>) -> PyResult<Target> {
        let py = function.py();
        if matches!(self.engine, Engine::Put(_)) {
            return Ok(Target::Object(Arc::new(function.clone().unbind())));
        }
        if let Some(found) = locked(&self.outbox).named(py, function) {
            return Ok(Target::Packed(found));
        }
        let pickled = Pickled::new(function)?;
        let parts = pickled.parts();
        let known = locked(&self.outbox).same(&parts);
        let packed = match known {
            Some(packed) => packed,
            None => {
                let arena = arena(py)?;
                let made = py.detach(|| Function::new(arena, &parts)).map_err(to_py)?;
                let made = Arc::new(made);
                let len = parts.iter().map(|p| p.len()).sum();
                locked(&self.outbox).keep(&made, len);
                made
            }
        };
        if pickled.is_name {
            let object = function.clone().unbind();
            let dropped = locked(&self.outbox).keep_named(object, &packed);
            drop(dropped);
        }
        Ok(Target::Packed(packed))
    }

    /// Submits a task. If it cannot be pickled, that is its result.
    ///
    /// # Errors
    /// What is no error of the task: an interruption. The task has its result all the same.
    pub(super) fn submit(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        index: u64,
        target: &Target,
        kind: Kind,
        body: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let sent = match (&self.engine, target) {
            (Engine::Arena(parent), Target::Packed(function)) => {
                let head = function.key().to_bytes();
                let ticket = Ticket { job: job.id, index };
                codec::encode(body, |bytes, tag, buffers| {
                    let weight = bytes.len() + buffers.iter().map(|b| b.len()).sum::<usize>();
                    let tag = kind.tag(tag);
                    parent
                        .submit(ticket, &head, bytes, tag, buffers)
                        .map_err(to_py)?;
                    Ok(weight)
                })
            }
            (Engine::Put(put), Target::Object(function)) => {
                plain_task(py, job.id, index, function.bind(py), kind, body)
                    .and_then(|task| put.call1(py, (task,)))
                    .map(|_| 0)
            }
            _ => Err(PyValueError::new_err("the function is of another pool")),
        };
        match sent {
            Ok(weight) => {
                job.count_fed(weight);
                Ok(())
            }
            Err(error) => {
                job.count_fed(0);
                let value = error.value(py).clone().into_any();
                self.deliver(py, job, index, false, value, 0)?;
                if error.is_instance_of::<PyException>(py) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    // --- from the workers -----------------------------------------------------------------------

    /// Takes up to `most` results; false if there are no more.
    ///
    /// # Errors
    /// An interruption: a result whose loading was interrupted has that for its outcome.
    pub(super) fn drain(&self, py: Python<'_>, most: usize) -> PyResult<bool> {
        let Some(parent) = self.parent() else {
            return Ok(false);
        };
        if !parent.has_results() {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        for _ in 0..most {
            let Some(delivery) = parent.collect(&mut bytes).map_err(to_py)? else {
                return Ok(false);
            };
            let (ticket, tag) = (delivery.ticket, delivery.tag);
            let body_len = bytes.len().saturating_sub(8);
            let large = if delivery.is_plain() {
                None
            } else {
                Some(delivery.large(parent).map_err(to_py)?)
            };
            let weight = body_len
                + large.as_ref().map_or(0, |l| {
                    let buffers = l.buffers.iter().chain(&l.body);
                    buffers.map(|b| b.len()).sum::<usize>()
                });
            let body = bytes.get(8..).unwrap_or_default();
            let outcome = Outcome::of(tag);
            if outcome == Outcome::Leaving {
                self.leaving.fetch_add(1, Relaxed);
                continue;
            }
            let decoded = wire::decode(py, tag, body, large).and_then(|value| match outcome {
                Outcome::Value => Ok(value),
                Outcome::Error | Outcome::StartError | Outcome::Leaving => unpack_error(&value),
            });
            let mut interrupted = None;
            let (success, value) = match decoded {
                Ok(value) => (outcome == Outcome::Value, value),
                Err(error) => {
                    let value = unloadable(py, &error);
                    interrupted = (!error.is_instance_of::<PyException>(py)).then_some(error);
                    (false, value)
                }
            };
            match ticket {
                Some(ticket) => {
                    // Without its job: it was failed before this came.
                    if let Some(job) = self.job(ticket.job) {
                        self.deliver(py, &job, ticket.index, success, value, weight)?;
                    }
                }
                None => {
                    let before = locked(&self.start_error).replace(value.unbind());
                    drop(before);
                }
            }
            if let Some(error) = interrupted {
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Buries the worker that was process `pid`: `(worker, was_ready, had_left, lost task)`.
    #[allow(clippy::type_complexity, reason = "a tuple for Python")]
    pub(super) fn bury(
        &self,
        py: Python<'_>,
        pid: u32,
    ) -> PyResult<(Option<usize>, bool, bool, Option<(u64, u64)>)> {
        let Some(parent) = self.parent() else {
            return Ok((None, true, true, None));
        };
        let fallen = py.detach(|| parent.bury(pid)).map_err(to_py)?;
        if fallen.had_left {
            let one_less = |n: usize| n.checked_sub(1);
            let _ = self.leaving.fetch_update(Relaxed, Relaxed, one_less);
        }
        let mut lost = None;
        if let Some(task) = fallen.task {
            while self.drain(py, ROUND)? {}
            lost = parent.lose(task).map(|t| (t.job, t.index));
        } else if !fallen.was_ready {
            while self.drain(py, ROUND)? {}
        }
        Ok((fallen.worker, fallen.was_ready, fallen.had_left, lost))
    }

    // --- waiting --------------------------------------------------------------------------------

    /// Waits until `ready`, which is told by [`Hub::notify`] for `job` (`None`: for any), until
    /// `deadline`, or until a signal handler raises. Returns whether it is ready. The supervisor's
    /// own loop is the one to set `as_supervisor`: it leads only as long as nobody else would.
    pub(super) fn wait(
        &self,
        py: Python<'_>,
        job: Option<u64>,
        ready: &(dyn Fn() -> bool + Sync),
        deadline: Option<Instant>,
        as_supervisor: bool,
    ) -> PyResult<bool> {
        loop {
            if ready() {
                return Ok(true);
            }
            if let Some(leading) = self.take_lead() {
                let led = self.lead_until(py, ready, deadline, as_supervisor)?;
                drop(leading);
                match led {
                    Led::Done => return Ok(true),
                    Led::TimedOut => return Ok(ready()),
                    Led::Yield => {}
                }
            } else if !self.follow(py, job, ready, deadline)? {
                return Ok(ready());
            }
        }
    }

    /// Whether this thread may lead: where callbacks are due the supervisor does, since results are
    /// of no use to others before their callbacks have returned.
    fn may_lead(&self) -> bool {
        self.called.load(Acquire) == 0
            || !self.supervised.load(Acquire)
            || self.supervisor.load(Acquire) == this_thread()
    }

    /// In a callback that waits for results: calls the callbacks that these may wait for.
    fn run_nested_callbacks(&self, py: Python<'_>) {
        if self.called.load(Acquire) > 0 && self.supervisor.load(Acquire) == this_thread() {
            self.run_callbacks(py);
        }
    }

    fn take_lead(&self) -> Option<Leading<'_>> {
        self.parent()?;
        let mut lead = self.lead();
        let me = this_thread();
        // A leader may wait again in a finalizer or in the loading of a result.
        if lead.by.is_some() || !self.may_lead() {
            return None;
        }
        lead.by = Some(me);
        Some(Leading(self))
    }

    /// Whether some thread takes results.
    pub(super) fn is_led(&self) -> bool {
        self.lead().by.is_some()
    }

    fn leads(&self) -> bool {
        self.lead().by == Some(this_thread())
    }

    fn lead_until(
        &self,
        py: Python<'_>,
        ready: &(dyn Fn() -> bool + Sync),
        deadline: Option<Instant>,
        as_supervisor: bool,
    ) -> PyResult<Led> {
        let Some(parent) = self.parent() else {
            return Ok(Led::Yield);
        };
        loop {
            let epoch = self.epoch.load(SeqCst);
            let more = self.drain(py, ROUND)?;
            if !as_supervisor {
                self.run_nested_callbacks(py);
            }
            if ready() {
                return Ok(Led::Done);
            }
            if !self.may_lead() || as_supervisor && !self.needs_leader() {
                return Ok(Led::Yield);
            }
            self.feed_all(py)?;
            py.check_signals()?;
            let now = Instant::now();
            if now >= *locked(&self.looked) + self.slice() {
                self.look(py)?;
                continue;
            }
            if more {
                continue;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(Led::TimedOut);
            }
            let slice = now + self.slice();
            let until = deadline.map_or(slice, |deadline| deadline.min(slice));
            let stirred = || self.epoch.load(SeqCst) != epoch;
            // Timeouts and interruptions are seen at the top.
            let _ = py.detach(|| parent.wait(stirred, Some(until)));
        }
    }

    /// Sleeps until woken for `job` or for the lead; false when the deadline has passed.
    fn follow(
        &self,
        py: Python<'_>,
        job: Option<u64>,
        ready: &(dyn Fn() -> bool + Sync),
        deadline: Option<Instant>,
    ) -> PyResult<bool> {
        self.run_nested_callbacks(py);
        if self.leads() {
            // In the middle of leading, this thread waits for something else.
            while self.drain(py, 1)? {
                if ready() {
                    return Ok(true);
                }
            }
        }
        let parker = Arc::new(AtomicU32::new(0));
        let _parked = self.park(job.unwrap_or(ANY), &parker);
        let vacant = {
            let lead = self.lead();
            self.parent().is_some() && lead.by.is_none() && self.may_lead()
        };
        let called =
            self.supervisor.load(SeqCst) == this_thread() && !locked(&self.calls).is_empty();
        if vacant || called || ready() {
            return Ok(true);
        }
        loop {
            let leads = self.leads();
            let slice = match (leads, self.parent()) {
                (true, _) => Some(Duration::from_millis(2)),
                (false, None) => Some(SLICE),
                (false, Some(_)) => None,
            };
            let slice = slice.map(|slice| Instant::now() + slice);
            let until = match (slice, deadline) {
                (Some(slice), Some(deadline)) => Some(slice.min(deadline)),
                (one, other) => one.or(other),
            };
            match py.detach(|| futex::wait(&parker, 0, until)) {
                futex::Wait::Woken => return Ok(true),
                futex::Wait::TimedOut if deadline.is_some_and(|d| Instant::now() >= d) => {
                    return Ok(false);
                }
                futex::Wait::TimedOut if leads => return Ok(true),
                futex::Wait::TimedOut => {
                    self.look_if_due(py)?;
                    return Ok(true);
                }
                futex::Wait::Interrupted => py.check_signals()?,
            }
        }
    }

    fn park(&self, job: u64, parker: &Arc<AtomicU32>) -> Unpark<'_> {
        let parker = Arc::clone(parker);
        self.parked.fetch_add(1, SeqCst);
        self.lead().parked.push(Parked {
            thread: this_thread(),
            job,
            parker: Arc::clone(&parker),
        });
        Unpark { hub: self, parker }
    }

    /// Wakes those who wait for `job`, or for any.
    pub(super) fn notify(&self, job: u64) {
        if self.parked.load(SeqCst) == 0 && self.lead().by.is_none_or(|by| by == this_thread()) {
            return;
        }
        let lead = self.lead();
        for parked in &lead.parked {
            if parked.job == job || parked.job == ANY {
                wake(&parked.parker);
            }
        }
        let other = lead.by.is_some_and(|by| by != this_thread());
        drop(lead);
        if other {
            self.stir();
        }
    }

    /// Wakes the supervisor if it sleeps as one that waits: in a callback.
    pub(super) fn wake_parked_supervisor(&self) {
        let supervisor = self.supervisor.load(SeqCst);
        let lead = self.lead();
        let parked = lead.parked.iter().filter(|p| p.thread == supervisor);
        parked.for_each(|p| wake(&p.parker));
    }

    /// Lets the leader look.
    pub(super) fn stir(&self) {
        self.epoch.fetch_add(1, SeqCst);
        if let Some(parent) = self.parent() {
            parent.wake();
        }
    }

    // --- the workers' life ----------------------------------------------------------------------

    /// How long to sleep before looking after the workers.
    pub(super) fn slice(&self) -> Duration {
        if self.leaving.load(Relaxed) > 0 {
            SOON
        } else {
            SLICE
        }
    }

    /// Calls the front's `maintain` if a worker has ended.
    pub(super) fn look(&self, py: Python<'_>) -> PyResult<()> {
        *locked(&self.looked) = Instant::now();
        let sentinels = locked(&self.sentinels).clone();
        if !sentinels.is_empty() {
            let fds = borrow_all(&sentinels)?;
            let mut fds: Vec<_> = fds
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // A descriptor that was closed in the meantime counts as ended.
            if !matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0) {
                return Ok(());
            }
        }
        self.front.maintain.call0(py).map(drop)
    }

    /// As [`Hub::look`], unless somebody has just looked.
    pub(super) fn look_if_due(&self, py: Python<'_>) -> PyResult<()> {
        if Instant::now() >= *locked(&self.looked) + self.slice() {
            self.look(py)?;
        }
        Ok(())
    }

    /// Whether results have to be taken and tasks handed over even if nobody waits.
    pub(super) fn needs_leader(&self) -> bool {
        self.called.load(Acquire) > 0 || !self.sources().is_empty()
    }

    /// Hands over what there is room for, of all jobs.
    pub(super) fn feed_all(&self, py: Python<'_>) -> PyResult<()> {
        if self.sources().is_empty() {
            return Ok(());
        }
        let sources = self.sources().clone();
        sources.iter().try_for_each(|job| self.feed(py, job))
    }
}

/// Takes a thread off the list of those that sleep.
struct Unpark<'a> {
    hub: &'a Hub,
    parker: Arc<AtomicU32>,
}

impl Drop for Unpark<'_> {
    fn drop(&mut self) {
        self.hub.parked.fetch_sub(1, SeqCst);
        let mut lead = self.hub.lead();
        lead.parked
            .retain(|other| !Arc::ptr_eq(&other.parker, &self.parker));
        // Woken for the lead, and going away without taking it: the next one is to know.
        if lead.by.is_none()
            && self.parker.load(SeqCst) != 0
            && let Some(next) = lead.parked.first()
        {
            wake(&next.parker);
        }
    }
}

/// The error that stands for a result that could not be loaded.
#[cold]
fn unloadable<'py>(py: Python<'py>, error: &PyErr) -> Bound<'py, PyAny> {
    // Where Python knows notes (3.11 on), the error says where it comes from.
    let note = "raised by unpickling the result of a task, in the process that has the pool";
    let value = error.value(py).clone().into_any();
    let _ = value.call_method1("add_note", (note,));
    value
}

/// The exception that a worker has packed.
#[cold]
fn unpack_error<'py>(packed: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let helper = packed.py().import("phalanx.pool")?;
    helper.call_method1("_unpack_error", (packed,))
}

/// A task as the standard library's workers know it.
fn plain_task<'py>(
    py: Python<'py>,
    job: u64,
    index: u64,
    function: &Bound<'py, PyAny>,
    kind: Kind,
    body: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyTuple>> {
    let mapper = |name: &str| py.import("phalanx.pool")?.getattr(name);
    let empty = PyDict::new(py).into_any();
    let (function, args, kwargs) = match kind {
        Kind::Call => (function.clone(), body.clone(), empty),
        Kind::CallKw => {
            let (args, kwargs): (Bound<'py, PyAny>, Bound<'py, PyAny>) = body.extract()?;
            (function.clone(), args, kwargs)
        }
        Kind::One => (
            function.clone(),
            PyTuple::new(py, [body])?.into_any(),
            empty,
        ),
        Kind::Star => {
            let args = PyTuple::new(py, [function, body])?;
            let args = PyTuple::new(py, [args])?.into_any();
            (mapper("_star")?, args, empty)
        }
        Kind::Map | Kind::StarMap => {
            let name = if kind == Kind::Map {
                "mapstar"
            } else {
                "starmapstar"
            };
            let args = PyTuple::new(py, [function, body])?;
            let args = PyTuple::new(py, [args])?.into_any();
            (mapper(name)?, args, empty)
        }
    };
    (job, index, function, args, kwargs).into_pyobject(py)
}

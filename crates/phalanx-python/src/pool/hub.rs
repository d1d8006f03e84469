//! The parent's side: jobs, and the threads that wait for them.
//!
//! Nobody stands between caller and worker. Of the threads that wait for results one *leads*: it
//! takes results out of the arena, for whichever job they are, and each [`SLICE`](super::lead::SLICE) it looks whether
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
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use phalanx::arena::Arena;
use phalanx::pool::Parent;
use phalanx::sync::{MemberId, Members};
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;

use super::function::Outbox;
use super::job::{Job, Progress};
use super::lead::Watch;

/// See the module.
pub(super) struct Hub {
    pub(super) me: Weak<Self>,
    pub(super) engine: Engine,
    pub(super) front: Front,
    /// The process that made the pool: the only one that may use it.
    owner: Owner,
    size: AtomicUsize,
    jobs: Mutex<Jobs>,
    /// Jobs that are not handed over completely, but for those that a thread of their own reads.
    sources: Mutex<Vec<Arc<Job>>>,
    pub(super) watch: Watch,
    pub(super) outbox: Mutex<Outbox>,
    /// Complete jobs whose callbacks have not been called.
    pub(super) calls: Mutex<VecDeque<Call>>,
    /// Jobs with callbacks that have not returned.
    pub(super) called: AtomicUsize,
    /// Whether there is a supervisor, and what wakes it.
    pub(super) supervised: AtomicBool,
    pub(super) supervisor: AtomicUsize,
    pub(super) poke: AtomicU32,
    /// The exception that the last failed initializer raised.
    pub(super) start_error: Mutex<Option<Py<PyAny>>>,
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

/// A number for the calling thread, which no other living thread has.
pub(super) fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets a KeyboardInterrupt that cannot be passed on here come once more.
#[cold]
fn interrupt_again(py: Python<'_>, error: &PyErr) {
    if error.is_instance_of::<PyKeyboardInterrupt>(py) {
        // SAFETY: it may be called at any time; it marks the signal as arrived.
        unsafe { pyo3::ffi::PyErr_SetInterrupt() };
    }
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
            watch: Watch::new(),
            outbox: Mutex::default(),
            calls: Mutex::default(),
            called: AtomicUsize::new(0),
            supervised: AtomicBool::new(false),
            supervisor: AtomicUsize::new(0),
            poke: AtomicU32::new(0),
            start_error: Mutex::default(),
        })
    }

    pub(super) fn sources(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        locked(&self.sources)
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
                match self.supervise_from_now(py) {
                    Ok(()) => self.poke(),
                    Err(error) => {
                        self.run_callbacks(py);
                        interrupt_again(py, &error);
                    }
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
}

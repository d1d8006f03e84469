//! Threads of the pool's own: the supervisor, and those that read iterables. See `hub`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use phalanx::os::futex;
use pyo3::prelude::*;

use super::hub::{Hub, this_thread};
use super::job::Job;
use super::lead::ROUND;

/// How long an idle supervisor stays, in case more work comes: starting a thread costs some 80 µs.
const LINGER: Duration = Duration::from_millis(100);

/// What a thread of the pool does, as a Python callable.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct PoolErrand {
    hub: Arc<Hub>,
    /// The job whose iterable is read; `None` for the supervisor.
    job: Option<Arc<Job>>,
    /// Set by the thread when it begins, or by who gives up waiting for that.
    begun: AtomicBool,
}

#[pymethods]
impl PoolErrand {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        if self.begun.swap(true, SeqCst) {
            return Ok(());
        }
        match &self.job {
            None => self.hub.supervise(py),
            Some(job) => self.hub.pump(py, job),
        }
    }
}

impl Hub {
    /// Starts the supervisor if there is none.
    ///
    /// # Errors
    /// The system's or the interpreter's refusal of a thread, a RuntimeError; or what the handler of
    /// a signal has raised meanwhile, whether or not the thread was started.
    pub(super) fn supervise_from_now(&self, py: Python<'_>) -> PyResult<()> {
        if self.supervised.swap(true, SeqCst) {
            return Ok(());
        }
        let (begun, done) = self.start_errand(py, None);
        if !begun {
            self.supervised.store(false, SeqCst);
        }
        done
    }

    /// Starts a thread that reads the job's iterable.
    ///
    /// # Errors
    /// As [`Hub::supervise_from_now`].
    pub(super) fn read_from_now(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
        self.start_errand(py, Some(Arc::clone(job))).1
    }

    /// Starts a thread; whether there is one, and what was raised. A signal's handler may raise while
    /// Python waits for the thread to begin, so that the one does not tell the other.
    fn start_errand(&self, py: Python<'_>, job: Option<Arc<Job>>) -> (bool, PyResult<()>) {
        let Some(hub) = self.me.upgrade() else {
            return (false, Ok(()));
        };
        let errand = PoolErrand {
            hub,
            job,
            begun: AtomicBool::new(false),
        };
        let errand = match Bound::new(py, errand) {
            Ok(errand) => errand,
            Err(error) => return (false, Err(error)),
        };
        match self.front.start_thread.call1(py, (&errand,)) {
            Ok(_) => (true, Ok(())),
            Err(error) => (errand.get().begun.swap(true, SeqCst), Err(error)),
        }
    }

    /// Whether this thread is the supervisor: in a callback, then, if it is asked from outside.
    pub(super) fn is_supervisor(&self) -> bool {
        self.supervisor.load(SeqCst) == this_thread()
    }

    /// Lets the supervisor look.
    pub(super) fn poke(&self) {
        self.poke.fetch_add(1, SeqCst);
        if self.supervised.load(SeqCst) {
            futex::wake(&self.poke, u32::MAX);
            self.wake_parked_supervisor();
            self.stir();
        }
    }

    /// Waits until there is no supervisor; does nothing in the supervisor itself.
    pub(super) fn join_supervisor(&self, py: Python<'_>, until: Instant) {
        if self.is_supervisor() {
            return;
        }
        loop {
            let seen = self.poke.load(SeqCst);
            if !self.supervised.load(SeqCst) || Instant::now() >= until {
                return;
            }
            // Its last act is a change of this word.
            py.detach(|| futex::wait(&self.poke, seen, Some(until)));
        }
    }

    /// Takes the results that nobody waits for, so that they do not fill the arena and their calls
    /// come to an end.
    fn drain_all(&self, py: Python<'_>) -> PyResult<()> {
        while !self.is_led() && self.drain(py, ROUND)? {
            // Let other threads in.
            py.detach(|| {});
        }
        Ok(())
    }

    fn supervise(&self, py: Python<'_>) -> PyResult<()> {
        self.supervisor.store(this_thread(), SeqCst);
        let mut idle_since = None;
        loop {
            let seen = self.poke.load(SeqCst);
            self.run_callbacks(py);
            if self.is_stopped() {
                self.run_callbacks(py);
                self.supervised.store(false, SeqCst);
                break;
            }
            let now = Instant::now();
            if !self.is_idle() {
                idle_since = None;
                let until = Some(now + self.slice());
                let result = if self.needs_leader() && self.parent().is_some() {
                    let due = || self.poke.load(SeqCst) != seen || !self.needs_leader();
                    self.wait(py, None, &due, until, true).map(drop)
                } else {
                    py.detach(|| futex::wait(&self.poke, seen, until));
                    self.look_if_due(py).and_then(|()| self.drain_all(py))
                };
                if let Err(error) = result {
                    error.write_unraisable(py, None);
                }
                continue;
            }
            let leave = *idle_since.get_or_insert(now) + LINGER;
            if now < leave {
                py.detach(|| futex::wait(&self.poke, seen, Some(leave)));
                continue;
            }
            self.supervised.store(false, SeqCst);
            // A job that came just before the store has not started another supervisor.
            if self.is_idle() || self.supervised.swap(true, SeqCst) {
                break;
            }
        }
        let me = this_thread();
        let _ = self.supervisor.compare_exchange(me, 0, SeqCst, SeqCst);
        self.poke.fetch_add(1, SeqCst);
        futex::wake(&self.poke, u32::MAX);
        Ok(())
    }
}

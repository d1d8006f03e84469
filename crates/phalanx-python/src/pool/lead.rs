//! Waiting for results, and looking after the workers meanwhile: who leads, who follows. See `hub`.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use phalanx::os::futex;
use pyo3::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hub::{Hub, locked, this_thread};
use crate::process::borrow_all;

/// How long the leader sleeps before it looks after the workers.
pub(super) const SLICE: Duration = Duration::from_millis(50);
/// The same when a worker has said that it is about to end.
const SOON: Duration = Duration::from_millis(2);
/// Results that the leader takes before it looks at anything else.
pub(super) const ROUND: usize = 256;
/// Stands for "any job" in [`Parked`].
const ANY: u64 = u64::MAX;

/// The state of waiting.
pub(super) struct Watch {
    lead: Mutex<Lead>,
    /// How many threads are parked.
    parked: AtomicUsize,
    /// Counts what the leader has to look at beside results.
    epoch: AtomicU32,
    /// When somebody looked after the workers last.
    looked: Mutex<Instant>,
    /// Workers that have said that they are about to end.
    pub(super) leaving: AtomicUsize,
    /// Become readable when workers end.
    sentinels: Mutex<Vec<i32>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            lead: Mutex::default(),
            parked: AtomicUsize::new(0),
            epoch: AtomicU32::new(0),
            looked: Mutex::new(Instant::now()),
            leaving: AtomicUsize::new(0),
            sentinels: Mutex::default(),
        }
    }
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

impl Hub {
    fn lead(&self) -> MutexGuard<'_, Lead> {
        locked(&self.watch.lead)
    }

    pub(super) fn set_sentinels(&self, sentinels: Vec<i32>) {
        *locked(&self.watch.sentinels) = sentinels;
    }

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
        self.called.load(Acquire) == 0 || !self.supervised.load(Acquire) || self.is_supervisor()
    }

    /// In a callback that waits for results: calls the callbacks that these may wait for.
    fn run_nested_callbacks(&self, py: Python<'_>) {
        if self.called.load(Acquire) > 0 && self.is_supervisor() {
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
            let epoch = self.watch.epoch.load(SeqCst);
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
            if now >= *locked(&self.watch.looked) + self.slice() {
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
            let stirred = || self.watch.epoch.load(SeqCst) != epoch;
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
        let called = self.is_supervisor() && !locked(&self.calls).is_empty();
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
        self.watch.parked.fetch_add(1, SeqCst);
        self.lead().parked.push(Parked {
            thread: this_thread(),
            job,
            parker: Arc::clone(&parker),
        });
        Unpark { hub: self, parker }
    }

    /// Wakes those who wait for `job`, or for any.
    pub(super) fn notify(&self, job: u64) {
        if self.watch.parked.load(SeqCst) == 0
            && self.lead().by.is_none_or(|by| by == this_thread())
        {
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
        self.watch.epoch.fetch_add(1, SeqCst);
        if let Some(parent) = self.parent() {
            parent.wake();
        }
    }

    /// How long to sleep before looking after the workers.
    pub(super) fn slice(&self) -> Duration {
        if self.watch.leaving.load(Relaxed) > 0 {
            SOON
        } else {
            SLICE
        }
    }

    /// Calls the front's `maintain` if a worker has ended.
    pub(super) fn look(&self, py: Python<'_>) -> PyResult<()> {
        *locked(&self.watch.looked) = Instant::now();
        let sentinels = locked(&self.watch.sentinels).clone();
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
        if Instant::now() >= *locked(&self.watch.looked) + self.slice() {
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
        self.hub.watch.parked.fetch_sub(1, SeqCst);
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

//! A call of the pool, from its submission to its last result.
//!
//! | shape | complete | what its front gets |
//! | --- | --- | --- |
//! | One | with its only result | the value, or the error |
//! | Map | with the results of all chunks | the list, or the error that came first |
//! | Items | when all items have come; each can be taken before | one item after the other |

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use phalanx::os::futex;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::feed::{Flow, Target};
use super::hub::locked;

/// See the module. Its number is unique in this process.
pub(super) struct Job {
    pub(super) id: u64,
    /// Complete, and the callback has returned.
    done: AtomicBool,
    state: Mutex<State>,
    flow: Mutex<Flow>,
    /// It has one part only, so that there is nothing to count.
    is_single: bool,
    /// Keeps the pool alive until the job is done.
    pool: Mutex<Option<Py<PyAny>>>,
    /// What its tasks name has to be there until the last has been done.
    targets: Mutex<Vec<Target>>,
    /// Changes when the thread that reads the call's iterable is to look for room.
    pub(super) room: AtomicU32,
}

struct State {
    shape: Shape,
    success: bool,
    value: Option<Py<PyAny>>,
    callbacks: Callbacks,
}

/// What is called with the result, if anything.
#[derive(Default)]
pub(super) struct Callbacks {
    pub(super) success: Option<Py<PyAny>>,
    pub(super) error: Option<Py<PyAny>>,
}

impl Callbacks {
    pub(super) fn is_empty(&self) -> bool {
        self.success.is_none() && self.error.is_none()
    }
}

enum Shape {
    One,
    Map {
        chunk: usize,
        /// How many chunks there are, and how many of them are due.
        parts: u64,
        left: usize,
        values: Py<PyList>,
        /// Each result is one value, not a list of them.
        single: bool,
    },
    Items(Items),
}

/// Results that are taken one after the other.
#[derive(Default)]
struct Items {
    ordered: bool,
    /// To be taken next.
    ready: VecDeque<Item>,
    /// Came before their turn.
    early: HashMap<u64, Item>,
    /// How many have gone to `ready`.
    index: u64,
    /// How many there will be, once that is known.
    length: Option<u64>,
    /// Nobody will take them.
    discarded: bool,
    /// Why no more will come: raised each time that one is asked for.
    failed: Option<Py<PyAny>>,
}

/// A value or, with false, an exception.
pub(super) type Item = (bool, Py<PyAny>);

/// What [`Job::next_item`] finds.
pub(super) enum Next {
    Item(Item),
    NotYet,
    End,
}

/// What a delivery has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The job has ended before, or goes on with nothing to see.
    None,
    /// An item can be taken.
    Item,
    Complete,
}

impl Job {
    fn new(id: u64, shape: Shape, callbacks: Callbacks) -> Self {
        Self {
            id,
            is_single: matches!(shape, Shape::One),
            done: AtomicBool::new(false),
            state: Mutex::new(State {
                shape,
                success: true,
                value: None,
                callbacks,
            }),
            flow: Mutex::default(),
            pool: Mutex::default(),
            targets: Mutex::default(),
            room: AtomicU32::new(0),
        }
    }

    /// A call with one result.
    pub(super) fn one(id: u64, callbacks: Callbacks) -> Self {
        Self::new(id, Shape::One, callbacks)
    }

    /// A call with a list of `length` results, in chunks of `chunk`; complete at once if there are
    /// none. With `single` the results are values and not lists.
    pub(super) fn map(
        py: Python<'_>,
        id: u64,
        chunk: usize,
        length: usize,
        single: bool,
        callbacks: Callbacks,
    ) -> PyResult<Self> {
        let values = PyList::new(py, (0..length).map(|_| py.None()))?.unbind();
        let empty = values.clone_ref(py).into_any();
        let left = if chunk == 0 {
            0
        } else {
            length.div_ceil(chunk)
        };
        let job = Self::new(
            id,
            Shape::Map {
                chunk,
                parts: left as u64,
                left,
                values,
                single,
            },
            callbacks,
        );
        if left == 0 {
            job.state().value = Some(empty);
            job.set_done();
        }
        Ok(job)
    }

    /// A call whose results are taken one by one, as they come or in order.
    pub(super) fn items(id: u64, ordered: bool) -> Self {
        let items = Items {
            ordered,
            ..Items::default()
        };
        Self::new(id, Shape::Items(items), Callbacks::default())
    }

    /// Keeps `pool` alive until the job is done.
    pub(super) fn hold_pool(&self, pool: Py<PyAny>) {
        *locked(&self.pool) = Some(pool);
    }

    pub(super) fn pool(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        locked(&self.pool).as_ref().map(|pool| pool.clone_ref(py))
    }

    /// Keeps what tasks of this job name.
    pub(super) fn hold_target(&self, target: &Target) {
        let mut targets = locked(&self.targets);
        if !targets.last().is_some_and(|last| last.is(target)) {
            targets.push(target.clone());
        }
    }

    /// Lets go what was held for tasks that are due.
    pub(super) fn release(&self) {
        let targets = std::mem::take(&mut *locked(&self.targets));
        drop(targets);
        let pool = locked(&self.pool).take();
        drop(pool);
    }

    /// How much of the call has been handed over, and what is left.
    pub(super) fn flow(&self) -> MutexGuard<'_, Flow> {
        locked(&self.flow)
    }

    pub(super) fn count_fed(&self, bytes: usize) {
        if self.is_single {
            return;
        }
        let mut flow = self.flow();
        flow.fed += 1;
        flow.fed_bytes += bytes as u64;
    }

    /// Counts a result that has come; true if it is time to hand over more.
    pub(super) fn count_delivery(&self, bytes: usize) -> bool {
        if self.is_single {
            return false;
        }
        let is_items = matches!(self.state().shape, Shape::Items(_));
        let mut flow = self.flow();
        flow.delivered += 1;
        flow.delivered_bytes += bytes as u64;
        flow.taken += u64::from(!is_items);
        let low = flow.is_low();
        self.wake_pump_if_low(flow);
        low
    }

    /// Results may stay unread from here on: see [`Flow::give_up_reader`].
    pub(super) fn make_eager(&self) {
        self.flow().give_up_reader();
        self.wake_pump();
    }

    /// Counts an item that was taken; true if it is time to hand over more.
    pub(super) fn count_taken(&self) -> bool {
        let mut flow = self.flow();
        flow.taken += 1;
        let low = flow.is_low();
        self.wake_pump_if_low(flow);
        low
    }

    fn wake_pump_if_low(&self, mut flow: MutexGuard<'_, Flow>) {
        if flow.pump_sleeps && flow.is_low() {
            flow.pump_sleeps = false;
            drop(flow);
            self.wake_pump();
        }
    }

    /// Lets the thread look that reads the call's iterable, if there is one.
    pub(super) fn wake_pump(&self) {
        self.room.fetch_add(1, SeqCst);
        futex::wake(&self.room, 1);
    }

    /// Whether no more results are due.
    pub(super) fn has_ended(&self) -> bool {
        match &self.state() {
            state if state.value.is_some() && matches!(state.shape, Shape::One) => true,
            state => match &state.shape {
                Shape::One => false,
                Shape::Map { left, .. } => *left == 0,
                Shape::Items(items) => items.length == Some(items.index),
            },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Takes in the result of part `index`: a value, or an exception if not `success`.
    pub(super) fn deliver(
        &self,
        py: Python<'_>,
        index: u64,
        success: bool,
        value: Bound<'_, PyAny>,
    ) -> PyResult<Progress> {
        // What is let go must not run its finalizers under the lock.
        let mut refused = None;
        let mut state = self.state();
        let State {
            shape,
            success: all_well,
            value: result,
            ..
        } = &mut *state;
        let progress = match shape {
            Shape::One if result.is_none() => {
                *all_well = success;
                *result = Some(value.unbind());
                Progress::Complete
            }
            Shape::Map {
                chunk,
                left,
                values,
                single,
                ..
            } if *left > 0 => {
                *left -= 1;
                if !success && *all_well {
                    *all_well = false;
                    *result = Some(value.unbind());
                } else if success && *all_well {
                    let values = values.bind(py);
                    let at = usize::try_from(index)? * *chunk;
                    if *single {
                        values.set_item(at, value)?;
                    } else {
                        let end = (at + *chunk).min(values.len());
                        values.set_slice(at, end, &value)?;
                    }
                } else {
                    refused = Some(value);
                }
                if *left > 0 {
                    Progress::None
                } else {
                    if *all_well {
                        *result = Some(values.clone_ref(py).into_any());
                    }
                    Progress::Complete
                }
            }
            Shape::Items(items) => items.add(index, (success, value.unbind())),
            Shape::One | Shape::Map { .. } => {
                refused = Some(value);
                Progress::None
            }
        };
        drop(state);
        drop(refused);
        Ok(progress)
    }

    /// Ends the job with an exception, unless it is complete: for all that wait for it.
    pub(super) fn fail(&self, error: &Bound<'_, PyAny>) -> Progress {
        let mut state = self.state();
        let State {
            shape,
            success,
            value,
            ..
        } = &mut *state;
        match shape {
            Shape::One if value.is_some() => return Progress::None,
            Shape::One => {}
            Shape::Map { left: 0, .. } => return Progress::None,
            Shape::Map { left, .. } => *left = 0,
            Shape::Items(items) => {
                if items.length == Some(items.index) {
                    return Progress::None;
                }
                items.failed = Some(error.clone().unbind());
                items.length = Some(items.index);
                return Progress::Complete;
            }
        }
        *success = false;
        let before = value.replace(error.clone().unbind());
        drop(state);
        drop(before);
        Progress::Complete
    }

    /// Tells how many parts there are, now that the iterable has ended.
    pub(super) fn set_length(&self, py: Python<'_>, length: u64) -> Progress {
        let State {
            shape,
            success,
            value,
            ..
        } = &mut *self.state();
        match shape {
            Shape::Items(items) if items.length.is_none() => {
                items.length = Some(length);
                items.progress()
            }
            // An iterable may be shorter than it said.
            Shape::Map {
                left,
                parts,
                values,
                ..
            } if *left > 0 && length < *parts => {
                *left -= usize::try_from(*parts - length).unwrap_or(*left).min(*left);
                *parts = length;
                if *left > 0 {
                    return Progress::None;
                }
                if *success {
                    *value = Some(values.clone_ref(py).into_any());
                }
                Progress::Complete
            }
            _ => Progress::None,
        }
    }

    /// Takes the next item.
    pub(super) fn next_item(&self, py: Python<'_>) -> Next {
        let Shape::Items(items) = &mut self.state().shape else {
            return Next::End;
        };
        match (items.ready.pop_front(), &items.failed) {
            (Some(item), _) => Next::Item(item),
            (None, Some(error)) => Next::Item((false, error.clone_ref(py))),
            (None, None) if items.length == Some(items.index) => Next::End,
            (None, None) => Next::NotYet,
        }
    }

    /// Whether [`Job::next_item`] would have an answer.
    pub(super) fn has_next(&self) -> bool {
        match &self.state().shape {
            Shape::Items(items) => !items.ready.is_empty() || items.length == Some(items.index),
            _ => true,
        }
    }

    /// Nobody will take the items: they are let go as they come.
    pub(super) fn discard(&self) {
        let mut gone = Vec::new();
        if let Shape::Items(items) = &mut self.state().shape {
            items.discarded = true;
            gone.extend(items.ready.drain(..));
            gone.extend(items.early.drain().map(|(_, item)| item));
        }
        drop(gone);
    }

    /// What to call now that the job is complete, and with what.
    pub(super) fn take_callback(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyAny>)> {
        let mut state = self.state();
        let callbacks = std::mem::take(&mut state.callbacks);
        let (chosen, other) = if state.success {
            (callbacks.success, callbacks.error)
        } else {
            (callbacks.error, callbacks.success)
        };
        let value = state.value.as_ref().map(|v| v.clone_ref(py));
        drop(state);
        drop(other);
        Some((chosen?, value?))
    }

    pub(super) fn has_callbacks(&self) -> bool {
        !self.state().callbacks.is_empty()
    }

    pub(super) fn is_done(&self) -> bool {
        // SYNC: pairs with the Release in `set_done`.
        self.done.load(Acquire)
    }

    pub(super) fn set_done(&self) {
        // SYNC: pairs with the Acquire in `is_done`.
        self.done.store(true, Release);
    }

    /// Whether it went well, and the value or exception, once it is done.
    pub(super) fn result(&self, py: Python<'_>) -> Option<Item> {
        let state = self.state();
        Some((state.success, state.value.as_ref()?.clone_ref(py)))
    }

    /// The value, or the exception raised.
    pub(super) fn outcome(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.result(py) {
            Some((true, value)) => Ok(value),
            Some((false, error)) => Err(raise(error.into_bound(py))),
            None => Err(PyRuntimeError::new_err("the result is not there yet")),
        }
    }
}

impl Items {
    fn add(&mut self, index: u64, item: Item) -> Progress {
        if self.length == Some(self.index) {
            return Progress::None;
        }
        if self.ordered && index != self.index {
            self.early.insert(index, item);
            return Progress::None;
        }
        self.ready.push_back(item);
        self.index += 1;
        while self.ordered
            && let Some(item) = self.early.remove(&self.index)
        {
            self.ready.push_back(item);
            self.index += 1;
        }
        if self.discarded {
            self.ready.clear();
        }
        self.progress()
    }

    fn progress(&self) -> Progress {
        if self.length == Some(self.index) {
            Progress::Complete
        } else {
            Progress::Item
        }
    }
}

/// The exception as an error; what is no exception is a TypeError, as with `raise`.
pub(super) fn raise(exception: Bound<'_, PyAny>) -> PyErr {
    let py = exception.py();
    let error = PyErr::from_value(exception);
    if error.is_instance_of::<PyKeyboardInterrupt>(py) {
        own_interrupt(py).unwrap_or(error)
    } else {
        error
    }
}

/// The KeyboardInterrupt of this process, if a worker's came from a Ctrl-C for all of them: it has no
/// traceback of the worker. The system interrupts one process after the other, so it may be late, and
/// would then hit the clean-up after the worker's.
#[cold]
fn own_interrupt(py: Python<'_>) -> Option<PyErr> {
    (0..20).find_map(|_| {
        let own = py.check_signals().err();
        if own.is_none() {
            py.detach(|| std::thread::sleep(Duration::from_millis(5)));
        }
        own
    })
}

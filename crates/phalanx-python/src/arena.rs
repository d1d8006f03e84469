//! The family of processes: its arena, its members, forks.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use phalanx::arena::{Arena, Handle, Shareable, Shared, fork};
use phalanx::sync::{MemberId, Members};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::to_py;

/// For whom a thread is pickling.
enum Receiver {
    /// Somebody who is of the family already.
    Member,
    /// A child that this package starts: it becomes this member before it unpickles anything.
    Child(MemberId),
    /// A child that a `Popen` of another library's starts, by exec.
    Stranger(Py<PyAny>),
    /// The same, once something of the family is in its pickle, with the invitation that makes it
    /// this member.
    Guest(MemberId, Py<PyAny>),
}

thread_local! {
    static RECEIVER: RefCell<Receiver> = const { RefCell::new(Receiver::Member) };
    /// Whether this thread is in `os.fork`.
    static FORKING: Cell<bool> = const { Cell::new(false) };
}

/// Has the family's books in order for each fork of Python's.
///
/// The books are locked by the C library's hooks, which nothing runs between but the fork itself.
/// Between Python's hooks other threads get the GIL; one that needs the books would wait for them
/// with the GIL, and the forking thread for the GIL with the books. Python's hooks only tell its
/// forks from those of `subprocess`, whose children are no members.
fn hook_forks(py: Python<'_>) -> PyResult<()> {
    extern "C" fn prepare() {
        if FORKING.get() {
            fork::prepare();
        }
    }
    extern "C" fn parent() {
        if FORKING.get() {
            fork::parent();
        }
    }
    extern "C" fn child() {
        if FORKING.get() {
            fork::child();
        }
    }
    let hooks = [
        ("before", wrap_pyfunction!(before_fork, py)?),
        ("after_in_parent", wrap_pyfunction!(after_fork, py)?),
        ("after_in_child", wrap_pyfunction!(after_fork, py)?),
    ];
    let kwargs = pyo3::types::PyDict::new(py);
    for (name, hook) in hooks {
        kwargs.set_item(name, hook)?;
    }
    py.import("os")?
        .getattr("register_at_fork")?
        .call((), Some(&kwargs))?;
    // SAFETY: the three are functions that live as long as the process. The child of a process with
    // threads may allocate memory, which the C library has got ready before it calls the hooks.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error).into()),
    }
}

fn hook_forks_once(py: Python<'_>) -> PyResult<()> {
    static HOOKED: PyOnceLock<()> = PyOnceLock::new();
    HOOKED.get_or_try_init(py, || hook_forks(py)).map(|_| ())
}

/// The arena, with the fork hooks registered.
pub(crate) fn arena(py: Python<'_>) -> PyResult<&'static Arena> {
    hook_forks_once(py)?;
    Arena::get().map_err(to_py)
}

/// The family in the pickle of a shared object: its number, or what becomes its number when it is
/// unpickled and makes the receiver a member.
#[derive(IntoPyObject)]
pub(crate) enum Family {
    Number(u64),
    Invitation(Py<PyAny>),
}

/// What `__reduce__` puts into the pickle of a shared object: its family and handle.
pub(crate) type HandleForPickle = (Family, u64);

thread_local! {
    /// Whether this thread pickles what must not refer to anything shared, and whether it does.
    static ALONE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Pickles something, unless it refers to anything shared: then that is an error, and the second
/// result false.
pub(crate) fn pickling_alone<T>(pickle: impl FnOnce() -> T) -> (T, bool) {
    let before = ALONE.replace(Some(true));
    let done = pickle();
    (done, ALONE.replace(before) != Some(false))
}

/// Something that lives by its holders is about to be pickled: raises if that must not be. For
/// proxies; the objects of the arena know it.
#[pyfunction]
fn pickle_shared() -> PyResult<()> {
    if ALONE.get().is_none() {
        return Ok(());
    }
    ALONE.set(Some(false));
    Err(PyTypeError::new_err(
        "something shared cannot be pickled on its own here",
    ))
}

/// See [`HandleForPickle`]. A child that is being started gets a reference of its own at once.
pub(crate) fn handle_for_pickle<T: Shareable>(
    py: Python<'_>,
    object: &Shared<T>,
) -> PyResult<HandleForPickle> {
    pickle_shared()?;
    let mut family = Family::Number(object.family());
    invite(py)?;
    RECEIVER.with_borrow(|receiver| {
        let child = match receiver {
            Receiver::Member | Receiver::Stranger(_) => return Ok(()),
            Receiver::Child(child) => *child,
            Receiver::Guest(child, invitation) => {
                family = Family::Invitation(invitation.clone_ref(py));
                *child
            }
        };
        object.book_for(child).map_err(to_py)
    })?;
    Ok((family, object.handle().bits()))
}

/// Reserves a place in the family for the child that another library is starting, if it does.
fn invite(py: Python<'_>) -> PyResult<()> {
    let popen = RECEIVER.with_borrow(|receiver| match receiver {
        Receiver::Stranger(popen) => Some(popen.clone_ref(py)),
        _ => None,
    });
    let Some(popen) = popen else {
        return Ok(());
    };
    let invitation = py
        .import("phalanx._invitation")?
        .call_method1("Invitation", (popen,))?;
    let id = member(invitation.getattr("member")?.extract()?)?;
    RECEIVER.set(Receiver::Guest(id, invitation.unbind()));
    Ok(())
}

/// The object that a pickle names.
pub(crate) fn attach<T: Shareable>(
    py: Python<'_>,
    family: u64,
    handle: u64,
) -> PyResult<Shared<T>> {
    // A process with an arena needs the hooks, however it came to it.
    arena(py)?;
    Shared::attach(family, Handle::from_bits(handle)).map_err(to_py)
}

#[pyfunction]
fn before_fork() {
    FORKING.set(true);
}

#[pyfunction]
fn after_fork() {
    FORKING.set(false);
}

/// Creates the family's arena if this process has none.
#[pyfunction]
fn ensure_arena(py: Python<'_>) -> PyResult<()> {
    arena(py).map(|_| ())
}

/// Whether this process has an arena.
#[pyfunction]
fn has_arena() -> bool {
    Arena::current().is_some()
}

/// Sets how many bytes the arena may use; ValueError once there is one.
#[pyfunction]
fn set_arena_limit(bytes: u64) -> PyResult<()> {
    phalanx::arena::set_limit(bytes).map_err(to_py)
}

/// The descriptor of the arena, created if there is none. Closed on exec unless passed on.
#[pyfunction]
fn arena_fd(py: Python<'_>) -> PyResult<i32> {
    Ok(arena(py)?.fd().as_raw_fd())
}

/// The random number that tells this family from others.
#[pyfunction]
fn family(py: Python<'_>) -> PyResult<u64> {
    Ok(arena(py)?.family())
}

/// Reserves a place in the family for a child that another program or the zygote will start.
#[pyfunction]
fn reserve_child(py: Python<'_>) -> PyResult<u32> {
    Ok(arena(py)?.reserve_child().map_err(to_py)?.get())
}

pub(crate) fn member(token: u32) -> PyResult<MemberId> {
    MemberId::new(token)
        .ok_or_else(|| PyValueError::new_err(format!("{token} is no member's token")))
}

/// Gives back the place of a child that was not started, or that is dead.
#[pyfunction]
fn cancel_child(token: u32) -> PyResult<bool> {
    let id = member(token)?;
    Ok(Arena::current().is_some_and(|arena| arena.cancel(id)))
}

/// This process as a member of its family.
#[pyfunction]
fn me(py: Python<'_>) -> PyResult<u32> {
    Ok(arena(py)?.me().get())
}

/// Makes a member for a client that is not of the family, for whom this process will act.
#[pyfunction]
fn add_surrogate(py: Python<'_>) -> PyResult<u32> {
    Ok(arena(py)?.add_surrogate().map_err(to_py)?.get())
}

/// Ends a member that `add_surrogate` made; what it held comes back.
#[pyfunction]
fn remove_surrogate(py: Python<'_>, token: u32) -> PyResult<()> {
    let (id, arena) = (member(token)?, arena(py)?);
    py.detach(|| arena.remove_surrogate(id));
    Ok(())
}

/// Makes this process the member `token` of the family whose arena is `fd`, which it takes over.
#[pyfunction]
fn adopt(py: Python<'_>, fd: i32, token: u32) -> PyResult<()> {
    let id = member(token)?;
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no descriptor")));
    }
    // SAFETY: the caller hands the descriptor over.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    Arena::adopt(fd, id).map_err(to_py)?;
    arena(py).map(|_| ())
}

/// From here on, the first shared object makes this process a member of the family whose arena is
/// `fd`, which it takes over.
#[pyfunction]
fn join_later(py: Python<'_>, fd: i32) -> PyResult<()> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no descriptor")));
    }
    // SAFETY: the caller hands the descriptor over.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    phalanx::arena::join_later(fd);
    // Now, so that its children need not.
    hook_forks_once(py)
}

/// Drops the references that the parent counted for this process and that it did not use.
#[pyfunction]
fn drop_unclaimed() {
    if let Some(arena) = Arena::current() {
        arena.drop_unclaimed();
    }
}

/// From here on this thread pickles for the child `token`.
#[pyfunction]
fn begin_spawning(token: u32) -> PyResult<()> {
    RECEIVER.set(Receiver::Child(member(token)?));
    Ok(())
}

/// From here on this thread pickles for a child that `popen`, which is not of this package, starts.
#[pyfunction]
fn begin_foreign_spawning(popen: Py<PyAny>) {
    RECEIVER.set(Receiver::Stranger(popen));
}

/// Ends what `begin_spawning` or `begin_foreign_spawning` began.
#[pyfunction]
fn end_spawning() {
    RECEIVER.set(Receiver::Member);
}

/// Gives back what the process `pid`, which has ended, held.
#[pyfunction]
fn reap(py: Python<'_>, pid: u32) -> bool {
    Arena::current().is_some_and(|arena| py.detach(|| arena.reap_pid(pid)))
}

/// Reaps every dead member; returns how many.
#[pyfunction]
fn reap_all(py: Python<'_>) -> usize {
    Arena::current().map_or(0, |arena| py.detach(|| arena.reap_all()))
}

/// Blocks and bytes in use, by walking the arena: `(blocks, bytes)`.
#[pyfunction]
fn arena_usage(py: Python<'_>) -> (u64, u64) {
    Arena::current().map_or((0, 0), |arena| {
        let usage = py.detach(|| arena.usage());
        (usage.blocks(), usage.bytes())
    })
}

/// Gives the memory of free large blocks back to the system.
#[pyfunction]
fn trim(py: Python<'_>) {
    if let Some(arena) = Arena::current() {
        py.detach(|| arena.trim());
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(ensure_arena, module)?)?;
    module.add_function(wrap_pyfunction!(has_arena, module)?)?;
    module.add_function(wrap_pyfunction!(set_arena_limit, module)?)?;
    module.add_function(wrap_pyfunction!(arena_fd, module)?)?;
    module.add_function(wrap_pyfunction!(family, module)?)?;
    module.add_function(wrap_pyfunction!(reserve_child, module)?)?;
    module.add_function(wrap_pyfunction!(cancel_child, module)?)?;
    module.add_function(wrap_pyfunction!(pickle_shared, module)?)?;
    module.add_function(wrap_pyfunction!(me, module)?)?;
    module.add_function(wrap_pyfunction!(add_surrogate, module)?)?;
    module.add_function(wrap_pyfunction!(remove_surrogate, module)?)?;
    module.add_function(wrap_pyfunction!(adopt, module)?)?;
    module.add_function(wrap_pyfunction!(join_later, module)?)?;
    module.add_function(wrap_pyfunction!(drop_unclaimed, module)?)?;
    module.add_function(wrap_pyfunction!(begin_spawning, module)?)?;
    module.add_function(wrap_pyfunction!(begin_foreign_spawning, module)?)?;
    module.add_function(wrap_pyfunction!(end_spawning, module)?)?;
    module.add_function(wrap_pyfunction!(reap, module)?)?;
    module.add_function(wrap_pyfunction!(reap_all, module)?)?;
    module.add_function(wrap_pyfunction!(arena_usage, module)?)?;
    module.add_function(wrap_pyfunction!(trim, module)?)
}

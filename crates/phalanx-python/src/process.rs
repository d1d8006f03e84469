//! Processes: what the modules `popen_*`, `spawn` and `forkserver` need.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use phalanx::process::zygote::{self, Request};
use phalanx::process::{spawn, watch};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::to_py;
use crate::wait::{blocking, deadline};

/// A descriptor of the caller's, for as long as the call lasts.
pub(crate) fn borrow<'a>(fd: i32) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is no descriptor")));
    }
    // SAFETY: not negative; the caller keeps it open during the call, and if it does not, the
    // system calls made on it fail.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

pub(crate) fn borrow_all<'a>(fds: &[i32]) -> PyResult<Vec<BorrowedFd<'a>>> {
    fds.iter().map(|&fd| borrow(fd)).collect()
}

/// From here on this process is killed when its parent, which is `parent`, ends.
#[pyfunction]
fn die_with_parent(parent: u32) -> PyResult<()> {
    watch::die_with_parent(parent).map_err(to_py)
}

/// A descriptor that is readable once process `pid` has ended.
#[pyfunction]
fn watch_process(pid: u32) -> PyResult<i32> {
    watch::open(pid).map(IntoRawFd::into_raw_fd).map_err(to_py)
}

/// Waits for the child of which `fd` is a pidfd; its exit code, or None after `timeout` seconds.
#[pyfunction]
fn wait_child(
    py: Python<'_>,
    fd: i32,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<i32>> {
    let (fd, until) = (borrow(fd)?, deadline(timeout)?);
    let status = blocking(py, || watch::wait(fd, until))?.map_err(to_py)?;
    Ok(status.map(|status| status.as_python()))
}

/// Waits for the child of a zygote; its exit code, or None after `timeout` seconds.
#[pyfunction]
fn zygote_wait(
    py: Python<'_>,
    fd: i32,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<i32>> {
    let (fd, until) = (borrow(fd)?, deadline(timeout)?);
    let status = blocking(py, || zygote::wait(fd, until))?.map_err(to_py)?;
    Ok(status.map(|status| status.as_python()))
}

/// Waits until `fd` is readable; false after `timeout` seconds.
#[pyfunction]
fn wait_readable(py: Python<'_>, fd: i32, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
    let (fd, until) = (borrow(fd)?, deadline(timeout)?);
    blocking(py, || watch::wait_readable(fd, until))?.map_err(to_py)
}

/// Sends a signal to the process of which `fd` is a pidfd; false if it has ended.
#[pyfunction]
fn signal_process(fd: i32, signal: i32) -> PyResult<bool> {
    watch::send_signal(borrow(fd)?, signal).map_err(to_py)
}

/// Sends a signal to all descendants of process `pid`; how many there were.
#[pyfunction]
fn signal_descendants(py: Python<'_>, pid: u32, signal: i32) -> PyResult<usize> {
    py.detach(|| phalanx::process::signal_descendants(pid, signal))
        .map_err(to_py)
}

/// Starts the program `path`; it inherits the standard streams and `fds`. Its pid.
#[pyfunction]
pub(crate) fn spawn_process(
    py: Python<'_>,
    path: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    fds: Vec<i32>,
) -> PyResult<u32> {
    let path = CString::new(path)?;
    let arguments = arguments
        .into_iter()
        .map(CString::new)
        .collect::<Result<Vec<_>, _>>()?;
    let inherited = borrow_all(&fds)?;
    py.detach(|| {
        let options = spawn::Options {
            inherited: &inherited,
            ..spawn::Options::default()
        };
        spawn::spawn(&path, &arguments, options)
    })
    .map_err(to_py)
}

/// A new anonymous file holding `data`, its position at the start.
pub(crate) fn memory_file(name: &str, data: &[u8]) -> PyResult<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let mut left = data;
    let mut at = 0;
    while !left.is_empty() {
        let written = rustix::io::pwrite(&fd, left, at).map_err(std::io::Error::from)?;
        left = &left[written..];
        at += written as u64;
    }
    Ok(fd)
}

/// The descriptor of a new anonymous file holding `data`, its position at the start.
#[pyfunction]
fn memfd(name: &str, data: &[u8]) -> PyResult<i32> {
    Ok(memory_file(name, data)?.into_raw_fd())
}

/// The umask, without the moment of another one that `os.umask` brings.
#[pyfunction]
fn umask() -> PyResult<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .and_then(|text| u32::from_str_radix(text.trim(), 8).ok())
        .ok_or_else(|| PyRuntimeError::new_err("the system does not tell the umask"))
}

/// Whether a zygote reads from the other end of `control`.
#[pyfunction]
fn zygote_alive(control: i32) -> PyResult<bool> {
    Ok(zygote::is_alive(borrow(control)?))
}

/// The server side of the fork server; see `phalanx::process::zygote`.
#[pyclass]
struct Zygote(Option<zygote::Zygote>);

impl Zygote {
    fn get(&mut self) -> PyResult<&mut zygote::Zygote> {
        self.0
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("this process is not the fork server"))
    }
}

#[pymethods]
impl Zygote {
    #[new]
    fn new(control: i32) -> PyResult<Self> {
        borrow(control)?;
        // SAFETY: not negative; the caller hands the descriptor over.
        let control = unsafe { OwnedFd::from_raw_fd(control) };
        rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC)
            .map_err(std::io::Error::from)?;
        zygote::Zygote::new(control)
            .map(|z| Self(Some(z)))
            .map_err(to_py)
    }

    /// True: fork a child now; False: nobody needs this process any more.
    fn wait(&mut self, py: Python<'_>) -> PyResult<bool> {
        let zygote = self.get()?;
        blocking(py, || zygote.wait())?.map_err(to_py)
    }

    /// In the server, after the fork.
    fn forked(&mut self, pid: u32) -> PyResult<()> {
        self.get()?.forked(pid).map_err(to_py)
    }

    /// In the child, after the fork: waits for a request, `(note, descriptors, the server's pid, a
    /// descriptor that is readable when the client has ended)`, or None if none will come.
    #[allow(clippy::type_complexity)] // a tuple for Python
    fn receive<'py>(
        &mut self,
        py: Python<'py>,
    ) -> PyResult<Option<(Bound<'py, PyBytes>, Vec<i32>, u32, i32)>> {
        let Some(zygote) = self.0.take() else {
            return Err(PyRuntimeError::new_err("this process is no child to be"));
        };
        let Some(request) = py.detach(|| zygote.receive()).map_err(to_py)? else {
            return Ok(None);
        };
        let Request {
            note,
            fds,
            zygote,
            client,
            connection,
        } = request;
        // It ends with this process.
        let _ = connection.into_raw_fd();
        Ok(Some((
            PyBytes::new(py, &note),
            fds.into_iter().map(IntoRawFd::into_raw_fd).collect(),
            zygote,
            client.into_raw_fd(),
        )))
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Zygote>()?;
    module.add_function(wrap_pyfunction!(die_with_parent, module)?)?;
    module.add_function(wrap_pyfunction!(watch_process, module)?)?;
    module.add_function(wrap_pyfunction!(wait_child, module)?)?;
    module.add_function(wrap_pyfunction!(wait_readable, module)?)?;
    module.add_function(wrap_pyfunction!(signal_process, module)?)?;
    module.add_function(wrap_pyfunction!(signal_descendants, module)?)?;
    module.add_function(wrap_pyfunction!(spawn_process, module)?)?;
    module.add_function(wrap_pyfunction!(memfd, module)?)?;
    module.add_function(wrap_pyfunction!(umask, module)?)?;
    module.add_function(wrap_pyfunction!(zygote_alive, module)?)?;
    module.add_function(wrap_pyfunction!(zygote_wait, module)?)
}

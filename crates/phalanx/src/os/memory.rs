//! Memory files and mappings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::{Error, Result};

/// The size of a page that all layouts here assume as a unit; larger system pages only coarsen
/// what [`discard`] can give back.
pub(crate) const PAGE: usize = 4096;

/// Makes an anonymous memory file of `size` bytes, none of which costs memory before it is touched.
pub(crate) fn create(size: usize) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("phalanx", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|e| Error::os("cannot create the arena's memory file (memfd_create)", e))?;
    rustix::fs::ftruncate(&fd, size as u64).map_err(|e| {
        Error::os(
            format!("cannot size the arena's memory file to {size} bytes"),
            e,
        )
    })?;
    // A member that shrank the file would kill all others by SIGBUS.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| Error::os("cannot seal the arena's memory file", e))?;
    // A descriptor far from those that programs expect to be free (0 to 9, or the next one).
    match rustix::io::fcntl_dupfd_cloexec(&fd, 100) {
        Ok(high) => Ok(high),
        Err(_) => Ok(fd),
    }
}

/// Maps `size` bytes of `fd`, shared, for the rest of the process's life.
pub(crate) fn map(fd: BorrowedFd<'_>, size: usize) -> Result<NonNull<u8>> {
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
    let base = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            size,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::NORESERVE,
            fd,
            0,
        )
    }
    .map_err(|e| Error::os(format!("cannot map {size} bytes of the arena"), e))?;
    // SAFETY: the range was mapped above. A core file with the whole arena in it helps nobody.
    let _ = unsafe { rustix::mm::madvise(base, size, Advice::LinuxDontDump) };
    NonNull::new(base.cast()).ok_or_else(|| Error::corrupt("mmap gave a null address"))
}

/// Maps the same pages of the file at the same address again, either shared as they were or as a
/// private copy-on-write view.
///
/// # Safety
/// `address` is where `offset` of `fd` is mapped, both are multiples of [`PAGE`], and the `size`
/// bytes belong to the caller alone.
pub(crate) unsafe fn remap(
    fd: BorrowedFd<'_>,
    address: *mut u8,
    offset: u64,
    size: usize,
    private: bool,
) -> Result<()> {
    let kind = if private {
        MapFlags::PRIVATE
    } else {
        MapFlags::SHARED
    };
    // SAFETY: the caller owns the range, and the new mapping shows the same file pages.
    unsafe {
        rustix::mm::mmap(
            address.cast(),
            size,
            ProtFlags::READ | ProtFlags::WRITE,
            kind | MapFlags::NORESERVE | MapFlags::FIXED,
            fd,
            offset,
        )
    }
    .map(|_| ())
    .map_err(|e| Error::os(format!("cannot remap {size} bytes of the arena"), e))
}

/// Gives the memory of a range of the file back to the system; it reads as zeros afterwards.
pub(crate) fn discard(fd: BorrowedFd<'_>, offset: u64, size: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(fd, flags, offset, size).is_ok()
}

/// The memory of this machine, in bytes.
pub(crate) fn physical() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)))
}

/// The largest file this process may make, in bytes.
pub(crate) fn file_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Fsize)
        .current
        .unwrap_or(u64::MAX)
}

/// Whether `fd` is a memory file of at least `size` bytes.
pub(crate) fn is_large_enough(fd: &impl AsFd, size: u64) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|s| s.st_size >= 0 && s.st_size as u64 >= size)
}

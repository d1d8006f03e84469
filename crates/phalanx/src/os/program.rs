//! This program's code as data: naming a function to a process that runs the same program.
//!
//! A function is named by its distance from where the executable was loaded, which is the same in
//! every process that runs it, wherever the system puts it. Whether it is the same executable is
//! told by its file: device, inode, size and time of change.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::linux::fs::MetadataExt;
use std::sync::OnceLock;

use crate::error::{Error, Kind, Result};

/// A function that another process can be told to run: bytes in, bytes out.
pub(crate) type Function = fn(&[u8]) -> Result<Vec<u8>>;

/// Which file this process executes: device, inode, size, time of change in nanoseconds.
pub(crate) type Identity = (u64, u64, u64, i64);

/// Where the executable (not a library) was loaded, and its code.
struct Image {
    base: usize,
    code: Vec<Range<usize>>,
}

/// The executable's file. A file that was replaced since the start is still the old one here.
///
/// # Errors
/// The system's, if there is no `/proc`.
pub(crate) fn identity() -> Result<Identity> {
    let file = std::fs::metadata("/proc/self/exe")
        .map_err(|e| Error::os("this program's own file cannot be looked at", e))?;
    let changed = file.st_mtime() * 1_000_000_000 + file.st_mtime_nsec();
    Ok((file.st_dev(), file.st_ino(), file.st_size(), changed))
}

/// The name of a function for other processes of this program.
///
/// # Errors
/// `is_unsupported` if it is not the executable's own, but a library's.
pub(crate) fn name_of(function: Function) -> Result<u64> {
    let address = function as usize;
    let image = image();
    if !image.code.iter().any(|code| code.contains(&address)) {
        return Err(Error::new(
            Kind::Unsupported,
            "work for another process must be a function of the executable itself, not of a shared \
             library that it has loaded",
        ));
    }
    Ok((address - image.base) as u64)
}

/// The function of that name.
///
/// # Safety
/// The name was made by [`name_of`], in a process of the same [`identity`].
///
/// # Errors
/// `is_corrupt` if there is no code of the executable.
pub(crate) unsafe fn function_of(name: u64) -> Result<Function> {
    let image = image();
    let address = usize::try_from(name).map_or(0, |name| image.base.wrapping_add(name));
    if !image.code.iter().any(|code| code.contains(&address)) {
        return Err(Error::corrupt("a function to run is outside the program"));
    }
    // SAFETY: the caller says that a `Function` lies there, and it is code of the executable.
    Ok(unsafe { std::mem::transmute::<usize, Function>(address) })
}

/// A value of a type that has one value only: a function, or a closure that captures nothing.
///
/// # Safety
/// A value of the type was made by a process of this program.
pub(crate) unsafe fn conjure<F: Copy + 'static>() -> F {
    const { assert!(size_of::<F>() == 0, "it must have no bytes") };
    // SAFETY: reading no bytes from an aligned address is sound; the caller has had such a value,
    // so the type is inhabited, and being `Copy` it stands for nothing that is counted.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut image = Image {
            base: 0,
            code: Vec::new(),
        };
        // SAFETY: the callback gets the address of `image`, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut image).cast()) };
        image
    })
}

/// Looks at the first object, which is the executable, and no further.
///
/// # Safety
/// `image` points to an `Image`.
unsafe extern "C" fn look(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    image: *mut c_void,
) -> c_int {
    // SAFETY: the C library passes a valid object; we passed the image.
    let (info, image) = unsafe { (&*info, &mut *image.cast::<Image>()) };
    image.base = info.dlpi_addr as usize;
    for i in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the object has so many program headers.
        let header = unsafe { &*info.dlpi_phdr.add(i) };
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
            let start = image.base + header.p_vaddr as usize;
            image.code.push(start..start + header.p_memsz as usize);
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(bytes: &[u8]) -> Result<Vec<u8>> {
        Ok(bytes.iter().map(|b| b * 2).collect())
    }

    #[test]
    fn a_name_leads_back_to_its_function() {
        let name = name_of(double).unwrap();
        // SAFETY: the name is that of a function of this very process.
        let found = unsafe { function_of(name) }.unwrap();
        assert_eq!(found(&[1, 2]).unwrap(), [2, 4]);
    }

    #[test]
    fn a_name_outside_of_the_program_is_refused() {
        for name in [u64::MAX, 1 << 50] {
            // SAFETY: refused before it is used.
            assert!(unsafe { function_of(name) }.unwrap_err().is_corrupt());
        }
    }

    #[test]
    fn what_has_no_bytes_is_made_from_nothing() {
        fn call<F: Fn(u8) -> u8 + Copy + 'static>(_: F) -> u8 {
            // SAFETY: the argument is such a value.
            let function = unsafe { conjure::<F>() };
            function(20)
        }
        assert_eq!(call(|x| x + 1), 21);
        assert_eq!(identity().unwrap(), identity().unwrap());
    }
}

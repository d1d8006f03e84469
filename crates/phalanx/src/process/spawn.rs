//! Starting a program with exactly the descriptors it is to have.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::{Error, Result};

// SAFETY: this is how the C library declares it.
unsafe extern "C" {
    static environ: *const *mut libc::c_char;
}

/// What a program is started with.
#[derive(Debug, Default, Clone, Copy)]
pub struct Options<'a> {
    /// Descriptors it inherits under the same numbers, besides 0, 1 and 2.
    pub inherited: &'a [BorrowedFd<'a>],
    /// Its environment, as `NAME=value`; this process's own if `None`.
    pub environment: Option<&'a [CString]>,
    /// Its working directory; this process's own if `None`.
    pub directory: Option<&'a CStr>,
}

/// Starts `program` (a path; it is not searched for) and gives its pid.
///
/// All other descriptors are closed in it, also those that were opened without the flag for that.
/// No code of this process runs in the child, so threads do no harm, and its memory is not copied.
///
/// # Errors
/// The system's, if there is no such program or no room for another process.
pub fn spawn(program: &CStr, arguments: &[CString], options: Options<'_>) -> Result<u32> {
    let mut actions = Actions::new()?;
    if let Some(directory) = options.directory {
        actions.change_directory(directory)?;
    }
    let kept: Vec<i32> = options.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    for &fd in &kept {
        actions.keep(fd)?;
    }
    for fd in open_descriptors()? {
        if fd > 2 && !kept.contains(&fd) {
            actions.close(fd)?;
        }
    }
    let argv = pointers(arguments);
    let envp = options.environment.map(pointers);
    let mut pid = 0;
    // SAFETY: the arrays end with a null and point to strings that live until the call returns;
    // `environ` is the C library's own, and posix_spawn only reads it.
    let failed = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            std::ptr::null(),
            argv.as_ptr(),
            envp.as_ref().map_or(environ, |list| list.as_ptr()),
        )
    };
    match failed {
        0 => Ok(pid as u32),
        error => Err(Error::os(
            format!("{} cannot be started", program.to_string_lossy()),
            std::io::Error::from_raw_os_error(error),
        )),
    }
}

/// The strings as C wants them. It does not change them, though its type says that it may.
fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect()
}

/// The descriptors of this process that a program would inherit.
fn open_descriptors() -> Result<Vec<i32>> {
    let failed = |e| Error::os("the open descriptors cannot be listed", e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse::<i32>().ok()));
    }
    Ok(found)
}

/// What the child does between its birth and the program.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> Result<Self> {
        // SAFETY: the call fills in the structure, which lies wherever it is moved to: the C
        // library keeps no address of it.
        unsafe {
            let mut actions = std::mem::zeroed();
            check(libc::posix_spawn_file_actions_init(&raw mut actions))?;
            Ok(Self(actions))
        }
    }

    fn close(&mut self, fd: i32) -> Result<()> {
        // SAFETY: initialised by `new`. Closing what is not open is not an error here.
        check(unsafe { libc::posix_spawn_file_actions_addclose(&raw mut self.0, fd) })
    }

    fn keep(&mut self, fd: i32) -> Result<()> {
        // SAFETY: initialised by `new`. Onto itself: the flag to close it on exec is taken off.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, fd, fd) })
    }

    fn change_directory(&mut self, directory: &CStr) -> Result<()> {
        // SAFETY: initialised by `new`; the C library copies the string.
        check(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, directory.as_ptr())
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

fn check(error: i32) -> Result<()> {
    match error {
        0 => Ok(()),
        error => Err(Error::os(
            "the start of a program cannot be prepared",
            std::io::Error::from_raw_os_error(error),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::watch;
    use std::os::fd::AsFd;

    fn run(script: &str, options: Options<'_>) -> i32 {
        let args = ["sh", "-c", script].map(|s| CString::new(s).unwrap());
        let pid = spawn(c"/bin/sh", &args, options).unwrap();
        let fd = watch::open(pid).unwrap();
        watch::wait(fd.as_fd(), None).unwrap().unwrap().as_python()
    }

    #[test]
    fn passes_what_is_named_and_closes_the_rest() {
        let (reader, writer) = std::io::pipe().unwrap();
        let stray = rustix::io::dup(&reader).unwrap(); // no close-on-exec
        let script = format!(
            "test -e /proc/self/fd/{} && ! test -e /proc/self/fd/{}",
            writer.as_raw_fd(),
            stray.as_raw_fd()
        );
        let options = Options {
            inherited: &[writer.as_fd()],
            ..Options::default()
        };
        assert_eq!(run(&script, options), 0);
    }

    #[test]
    fn sets_environment_and_directory() {
        let environment = [c"COLOUR=green".to_owned(), c"PATH=/bin:/usr/bin".to_owned()];
        let options = Options {
            environment: Some(&environment),
            directory: Some(c"/usr"),
            ..Options::default()
        };
        assert_eq!(run("test $COLOUR = green && test $PWD = /usr", options), 0);
        assert_eq!(run("exit 3", Options::default()), 3);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = spawn(c"/no/such/program", &[], Options::default()).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}

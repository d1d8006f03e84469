//! A started child: how it knows that it is one, and what it does.
//!
//! ```text
//! parent                                       child: the same program, from the top of main
//! reserves a place in the family
//! makes a mailbox, counted for the child
//! puts the request: function, argument
//! starts the program with the arena's
//!   descriptor and PHALANX_CHILD       ----->  init() finds both, adopts the arena
//!                                              takes the request, runs the function
//! waits for the end                    <-----  puts the result, exits
//! takes the result
//! ```
//!
//! The variable names the arena by its descriptor, device and inode. A program that the child
//! starts by other means inherits the variable, but not the descriptor, and so is a first process.

use std::any::Any;
use std::fmt::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::{codec, handle, retry};
use crate::arena::{Arena, Handle, Shared};
use crate::channel;
use crate::error::{Error, Kind, Result};
use crate::os::program::{self, Identity};
use crate::process::watch;
use crate::sync::MemberId;

/// The variable by which a child knows that it is one.
pub(super) const VARIABLE: &str = "PHALANX_CHILD";

/// The exit code of a child that could not begin or deliver: the system's `EX_SOFTWARE`.
const FAILED: i32 = 70;
/// The exit code of a child whose function panicked, as for any Rust program.
const PANICKED: i32 = 101;

/// What the messages in a mailbox are.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Tag {
    Request = 1,
    Result,
    Panic,
    Failure,
}

impl Tag {
    pub(super) fn of(tag: u16) -> Option<Self> {
        [Self::Request, Self::Result, Self::Panic, Self::Failure]
            .into_iter()
            .find(|&t| t as u16 == tag)
    }
}

/// What the child is to know before its argument.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) program: Identity,
    pub(super) function: u64,
    pub(super) name: String,
    /// The parent's pid, if the child is to die with it.
    pub(super) die_with: Option<u32>,
    /// What the child inherits beside the arena.
    pub(super) descriptors: Vec<RawFd>,
}

impl Request {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        codec::encode(&(
            self.program,
            self.function,
            &self.name,
            self.die_with,
            &self.descriptors,
        ))
    }

    fn decode(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let ((program, function, name, die_with, descriptors), argument) =
            codec::decode_first(bytes)?;
        let request = Self {
            program,
            function,
            name,
            die_with,
            descriptors,
        };
        Ok((request, argument))
    }
}

static READY: AtomicBool = AtomicBool::new(false);
static NAME: OnceLock<String> = OnceLock::new();

/// Call this first in `main`.
///
/// A child that this library starts is the same program: it begins at the top of `main`, and
/// `init` is where it leaves it. In such a child this runs the function that was asked for and
/// exits; it does not return. In all other processes it returns at once and does nothing but note
/// that it was called: until then no process can be started.
///
/// What `main` does before runs again in each child, so it had better be nothing.
///
/// ```
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let child = phalanx::Process::spawn(|n: u32| n + 1, 41)?;
///     assert_eq!(child.join()?, 42);
///     Ok(())
/// }
/// ```
///
/// # In tests
/// The standard test harness has a `main` of its own. Write `harness = false` for the test in
/// `Cargo.toml`, and a `main` that begins with `phalanx::init()`.
pub fn init() {
    if READY.swap(true, Relaxed) {
        return;
    }
    let Some(call) = Call::from_environment() else {
        return;
    };
    let mailbox = match call.adopt() {
        Ok(mailbox) => mailbox,
        Err(error) => {
            eprintln!("phalanx: this child cannot join its family: {error}");
            std::process::exit(FAILED);
        }
    };
    std::process::exit(serve(&mailbox));
}

/// # Errors
/// `is_invalid` if [`init`] was not called.
pub(super) fn check_ready() -> Result<()> {
    if READY.load(Relaxed) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        "call phalanx::init() first in main, before starting a process: a child is this program \
         once more, and that call is where it goes its own way (in tests: harness = false, and a \
         main that begins with it)",
    ))
}

/// The name that this process was started under; `MainProcess` if by other means.
pub fn process_name() -> &'static str {
    NAME.get().map_or("MainProcess", String::as_str)
}

/// What the variable says.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    arena: RawFd,
    device: u64,
    inode: u64,
    member: MemberId,
    mailbox: Handle,
}

/// What the variable is to say.
pub(super) fn variable(arena: &Arena, member: MemberId, mailbox: Handle) -> Result<String> {
    let fd = arena.fd();
    let file = rustix::fs::fstat(fd).map_err(|e| Error::os("the arena cannot be looked at", e))?;
    Ok(format!(
        "{}:{}:{}:{}:{}",
        fd.as_raw_fd(),
        file.st_dev,
        file.st_ino,
        member.get(),
        mailbox.bits()
    ))
}

impl Call {
    fn from_environment() -> Option<Self> {
        Self::parse(&std::env::var(VARIABLE).ok()?).filter(Self::is_for_me)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':');
        let call = Self {
            arena: numbers.next()?.parse().ok().filter(|&fd| fd > 2)?,
            device: numbers.next()?.parse().ok()?,
            inode: numbers.next()?.parse().ok()?,
            member: MemberId::new(numbers.next()?.parse().ok()?)?,
            mailbox: Handle::from_bits(numbers.next()?.parse().ok()?),
        };
        numbers.next().is_none().then_some(call)
    }

    /// Whether the descriptor is that of the arena, which only a child inherits.
    fn is_for_me(&self) -> bool {
        // SAFETY: only looked at, and not kept; if it is not open, the call below says so.
        let fd = unsafe { BorrowedFd::borrow_raw(self.arena) };
        rustix::fs::fstat(fd)
            .is_ok_and(|file| file.st_dev == self.device && file.st_ino == self.inode)
    }

    fn adopt(&self) -> Result<channel::Queue> {
        // SAFETY: inherited for us alone, under this number: nobody else in this process knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(self.arena) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
            .map_err(|e| Error::os("the arena cannot be kept from other programs", e))?;
        let arena = Arena::adopt(fd, self.member)?;
        Shared::attach(arena.family(), self.mailbox).map(channel::Queue::from_core)
    }
}

/// Does what the request says, delivers what comes of it, and returns the exit code.
fn serve(mailbox: &channel::Queue) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(mailbox)));
    let (tag, bytes, code) = match outcome {
        Ok(Ok(result)) => (Tag::Result, result, 0),
        Ok(Err(error)) => (Tag::Failure, error.to_bytes(), FAILED),
        Err(panic) => (Tag::Panic, panic_text(&*panic).into_bytes(), PANICKED),
    };
    match deliver(mailbox, tag, &bytes) {
        Ok(()) => code,
        Err(error) => {
            eprintln!(
                "phalanx: {} cannot deliver its result: {error}",
                process_name()
            );
            FAILED
        }
    }
}

fn run(mailbox: &channel::Queue) -> Result<Vec<u8>> {
    let message = mailbox
        .try_get()?
        .filter(|message| message.tag == Tag::Request as u16)
        .ok_or_else(|| Error::corrupt("a child without a request"))?;
    let (request, argument) = Request::decode(message.bytes())?;
    if let Some(parent) = request.die_with {
        watch::die_with_parent(parent)?;
    }
    // SAFETY: made for this process and inherited by it; this is the one time they are taken.
    unsafe { handle::unpack_descriptors(&request.descriptors) };
    set_name(request.name);
    if request.program != program::identity()? {
        return Err(Error::new(
            Kind::Unsupported,
            "the child runs another executable file than its parent: children are started from \
             /proc/self/exe, which must be the program itself, not an emulator or a loader",
        ));
    }
    // SAFETY: named by our parent, whose executable is this very file.
    let function = unsafe { program::function_of(request.function) }?;
    function(argument)
}

/// Also as the process shows in lists; at most 15 bytes of it.
fn set_name(name: String) {
    if let Ok(short) = std::ffi::CString::new(name.as_bytes()) {
        let _ = rustix::thread::set_name(&short);
    }
    let _ = NAME.set(name);
}

fn deliver(mailbox: &channel::Queue, tag: Tag, bytes: &[u8]) -> Result<()> {
    let parts = [bytes];
    let mut letter = mailbox.letter(&parts, tag as u16, Vec::new())?;
    retry(|| mailbox.put(&mut letter, None))
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let mut text = String::new();
    if let Some(said) = panic.downcast_ref::<&str>() {
        text.push_str(said);
    } else if let Some(said) = panic.downcast_ref::<String>() {
        text.push_str(said);
    } else {
        let _ = write!(text, "(a panic without a message)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_says_what_the_child_must_know() {
        let mailbox = channel::Queue::new(None).unwrap();
        let arena = mailbox.core().arena();
        let me = crate::sync::Members::me(arena);
        let text = variable(arena, me, mailbox.core().handle()).unwrap();
        let call = Call::parse(&text).unwrap();
        assert_eq!(
            (call.arena, call.member, call.mailbox),
            (arena.fd().as_raw_fd(), me, mailbox.core().handle())
        );
        assert!(call.is_for_me());
        let stranger = Call {
            inode: call.inode + 1,
            ..call
        };
        assert!(!stranger.is_for_me());
    }

    #[test]
    fn nonsense_is_no_call() {
        for text in [
            "",
            "1",
            "5:1:2:0:7",
            "0:1:2:4097:7",
            "5:1:2:4097:7:8",
            "a:b:c:d:e",
        ] {
            assert_eq!(Call::parse(text), None, "{text}");
        }
        assert!(check_ready().unwrap_err().is_invalid());
    }
}

//! Starting a process that runs a function, and waiting for its result.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::{self, Request, Tag};
use super::{codec, deadline, handle, retry, task};
use crate::arena::Arena;
use crate::channel;
use crate::error::{Error, Kind, Result};
use crate::os::program::{self, Function};
use crate::process::{ExitStatus, signal_descendants, spawn, watch};
use crate::sync::MemberId;

/// A process that runs a function and gives its result, an `R`.
///
/// ```
/// use phalanx::Process;
///
/// fn total(numbers: Vec<u64>) -> u64 {
///     numbers.iter().sum()
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let child = Process::spawn(total, vec![1, 2, 3])?;
///     assert_eq!(child.join()?, 6);
///     Ok(())
/// }
/// ```
///
/// The work is a function or a closure that captures nothing; all that it needs is in its
/// argument, which goes to the child by serde, as the result comes back. Shared objects among
/// them go as handles. A closure that captures something does not compile:
///
/// ```compile_fail,E0080
/// let factor = 3;
/// let child = phalanx::Process::spawn(move |n: u32| n * factor, 2);
/// ```
///
/// Dropping a `Process` neither ends nor waits for the child, as with [`std::process::Child`]; it
/// is reaped when it has ended and this process starts or joins another one.
#[derive(Debug)]
pub struct Process<R> {
    name: String,
    pid: u32,
    life: Option<Life>,
    mailbox: channel::Queue,
    status: OnceLock<ExitStatus>,
    taken: bool,
    result: PhantomData<fn() -> R>,
}

/// What must be done once a child has ended: reap it, and give back what it held.
#[derive(Debug)]
struct Life {
    pidfd: OwnedFd,
    member: MemberId,
}

/// Children whose `Process` was dropped before they ended.
static LEFT: Mutex<Vec<Life>> = Mutex::new(Vec::new());

impl Life {
    /// Waits for the end until `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        let status = retry(|| watch::wait(self.pidfd.as_fd(), deadline))?;
        if status.is_some()
            && let Some(arena) = Arena::current()
        {
            arena.cancel(self.member);
        }
        Ok(status)
    }

    fn has_ended(&self) -> bool {
        matches!(self.wait(Some(Instant::now())), Ok(Some(_)))
    }
}

/// Reaps what has ended of the children that nobody waits for.
fn reap_left() {
    LEFT.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|life| !life.has_ended());
}

impl Process<()> {
    /// A process with a name, another environment or directory, or one that dies with this one.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl<R> Process<R> {
    /// Starts a process that calls `function` with `argument`.
    ///
    /// # Errors
    /// `is_invalid` if [`init`](crate::init) was not called in `main`, `is_unsupported` if the
    /// argument's type cannot be sent or the function lies in a shared library, `is_arena_full`,
    /// `is_full` if the family has as many processes as it can have, and the system's.
    pub fn spawn<A, F>(function: F, argument: A) -> Result<Self>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        Builder::default().spawn(function, argument)
    }

    /// The process's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's id. Once the process has been waited for, it may be another one's.
    pub fn id(&self) -> u32 {
        self.pid
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("taken by the drop only")
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        if let Some(&status) = self.status.get() {
            return Ok(Some(status));
        }
        let ended = self.life().wait(deadline)?;
        // Two threads may have waited; the second finds the process reaped by the first.
        Ok(ended.map(|status| *self.status.get_or_init(|| status)))
    }

    /// Whether the process still runs. Never blocks.
    pub fn is_alive(&self) -> bool {
        !matches!(self.wait(Some(Instant::now())), Ok(Some(_)))
    }

    /// How the process ended, if it has. Never blocks.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.wait(Some(Instant::now())).ok().flatten()
    }

    /// Kills the process (`SIGKILL`). Nothing happens if it has ended.
    ///
    /// What it held is given back when it is joined, or sooner by who waits for it.
    ///
    /// # Errors
    /// The system's, if it has become another user's.
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Asks the process to end (`SIGTERM`), which kills it if it does not see to that signal.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn terminate(&self) -> Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Asks the process and all that descend from it to end (`SIGTERM`).
    ///
    /// None can get away by starting another one meanwhile: they are stopped first.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn terminate_tree(&self) -> Result<()> {
        if self.is_alive() {
            signal_descendants(self.pid, libc::SIGTERM)?;
        }
        self.terminate()
    }

    fn signal(&self, signal: i32) -> Result<()> {
        watch::send_signal(self.life().pidfd.as_fd(), signal).map(|_| ())
    }

    /// Waits for the end of the process and gives its function's result.
    ///
    /// # Errors
    /// `is_panic` if the function panicked; `is_peer_death` if the process ended before it had a
    /// result, killed or by exiting; [`Error::exit_status`] tells how. `is_invalid` if the child's
    /// `main` does not call [`init`](crate::init), or if the result has been taken already;
    /// `is_unsupported` if its type cannot be sent. `is_gone` if there is a shared object in the
    /// result that the child alone held: make it here, and hand it over as an argument.
    pub fn join(mut self) -> Result<R>
    where
        R: DeserializeOwned,
    {
        match self.wait(None)? {
            Some(status) => self.take(status),
            None => Err(Error::timeout()),
        }
    }

    /// Gives the result if the process has ended. Never blocks.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn try_join(&mut self) -> Result<Option<R>>
    where
        R: DeserializeOwned,
    {
        match self.wait(Some(Instant::now()))? {
            Some(status) => self.take(status).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for the end of the process for `timeout` at most, and gives the result.
    ///
    /// # Errors
    /// `is_timeout` if it still runs; else as [`join`](Self::join).
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<R>
    where
        R: DeserializeOwned,
    {
        match self.wait(deadline(timeout))? {
            Some(status) => self.take(status),
            None => Err(Error::new(
                Kind::Timeout,
                format!("{self} still runs after {timeout:?}"),
            )),
        }
    }

    /// What the process that ended so has left in its mailbox.
    fn take(&mut self, status: ExitStatus) -> Result<R>
    where
        R: DeserializeOwned,
    {
        reap_left();
        if std::mem::replace(&mut self.taken, true) {
            return Err(Error::new(
                Kind::Invalid,
                format!("the result of {self} has been taken already"),
            ));
        }
        let Some(message) = self.mailbox.try_get()? else {
            let what = format!("{self} ended with {status} before it had a result");
            return Err(Error::new(Kind::PeerDeath, what).with_exit(status));
        };
        let text = || String::from_utf8_lossy(message.bytes());
        let error = match Tag::of(message.tag) {
            Some(Tag::Result) => return codec::decode(message.bytes()),
            Some(Tag::Panic) => Error::new(Kind::Panic, format!("{self} panicked: {}", text())),
            Some(Tag::Failure) => Error::from_bytes(message.bytes()),
            Some(Tag::Request) if status.signal().is_none() => Error::new(
                Kind::Invalid,
                format!(
                    "{self} ended with {status} and never came to phalanx::init(): call it first \
                     in main"
                ),
            ),
            Some(Tag::Request) => Error::new(
                Kind::PeerDeath,
                format!("{self} ended with {status} before it began"),
            ),
            None => Error::corrupt("a process's mailbox"),
        };
        Err(error.with_exit(status))
    }
}

impl<R> std::fmt::Display for Process<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl<R> AsFd for Process<R> {
    /// A descriptor that is readable once the process has ended, for `poll` and its like.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.life().pidfd.as_fd()
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        if self.is_alive()
            && let Some(life) = self.life.take()
        {
            LEFT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(life);
        }
    }
}

/// How to start a process, in the words of [`std::process::Command`].
///
/// ```
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let child = phalanx::Process::builder()
///         .name("reader")
///         .env("COLOUR", "green")
///         .current_dir("/")
///         .die_with_parent(true)
///         .spawn(|()| std::env::var("COLOUR").unwrap(), ())?;
///     assert_eq!(child.join()?, "green");
///     Ok(())
/// }
/// ```
#[derive(Debug, Default, Clone)]
pub struct Builder {
    name: Option<String>,
    clear: bool,
    changes: BTreeMap<OsString, Option<OsString>>,
    directory: Option<PathBuf>,
    die_with_parent: bool,
}

impl Builder {
    /// The process's name, in messages and in lists of processes. Without one it is `Process-N`.
    pub fn name(&mut self, name: impl Into<String>) -> &mut Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a variable of the child's environment, which is otherwise this process's.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        let value = Some(value.as_ref().to_owned());
        self.changes.insert(name.as_ref().to_owned(), value);
        self
    }

    /// Leaves a variable out of the child's environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.changes.insert(name.as_ref().to_owned(), None);
        self
    }

    /// Begins the child's environment empty.
    pub fn env_clear(&mut self) -> &mut Self {
        self.clear = true;
        self.changes.clear();
        self
    }

    /// The child's working directory.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Whether the child is killed when this process ends, in whatever way. It is not otherwise.
    pub fn die_with_parent(&mut self, dies: bool) -> &mut Self {
        self.die_with_parent = dies;
        self
    }

    /// Starts a process that calls `function` with `argument`.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn<A, R, F>(&self, function: F, argument: A) -> Result<Process<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        self.start(task::of_process(function), &|| codec::encode(&argument))
    }

    /// The part that does not depend on types.
    fn start<R>(
        &self,
        function: Function,
        write_argument: &dyn Fn() -> Result<Vec<u8>>,
    ) -> Result<Process<R>> {
        child::check_ready()?;
        reap_left();
        let arena = Arena::get()?;
        let name = self.name.clone().unwrap_or_else(next_name);
        let member = Reserved::new(arena)?;
        let mailbox = channel::Queue::new(None)?;
        mailbox.core().book_for(member.id)?;
        let (argument, descriptors) = handle::for_child(member.id, write_argument)?;
        let request = Request {
            program: program::identity()?,
            function: program::name_of(function)?,
            name: name.clone(),
            die_with: self.die_with_parent.then(std::process::id),
            descriptors: descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let request = request.encode()?;
        let parts = [request.as_slice(), argument.as_slice()];
        let mut letter = mailbox.letter(&parts, Tag::Request as u16, Vec::new())?;
        retry(|| mailbox.put(&mut letter, None))?;

        let variable = child::variable(arena, member.id, mailbox.core().handle())?;
        let pid = self.exec(arena, &descriptors, &variable)?;
        let pidfd = watch::open(pid)?;
        Ok(Process {
            name,
            pid,
            life: Some(Life {
                pidfd,
                member: member.keep(),
            }),
            mailbox,
            status: OnceLock::new(),
            taken: false,
            result: PhantomData,
        })
    }

    fn exec(&self, arena: &Arena, descriptors: &[OwnedFd], variable: &str) -> Result<u32> {
        let arguments = std::env::args_os()
            .map(c_string)
            .collect::<Result<Vec<_>>>()?;
        let directory = self.directory.clone().map(c_string).transpose()?;
        let environment = self.environment(variable)?;
        let mut inherited = vec![arena.fd()];
        inherited.extend(descriptors.iter().map(AsFd::as_fd));
        let options = spawn::Options {
            inherited: &inherited,
            environment: Some(&environment),
            directory: directory.as_deref(),
        };
        spawn::spawn(c"/proc/self/exe", &arguments, options)
    }

    fn environment(&self, variable: &str) -> Result<Vec<CString>> {
        let mut all: BTreeMap<OsString, OsString> = if self.clear {
            BTreeMap::new()
        } else {
            std::env::vars_os().collect()
        };
        for (name, value) in &self.changes {
            match value {
                Some(value) => all.insert(name.clone(), value.clone()),
                None => all.remove(name),
            };
        }
        all.insert(child::VARIABLE.into(), variable.into());
        all.into_iter()
            .map(|(mut entry, value)| {
                entry.push("=");
                entry.push(value);
                c_string(entry)
            })
            .collect()
    }
}

/// A child's place in the family, given back if it is not started.
struct Reserved {
    arena: &'static Arena,
    id: MemberId,
    kept: bool,
}

impl Reserved {
    fn new(arena: &'static Arena) -> Result<Self> {
        let id = arena.reserve_child()?;
        Ok(Self {
            arena,
            id,
            kept: false,
        })
    }

    fn keep(mut self) -> MemberId {
        self.kept = true;
        self.id
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.kept {
            self.arena.cancel(self.id);
        }
    }
}

/// `Process-2`; in that process, `Process-2:1`.
fn next_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let number = COUNT.fetch_add(1, Relaxed);
    match child::process_name() {
        "MainProcess" => format!("Process-{number}"),
        parent => format!("{parent}:{number}"),
    }
}

fn c_string(text: impl Into<OsString>) -> Result<CString> {
    let bytes = text.into().into_vec();
    CString::new(bytes).map_err(|e| {
        let text = OsStr::from_bytes(&e.into_vec()).to_owned();
        Error::new(
            Kind::Invalid,
            format!("{text:?} has a zero byte in it and cannot go to a process"),
        )
    })
}

//! How a process is started: its name, environment, directory, and what it is handed.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::{self, Request, Tag};
use super::process::{Life, Process, reap_left};
use super::{codec, handle, retry, task};
use crate::arena::Arena;
use crate::channel;
use crate::error::{Error, Kind, Result};
use crate::os::program::{self, Function};
use crate::process::{spawn, watch};
use crate::sync::MemberId;

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
        let life = Life::new(pidfd, member.keep());
        Ok(Process::new(name, pid, life, mailbox))
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

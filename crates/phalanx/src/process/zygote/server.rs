//! The side that forks: the zygote and the children it keeps ready.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::{LONGEST_NOTE, WATCHED, began, ended};
use crate::error::{Error, Kind, Result};
use crate::os::{fdpass, pidfd, signal};

/// How many children may end, one after the other, before they have read a request.
const MOST_FAILURES: u32 = 8;

/// How many children are kept ready.
const READY: usize = 2;

/// The zygote's side: asks its caller to fork, and looks after the children.
///
/// ```ignore
/// let mut zygote = Zygote::new(control)?;
/// while zygote.wait()? {
///     match fork() {
///         0 => return zygote.receive(),      // in the child: blocks until there is work
///         pid => zygote.forked(pid)?,
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Zygote {
    control: OwnedFd,
    epoll: OwnedFd,
    /// The link for the child that the caller is about to fork: our end and its end.
    next: Option<(OwnedFd, OwnedFd)>,
    warm: Vec<Warm>,
    children: HashMap<u64, Child>,
    keys: u64,
    stage: Stage,
    failures: u32,
    pid: u32,
    patient: Option<Patience>,
}

/// A child that waits for a request.
#[derive(Debug)]
struct Warm {
    key: u64,
    pidfd: OwnedFd,
    link: OwnedFd,
}

/// A child that runs.
#[derive(Debug)]
struct Child {
    pidfd: OwnedFd,
    connection: OwnedFd,
    /// The process whose end ends it.
    client: Option<OwnedFd>,
    /// It has ended, and the client has been told; it is a zombie until the client has heard it.
    told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No request has come.
    Unused,
    Used,
    /// None will come any more.
    Closing,
}

// What an event is about. The keys of children are even, those of their clients one more.
const CONTROL: u64 = 0;
const FIRST_CHILD: u64 = 2;

impl Zygote {
    /// A zygote that serves the requests that come on `control`.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors.
    pub fn new(control: OwnedFd) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| Error::os("the fork server cannot wait for events", e))?;
        let zygote = Self {
            control,
            epoll,
            next: None,
            warm: Vec::new(),
            children: HashMap::new(),
            keys: FIRST_CHILD,
            stage: Stage::Unused,
            failures: 0,
            pid: std::process::id(),
            patient: Patience::new(),
        };
        zygote.add(&zygote.control, CONTROL, EventFlags::IN)?;
        Ok(zygote)
    }

    /// Looks after the children until another one is wanted: then true, and the caller forks and
    /// calls [`forked`](Self::forked) in itself and [`receive`](Self::receive) in the child. False
    /// when nobody can ask any more and no child is left.
    ///
    /// # Errors
    /// `is_interrupted()` when a signal came; `is_broken()` if children keep ending before they
    /// have read their request.
    pub fn wait(&mut self) -> Result<bool> {
        loop {
            let wanted = self.stage == Stage::Used && self.warm.len() < READY;
            if wanted && self.failures >= MOST_FAILURES {
                return Err(Error::new(
                    Kind::Broken,
                    "the children of the fork server end before they have begun",
                ));
            }
            if self.stage == Stage::Closing && self.children.is_empty() && self.warm.is_empty() {
                return Ok(false);
            }
            let events = self.events(wanted)?;
            // First of all clients are told what has happened; a fork takes a while.
            if wanted && events.is_empty() {
                self.next = Some(fdpass::pair()?);
                return Ok(true);
            }
            for event in events {
                self.handle(event)?;
            }
        }
    }

    /// What has happened; waits for it unless there is something else to do.
    fn events(&self, busy: bool) -> Result<Vec<Event>> {
        let mut events = Vec::with_capacity(64);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            busy.then_some(&now),
        ) {
            Ok(_) => Ok(events),
            Err(Errno::INTR) => Err(Error::interrupted()),
            Err(e) => Err(Error::os("the fork server cannot wait for events", e)),
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let flags = event.flags;
        match event.data.u64() {
            CONTROL if flags.contains(EventFlags::IN) && self.stage == Stage::Unused => {
                self.stage = Stage::Used;
                // From here on a child reads the requests; we only look for the end.
                let watch_end = EventFlags::empty();
                epoll::modify(
                    &self.epoll,
                    &self.control,
                    EventData::new_u64(CONTROL),
                    watch_end,
                )
                .map_err(|e| Error::os("the fork server cannot wait for its end", e))
            }
            CONTROL if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                self.stage = Stage::Closing;
                self.remove(&self.control);
                let told = self.children.iter().filter(|(_, child)| child.told);
                for key in told.map(|(&key, _)| key).collect::<Vec<_>>() {
                    self.bury(key);
                }
                Ok(())
            }
            CONTROL => Ok(()),
            key if key % 2 == 0 => match self.warm.iter().position(|warm| warm.key == key) {
                Some(place) => self.taken(place),
                None => self.ended(key),
            },
            key => self.client_ended(key - 1),
        }
    }

    /// A warm child has read a request, or has ended.
    fn taken(&mut self, place: usize) -> Result<()> {
        let warm = self.warm.remove(place);
        self.remove(&warm.link);
        let mut kind = [0];
        let message = fdpass::receive(warm.link.as_fd(), &mut kind, false)?;
        let Some((1, fds)) = message else {
            // It is dead or dying; if somebody waits for an answer, the next child has it.
            pidfd::send_signal(warm.pidfd.as_fd(), libc::SIGKILL)?;
            pidfd::wait_readable(warm.pidfd.as_fd(), None)?;
            pidfd::reap(warm.pidfd.as_fd());
            self.failures += 1;
            return Ok(());
        };
        self.failures = 0;
        let mut fds = fds.into_iter();
        let (Some(connection), Some(client)) = (fds.next(), fds.next()) else {
            return Ok(());
        };
        let key = warm.key;
        let client = (kind == [WATCHED]).then_some(client);
        if let Some(client) = &client {
            self.add(client, key + 1, EventFlags::IN)?;
        }
        self.add(&warm.pidfd, key, EventFlags::IN)?;
        self.children.insert(
            key,
            Child {
                pidfd: warm.pidfd,
                connection,
                client,
                told: false,
            },
        );
        Ok(())
    }

    /// The child has ended, or its client has heard of that.
    fn ended(&mut self, key: u64) -> Result<()> {
        let Some(child) = self.children.get_mut(&key) else {
            return Ok(());
        };
        if !child.told {
            child.told = true;
            let _ = epoll::delete(&self.epoll, &child.pidfd);
            if let Some(client) = child.client.take() {
                let _ = epoll::delete(&self.epoll, &client);
            }
            let sent = pidfd::look(child.pidfd.as_fd()).is_some_and(|status| {
                fdpass::send(child.connection.as_fd(), &ended(status), &[]).is_ok()
            });
            if sent && self.stage != Stage::Closing {
                let child = &self.children[&key];
                return self.add(&child.connection, key, EventFlags::IN | EventFlags::RDHUP);
            }
            // Nobody listens any more, or there is nothing to tell but the end.
        }
        self.bury(key);
        Ok(())
    }

    fn bury(&mut self, key: u64) {
        if let Some(child) = self.children.remove(&key) {
            self.remove(&child.connection);
            pidfd::reap(child.pidfd.as_fd());
        }
    }

    fn client_ended(&mut self, key: u64) -> Result<()> {
        if let Some(child) = self.children.get_mut(&key) {
            if let Some(client) = child.client.take() {
                let _ = epoll::delete(&self.epoll, &client);
            }
            pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL)?;
        }
        Ok(())
    }

    /// After the fork that [`wait`](Self::wait) asked for, in the zygote.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors.
    pub fn forked(&mut self, pid: u32) -> Result<()> {
        let Some((link, _)) = self.next.take() else {
            return Err(Error::new(Kind::Invalid, "no fork was asked for"));
        };
        let pidfd = pidfd::open(pid)?;
        let key = self.keys;
        self.keys += 2;
        self.add(&link, key, EventFlags::IN)?;
        self.warm.push(Warm { key, pidfd, link });
        Ok(())
    }

    fn add(&self, fd: impl AsFd, key: u64, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(key), flags)
            .map_err(|e| Error::os("the fork server cannot watch a process", e))
    }

    /// Closing alone would not do: a child that was forked meanwhile may hold a copy.
    fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    // ---- in the child ----------------------------------------------------------------------------

    /// After the fork that [`wait`](Self::wait) asked for, in the child: blocks until a request
    /// comes. `None` if none will; then the child has to exit.
    ///
    /// While it waits, this process is killed if the zygote dies.
    ///
    /// # Errors
    /// `is_interrupted()` cannot be: signals are waited out. The system's, otherwise.
    pub fn receive(self) -> Result<Option<Request>> {
        let Self {
            control,
            next,
            pid: zygote,
            epoll,
            children,
            warm,
            patient,
            ..
        } = self;
        // The zygote's own. Copies kept here would hide the end of connections.
        drop((epoll, children, warm));
        let Some((ours, link)) = next else {
            return Err(Error::new(Kind::Invalid, "no fork was asked for"));
        };
        drop(ours);
        drop(patient);
        signal::killed_with_forking_thread(true)?;
        let mut buffer = vec![0; 1 + LONGEST_NOTE];
        let request = loop {
            if parent() != zygote {
                return Ok(None);
            }
            match fdpass::receive(control.as_fd(), &mut buffer, false) {
                Err(error) if error.is_interrupted() => {}
                other => break other?,
            }
        };
        let Some((length, fds)) = request else {
            return Ok(None);
        };
        let mut fds = fds.into_iter();
        let (Some(connection), Some(client)) = (fds.next(), fds.next()) else {
            return Err(Error::new(Kind::Invalid, "a request without a connection"));
        };
        let kind = buffer[0];
        fdpass::send(link.as_fd(), &[kind], &[connection.as_fd(), client.as_fd()])?;
        signal::killed_with_forking_thread(false)?;
        if parent() != zygote {
            return Ok(None);
        }
        // If the client is gone or has changed its mind, there is nothing to do.
        let me = began(std::process::id());
        if fdpass::send(connection.as_fd(), &me, &[]).is_err() {
            return Ok(None);
        }
        buffer.truncate(length);
        buffer.remove(0);
        Ok(Some(Request {
            note: buffer,
            fds: fds.collect(),
            zygote,
            client,
            connection,
        }))
    }
}

/// As long as this lives, this process does not interrupt others when it wakes up.
///
/// A zygote wakes up when a child has begun, on the child's processor as a rule. Without this it
/// forked the next one there while the child waited: 0.5 ms of a start and its end.
#[derive(Debug)]
struct Patience;

impl Patience {
    /// `None` if the system, or whoever started this process, has set other rules for it.
    fn new() -> Option<Self> {
        // SAFETY: the call takes a number.
        let ordinary = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_OTHER;
        (ordinary && set_policy(libc::SCHED_BATCH)).then_some(Self)
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        set_policy(libc::SCHED_OTHER);
    }
}

fn set_policy(policy: i32) -> bool {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the system only reads the structure.
    unsafe { libc::sched_setscheduler(0, policy, &raw const priority) == 0 }
}

fn parent() -> u32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32)
}

/// What a child of a zygote is to do.
#[derive(Debug)]
pub struct Request {
    /// What the client wrote.
    pub note: Vec<u8>,
    /// The descriptors it sent along, closed on exec.
    pub fds: Vec<OwnedFd>,
    /// The zygote, which is this process's parent.
    pub zygote: u32,
    /// Readable when the client, in whose name this process runs, has ended.
    pub client: OwnedFd,
    /// To be kept open as long as this process lives: if the zygote dies, its end tells the client.
    pub connection: OwnedFd,
}

//! A pipe: one log each way in the arena, and a pair of sockets as doorbells.
//!
//! The messages go through the arena; an end's socket tells, as the kernel can, that there is
//! something to receive (a byte in it) or that the other end is gone (end of file), to `poll`,
//! `select`, asyncio, and to this module when it has to sleep. One rule keeps the byte right without a
//! system call a message:
//!
//! * *messages in the log imply a byte in the reader's socket.*
//! * Before a reader sleeps on an empty log, or lets anybody poll its descriptor, it takes the byte
//!   out and clears [`RUNG`].
//! * A sender that finds `RUNG` cleared after its message is in the log puts a byte in.
//!
//! So while both sides are awake the byte just stays there. A reader that finds nothing does not go to
//! its socket at once, either: it first sleeps for [`NEAR`] at a bell beside the log. Waking it there
//! costs the sender less, and the kernel does not take it for a hint to run both on one core, as it
//! does with sockets: round trips went from 2.1 to 3.9 times the standard library's on a machine with
//! some load, from 9.0 to 11.6 times with all cores taken. Only the wait for somebody who is killed
//! and not reaped is longer by that much.
//!
//! With the byte before the message even that one would be heard of, but a reader on the sender's
//! processor then wakes too early and has to wait for it: 0.55 times as many round trips.
//!
//! A descriptor may also leave the family: a program duplicates it for a process that knows nothing of
//! the arena. So each pipe decides once what carries its messages, by its first message or by the
//! first look at its descriptor, whichever comes first (see [`End::use_arena`], [`End::use_stream`]).
//! As a stream, a pipe is its sockets and nothing else; then this module only keeps them.
//!
//! | killed | seen afterwards |
//! | --- | --- |
//! | sender, its message in the log but no byte yet | a message that was not sent: a reader at the bell finds it soon; one asleep at its socket does not hear of it, but finds it when it wakes, by the next message or the end of file |
//! | sender, after the byte but before `RUNG` | one byte too many: a reader wakes in vain, once |
//! | reader, after it took the byte out but before it cleared `RUNG` | the next reader to sleep finds the lock abandoned, clears `RUNG`, and looks |
//! | the last holder of an end | its socket is closed by the kernel; the other end sees that |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::bell::Bell;
use super::log::{Log, Patience, Pushed};
use super::message::{Letter, Message, Taken};
use crate::arena::{Arena, Buffer, Handle, Shareable, Shared};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::os::spin;
use crate::sync::raw::RawLock;

/// Bytes that may be on their way before a sender waits: what a socket holds, generously.
const CAPACITY: u64 = 1 << 20;
/// A sender that waits for room looks so often whether there is still a reader.
const SLICE: Duration = Duration::from_millis(50);
/// How long a reader sleeps at the bell before it goes to sleep at its socket.
const NEAR: Duration = Duration::from_millis(10);
/// How many messages go between two looks at the socket for a reader that was killed.
const LOOK: u64 = 64;

/// There is a byte in the reader's socket, or one is about to be put in.
const RUNG: u32 = 1;
/// Somebody polls the reader's descriptor: the byte must go when the log becomes empty.
const EXPOSED: u32 = 2;

/// One way of a pipe.
#[repr(C)]
#[derive(Debug)]
struct Direction {
    log: Log,
    /// [`RUNG`] and [`EXPOSED`].
    state: AtomicU32,
    /// Held while the byte is put in or taken out.
    ringing: RawLock,
    /// Rung for each message.
    items: Bell,
    room: Bell,
}

/// Not decided what carries the messages.
const OPEN: u32 = 0;
const ARENA: u32 = 1;
const STREAM: u32 = 2;

/// What both ends share.
#[repr(C)]
#[derive(Debug)]
pub struct PipeCore {
    /// [`OPEN`], then for ever [`ARENA`] or [`STREAM`].
    carrier: AtomicU32,
    /// The messages that end 0 and end 1 receive.
    to: [Direction; 2],
    /// Set when the last member that held the end has let it go.
    closed: [AtomicU32; 2],
}

// SAFETY: repr(C), atomics only; see the table above for deaths.
unsafe impl Shareable for PipeCore {
    const KIND: u32 = 33;
    const NAME: &'static str = "Pipe";

    fn reclaim(&self, arena: &Arena) {
        self.to.iter().for_each(|way| way.log.clear(arena));
    }
}

/// One end, counted: holds one reference to the core.
#[repr(C)]
#[derive(Debug)]
pub struct EndCore {
    pipe: AtomicU64,
    side: AtomicU32,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shareable for EndCore {
    const KIND: u32 = 34;
    const NAME: &'static str = "end of a Pipe";

    fn reclaim(&self, arena: &Arena) {
        let handle = Handle::from_bits(self.pipe.load(Relaxed));
        let side = self.side.load(Relaxed) as usize % 2;
        if let Ok(pipe) = arena.object::<PipeCore>(handle) {
            // SYNC: pairs with the Acquire in `is_closed`.
            pipe.closed[side].store(1, Release);
            // Who waits for room there waits in vain, and who waits for a message from here, too.
            pipe.to[side].room.ring(u32::MAX);
            pipe.to[1 - side].items.ring(u32::MAX);
        }
        arena.release(handle);
    }
}

/// One end of a pipe in one process.
///
/// Messages sent at one end are received at the other, in order and whole, by whoever asks first.
/// When all processes that held the other end have closed it or died, what was sent before can
/// still be received, and then [`Error::is_closed`]; sending fails with [`Error::is_peer_death`].
#[derive(Debug)]
pub struct End {
    core: Shared<EndCore>,
    pipe: &'static PipeCore,
    side: usize,
    socket: OwnedFd,
}

/// A pipe's two ends.
///
/// # Errors
/// `is_arena_full`, or the system's.
pub fn pipe() -> Result<(End, End)> {
    let arena = Arena::get()?;
    let way = || Direction {
        log: Log::new(),
        state: AtomicU32::new(0),
        ringing: RawLock::new(),
        items: Bell::new(),
        room: Bell::new(),
    };
    let pipe = Shared::create(PipeCore {
        carrier: AtomicU32::new(OPEN),
        to: [way(), way()],
        closed: [AtomicU32::new(0), AtomicU32::new(0)],
    })?;
    let (first, second) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::os("cannot make the sockets of a pipe", e))?;
    let end = |side: u32, socket| {
        let core = Shared::create(EndCore {
            pipe: AtomicU64::new(pipe.handle().bits()),
            side: AtomicU32::new(side),
        })?;
        arena.retain::<PipeCore>(pipe.handle())?;
        End::new(core, socket)
    };
    Ok((end(0, first)?, end(1, second)?))
}

/// Puts the byte into the other end's socket. If that is full of bytes, there is one already; if
/// there is nobody, nobody needs it.
fn ring(socket: BorrowedFd<'_>) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    while matches!(rustix::net::send(socket, &[0], flags), Err(Errno::INTR)) {}
}

impl End {
    fn new(core: Shared<EndCore>, socket: OwnedFd) -> Result<Self> {
        let handle = Handle::from_bits(core.pipe.load(Relaxed));
        Ok(Self {
            pipe: core.arena().object(handle)?,
            side: core.side.load(Relaxed) as usize % 2,
            core,
            socket,
        })
    }

    /// The end that a handle names, with its socket, of which this process has got a descriptor.
    ///
    /// # Errors
    /// `is_foreign`, `is_gone`, `is_invalid`.
    pub fn attach(family: u64, handle: Handle, socket: OwnedFd) -> Result<Self> {
        Self::new(Shared::attach(family, handle)?, socket)
    }

    /// The counted object behind this end: its handle goes to other members, with the socket.
    pub fn core(&self) -> &Shared<EndCore> {
        &self.core
    }

    /// The arena that carries the messages.
    pub fn arena(&self) -> &'static Arena {
        self.core.arena()
    }

    /// Lets the arena carry this pipe's messages; false if it is decided that the sockets do. To be
    /// called before the first message.
    #[inline]
    pub fn use_arena(&self) -> bool {
        let carrier = self.pipe.carrier.load(Relaxed);
        carrier == ARENA || (carrier == OPEN && self.decide(ARENA))
    }

    /// Lets the sockets carry this pipe's messages, as streams; false if it is decided that the arena
    /// does.
    pub fn use_stream(&self) -> bool {
        self.decide(STREAM)
    }

    /// Whether it is decided that the sockets carry the messages.
    #[inline]
    pub fn is_stream(&self) -> bool {
        self.pipe.carrier.load(Relaxed) == STREAM
    }

    #[cold]
    fn decide(&self, carrier: u32) -> bool {
        // SYNC: the word decides nothing but itself, and what it decides about is ordered by the log
        // or by the kernel.
        match self
            .pipe
            .carrier
            .compare_exchange(OPEN, carrier, Relaxed, Relaxed)
        {
            Ok(_) => true,
            Err(decided) => decided == carrier,
        }
    }

    fn incoming(&self) -> &'static Direction {
        &self.pipe.to[self.side]
    }

    fn outgoing(&self) -> &'static Direction {
        &self.pipe.to[1 - self.side]
    }

    /// A message for the other end, whose bytes are `parts` one after the other.
    ///
    /// # Errors
    /// `is_arena_full`, `is_too_large`.
    pub fn letter<'a>(
        &self,
        parts: &'a [&'a [u8]],
        tag: u16,
        buffers: Vec<Buffer>,
    ) -> Result<Letter<'a>> {
        Letter::new(self.arena(), parts, tag, buffers)
    }

    /// Sends a message if there is room for it now (and, with [`Patience::Now`], nobody else sends
    /// at this end this moment).
    ///
    /// # Errors
    /// `is_peer_death` if the other end is gone, `is_arena_full`.
    #[inline]
    pub fn try_send(&self, letter: &mut Letter<'_>, patience: Patience) -> Result<bool> {
        let way = self.outgoing();
        if self.is_closed(1 - self.side) {
            return Err(broken());
        }
        let room = |count: u64, bytes: u64| count == 0 || bytes < CAPACITY;
        // Before the message is there: once it is, the reader may take it and go.
        if way.log.puts().is_multiple_of(LOOK) && self.hung_up() {
            return Err(broken());
        }
        let Pushed::Number(_) = way.log.push(letter, patience, room)? else {
            return Ok(false);
        };
        // SYNC: pairs with the fence in `drain`: either the reader sees the message or we see that
        // it has cleared the flag.
        fence(SeqCst);
        crash_point!("pipe.sent_unrung");
        if way.state.load(Relaxed) & RUNG == 0 {
            self.ring();
        }
        way.items.ring(1);
        Ok(true)
    }

    /// Sends a message, waiting for room until `deadline` (`None`: for ever).
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted` (nothing was sent then), `is_peer_death`, `is_arena_full`.
    pub fn send(&self, letter: &mut Letter<'_>, deadline: Option<Instant>) -> Result<()> {
        let way = self.outgoing();
        while !self.try_send(letter, Patience::Wait)? {
            if self.hung_up() {
                return Err(broken());
            }
            // A reader that was killed may have left the counts too high.
            way.log.settle(self.arena())?;
            let slice = Instant::now() + SLICE;
            let until = deadline.map_or(slice, |d| d.min(slice));
            let ready = || way.log.is_empty() || way.log.pending_bytes() < CAPACITY;
            match way
                .room
                .wait(|| ready() || self.is_closed(1 - self.side), Some(until))
            {
                Err(error) if error.is_timeout() && deadline.is_none_or(|d| Instant::now() < d) => {
                }
                done => done?,
            }
        }
        Ok(())
    }

    #[cold]
    fn ring(&self) {
        let way = self.outgoing();
        let _guard = way.ringing.guard(self.arena());
        if way.state.load(Relaxed) & RUNG == 0 && !way.log.is_empty() {
            ring(self.socket.as_fd());
            crash_point!("pipe.rung_unmarked");
            way.state.fetch_or(RUNG, SeqCst);
        }
    }

    /// Takes the byte out of this end's socket if the log is empty.
    #[cold]
    fn drain(&self) {
        let way = self.incoming();
        let guard = way.ringing.guard(self.arena());
        if !way.log.is_empty() {
            return;
        }
        if way.state.load(Relaxed) & RUNG != 0 || guard.recovered {
            self.take_byte();
            crash_point!("pipe.drained_unmarked");
            way.state.fetch_and(!RUNG, SeqCst);
        }
        drop(guard);
        // SYNC: pairs with the fence in `try_send`.
        fence(SeqCst);
    }

    fn take_byte(&self) {
        let mut byte = [0u8];
        while let Err(Errno::INTR) = rustix::net::recv(&self.socket, &mut byte, RecvFlags::DONTWAIT)
        {
        }
    }

    /// Takes the oldest message if there is one now.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn try_recv(&self) -> Result<Option<Message>> {
        let message = self.incoming().log.pop(self.arena())?;
        if message.is_some() {
            self.received();
        }
        Ok(message)
    }

    /// The fast form of [`End::try_recv`]: copies the message's inline bytes over `bytes`.
    ///
    /// # Errors
    /// `is_corrupt`.
    #[inline]
    pub fn try_recv_into(&self, bytes: &mut Vec<u8>, patience: Patience) -> Result<Option<Taken>> {
        let taken = self
            .incoming()
            .log
            .pop_into(self.arena(), bytes, patience)?;
        if taken.is_some() {
            self.received();
        }
        Ok(taken)
    }

    #[inline]
    fn received(&self) {
        let way = self.incoming();
        way.room.ring(1);
        if way.state.load(Relaxed) & EXPOSED != 0 && way.log.is_empty() {
            self.drain();
        }
    }

    /// Receives a message, waiting for one until `deadline` (`None`: for ever).
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`, `is_corrupt`; `is_closed` if the other end is gone and
    /// nothing is left.
    pub fn recv(&self, deadline: Option<Instant>) -> Result<Message> {
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            if !self.wait(deadline)? {
                return Err(Error::timeout());
            }
            if self.incoming().log.is_empty() && self.at_end()? {
                return Err(Error::new(
                    Kind::Closed,
                    "the other end of the pipe is closed",
                ));
            }
        }
    }

    /// Waits until there may be something to receive or the other end may be gone, or until the
    /// socket is readable and [`End::is_stream`]; false at the deadline. [`End::try_recv`] and
    /// [`End::at_end`] tell which.
    ///
    /// # Errors
    /// `is_interrupted`.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let way = self.incoming();
        let ready = || !way.log.is_empty() || self.is_closed(1 - self.side);
        if ready() {
            return Ok(true);
        }
        let now = Instant::now();
        if deadline.is_none_or(|d| d > now) {
            if spin::until(ready) {
                return Ok(true);
            }
            if self.pipe.carrier.load(Relaxed) == ARENA {
                let near = now + NEAR;
                let slept = way
                    .items
                    .sleep(ready, Some(deadline.map_or(near, |d| d.min(near))));
                if let Err(error) = slept
                    && !error.is_timeout()
                {
                    return Err(error);
                }
                if ready() {
                    return Ok(true);
                }
            }
        }
        self.drain();
        if ready() {
            return Ok(true);
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let readable = poll(self.socket.as_fd(), PollFlags::IN, left)?;
        if !readable.is_empty() && !self.is_stream() && way.log.is_empty() && !self.at_end()? {
            // A byte without a message: left over by somebody who was killed while ringing.
            let _guard = way.ringing.guard(self.arena());
            if way.state.load(Relaxed) & RUNG == 0 && way.log.is_empty() {
                self.take_byte();
            }
        }
        Ok(!readable.is_empty() || ready())
    }

    /// Whether nothing is left and nothing will come: the other end is closed or its last holder
    /// dead.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn at_end(&self) -> Result<bool> {
        let gone = self.is_closed(1 - self.side) || self.hung_up();
        if !gone {
            return Ok(false);
        }
        // What a killed sender had just published counts.
        self.incoming().log.settle(self.arena())?;
        Ok(self.incoming().log.is_empty())
    }

    /// Whether there is something to receive, or the end to be seen, now.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(!self.incoming().log.is_empty() || self.at_end()?)
    }

    /// The descriptor that becomes readable when there is something to receive or the other end is
    /// gone. From the first call on it is kept so, which costs the sender a system call for each
    /// message that finds the pipe empty.
    pub fn exposed_fd(&self) -> BorrowedFd<'_> {
        let way = self.incoming();
        way.state.fetch_or(EXPOSED, SeqCst);
        if way.log.is_empty() {
            self.drain();
        }
        self.socket.as_fd()
    }

    /// The socket, to hand it to another member together with the handle.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    #[inline]
    fn is_closed(&self, side: usize) -> bool {
        // SYNC: pairs with the Release in `EndCore::reclaim`.
        self.pipe.closed[side].load(Acquire) != 0
    }

    /// Whether the kernel has seen the last descriptor of the other end closed.
    fn hung_up(&self) -> bool {
        let now = Some(Duration::ZERO);
        poll(self.socket.as_fd(), PollFlags::empty(), now)
            .is_ok_and(|found| found.intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

fn broken() -> Error {
    Error::new(
        Kind::PeerDeath,
        "nobody will receive this: all processes that held the other end of the pipe have closed \
         it or died",
    )
}

fn poll(fd: BorrowedFd<'_>, what: PollFlags, time: Option<Duration>) -> Result<PollFlags> {
    let time = time.map(|t| Timespec {
        tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let mut fds = [PollFd::new(&fd, what)];
    match rustix::event::poll(&mut fds, time.as_ref()) {
        Ok(_) => Ok(fds[0].revents()),
        Err(Errno::INTR) => Err(Error::interrupted()),
        Err(error) => Err(Error::os("cannot poll the socket of a pipe", error)),
    }
}

//! A descriptor that tells of a queue's items, for programs that poll.
//!
//! A queue needs no descriptor; who wants to wait for it by `select`, `connection.wait` or asyncio
//! makes a [`Watch`]: a datagram socket with an abstract name (no file, gone with its process),
//! entered in one of the queue's slots. A producer that finds a slot without a datagram sends one.
//!
//! *An item in the queue implies a datagram in each watch's socket.* When the watch's owner finds the
//! queue empty it takes the datagrams out. Both happen under the slot's lock. A slot whose owner is
//! dead is cleared by the producer to whom its name no longer answers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::arena::Arena;
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::sync::owner::{MemberId, Members};
use crate::sync::raw::RawLock;

const SLOTS: usize = 8;

/// The slots of a queue.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Watches {
    /// Not 0 once there was a watch: spares producers the look at the slots.
    any: AtomicU32,
    slots: [Slot; SLOTS],
}

#[repr(C)]
#[derive(Debug)]
struct Slot {
    lock: RawLock,
    /// The member that watches, 0 if none.
    owner: AtomicU32,
    /// 1 if there is a datagram in the socket.
    rung: AtomicU32,
    /// What the socket's name ends with.
    name: AtomicU64,
}

impl Watches {
    pub(super) fn new() -> Self {
        Self {
            any: AtomicU32::new(0),
            slots: std::array::from_fn(|_| Slot::free()),
        }
    }

    /// Tells the watches after an item was put, unless it has been taken since.
    #[inline]
    pub(super) fn ring(&self, arena: &Arena, is_empty: impl Fn() -> bool) {
        if self.any.load(Relaxed) != 0 {
            self.ring_slow(arena, is_empty);
        }
    }

    #[cold]
    fn ring_slow(&self, arena: &Arena, is_empty: impl Fn() -> bool) {
        // SYNC: pairs with the fence in `Watch::settle`.
        fence(SeqCst);
        for slot in &self.slots {
            if slot.owner.load(Relaxed) != 0 && slot.rung.load(Relaxed) == 0 {
                slot.ring(arena, &is_empty);
            }
        }
    }

    /// Claims a slot for a watch of this member.
    fn claim(&self, arena: &Arena, name: u64) -> Result<usize> {
        for (index, slot) in self.slots.iter().enumerate() {
            let owner = slot.owner.load(Relaxed);
            if MemberId::new(owner).is_some_and(|id| arena.is_alive(id)) {
                continue;
            }
            let _guard = slot.lock.guard(arena);
            if slot.owner.load(Relaxed) == owner {
                slot.name.store(name, Relaxed);
                slot.rung.store(0, Relaxed);
                slot.owner.store(arena.me().get(), Relaxed);
                self.any.store(1, SeqCst);
                return Ok(index);
            }
        }
        Err(Error::new(
            Kind::Full,
            format!(
                "{SLOTS} processes poll this queue's descriptor already, the most there can be"
            ),
        ))
    }
}

impl Slot {
    fn free() -> Self {
        Self {
            lock: RawLock::new(),
            owner: AtomicU32::new(0),
            rung: AtomicU32::new(0),
            name: AtomicU64::new(0),
        }
    }

    fn ring(&self, arena: &Arena, is_empty: impl Fn() -> bool) {
        let _guard = self.lock.guard(arena);
        // A datagram for an item that is gone already would make its owner wait for another: who
        // took the item has looked for datagrams before this one came.
        if self.owner.load(Relaxed) == 0 || self.rung.load(Relaxed) != 0 || is_empty() {
            return;
        }
        let Ok(address) = address(arena, self.name.load(Relaxed)) else {
            return;
        };
        let Some(sender) = sender() else { return };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::sendto(sender, &[0], flags, &address) {
            // A full socket has datagrams enough.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {
                crash_point!("watch.rung_unmarked");
                self.rung.store(1, SeqCst);
            }
            // Nobody has that name any more.
            Err(_) => self.owner.store(0, Relaxed),
        }
    }
}

fn address(arena: &Arena, name: u64) -> Result<SocketAddrUnix> {
    let text = format!("phalanx-{:x}-{name:x}", arena.family());
    SocketAddrUnix::new_abstract_name(text.as_bytes())
        .map_err(|e| Error::os("cannot name a queue's socket", e))
}

fn datagram_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// The socket that this process sends its datagrams from.
fn sender() -> Option<&'static OwnedFd> {
    static SENDER: OnceLock<Option<OwnedFd>> = OnceLock::new();
    SENDER.get_or_init(|| datagram_socket().ok()).as_ref()
}

/// One process's descriptor for one queue.
#[derive(Debug)]
pub(super) struct Watch {
    socket: OwnedFd,
    slot: usize,
    owner: MemberId,
}

impl Watch {
    pub(super) fn new(watches: &Watches, arena: &'static Arena) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let owner = arena.me();
        let number = COUNT.fetch_add(1, Relaxed);
        let name = (u64::from(owner.get()) << 32) | u64::from(number);
        let make = |e| Error::os("cannot make a descriptor for a queue", e);
        let socket = datagram_socket().map_err(make)?;
        rustix::net::bind(&socket, &address(arena, name)?).map_err(make)?;
        let slot = watches.claim(arena, name)?;
        Ok(Self {
            socket,
            slot,
            owner,
        })
    }

    /// Whether the watch is this process's own, not one inherited by a fork.
    pub(super) fn is_own(&self, arena: &Arena) -> bool {
        self.owner == arena.me()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes the descriptor readable if the queue has items, and not so if it is empty.
    pub(super) fn settle(&self, watches: &Watches, arena: &Arena, is_empty: impl Fn() -> bool) {
        let slot = &watches.slots[self.slot];
        if is_empty() {
            let _guard = slot.lock.guard(arena);
            if is_empty() {
                slot.rung.store(0, SeqCst);
                crash_point!("watch.unmarked");
                let mut byte = [0u8];
                while rustix::net::recv(&self.socket, &mut byte, RecvFlags::DONTWAIT).is_ok() {}
            }
        }
        // SYNC: pairs with the fence in `ring_slow`: either the producer sees that there is no
        // datagram or we see its item.
        fence(SeqCst);
        if !is_empty() && slot.rung.load(Relaxed) == 0 {
            slot.ring(arena, is_empty);
        }
    }

    /// Gives the slot back.
    pub(super) fn end(&self, watches: &Watches, arena: &Arena) {
        if self.is_own(arena) {
            let slot = &watches.slots[self.slot];
            let _guard = slot.lock.guard(arena);
            slot.owner.store(0, Relaxed);
        }
    }
}

//! Who owns something: the name of a member, and how to ask whether it still lives.
//!
//! The algorithms of this layer know members by these two types only, so that they can be tested
//! on the heap, with members that are threads or nothing but numbers.

use std::fmt;
use std::num::NonZeroU32;

/// A member of the family: a process, told apart from earlier ones in the same slot.
///
/// Never zero and never with the top bit, so that a lock word can hold it together with a flag
/// and with "nobody".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MemberId(NonZeroU32);

impl MemberId {
    /// The bits a member's name may use.
    pub const MASK: u32 = 0x7fff_ffff;

    /// The member of this number; `None` for 0, "nobody", and for one with the top bit.
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(raw) if raw.get() & !Self::MASK == 0 => Some(Self(raw)),
            _ => None,
        }
    }

    /// The number, as it stands in lock words.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberId({:#x})", self.0)
    }
}

/// The members of a family, as far as a lock needs to know them.
pub trait Members {
    /// This process. Cheap: asked in every uncontended acquire.
    fn me(&self) -> MemberId;

    /// For whom this thread claims what may be kept: this process, or the one that it acts for.
    /// What is held for a moment only, to change something, is always this process's.
    #[inline]
    fn claimant(&self) -> MemberId {
        self.me()
    }

    /// Whether that member still lives. May make system calls: asked once a slice
    /// ([`SLICE`](super::SLICE)) of a wait.
    fn is_alive(&self, member: MemberId) -> bool;
}

impl<M: Members + ?Sized> Members for &M {
    fn me(&self) -> MemberId {
        (**self).me()
    }

    #[inline]
    fn claimant(&self) -> MemberId {
        (**self).claimant()
    }

    fn is_alive(&self, member: MemberId) -> bool {
        (**self).is_alive(member)
    }
}

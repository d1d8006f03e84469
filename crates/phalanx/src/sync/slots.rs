//! A table of claims that survives the claimants, and grows.
//!
//! Conditions, barriers and bounded semaphores write down who waits or holds. Some slots lie in
//! the object itself; more come in [`Part`]s linked from it, which stay until the object goes.
//!
//! | owner | state | meaning |
//! | --- | --- | --- |
//! | nobody | any | free |
//! | a living member | what the primitive says | its claim |
//! | a dead member | any | a claim to be undone; free for the next claimant who finds none |
//!
//! A claim is one compare-exchange of the owner, a part is linked by one of the link. Killed
//! between making a part and linking it: the part is lost, one block.

use super::{MemberId, Members};
use crate::fault::crash_point;
use crate::os::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::os::atomic::{AtomicU32, AtomicU64};

/// Slots in the object itself.
const HERE: usize = if cfg!(loom) { 2 } else { 14 };
/// Slots in a part.
const THERE: usize = 63;
/// A chain that is longer than this is damaged: more than a million slots.
const LONGEST: usize = 1 << 14;

/// One claim.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Slot {
    owner: AtomicU32,
    /// What the claim stands for; the primitive's own numbers, 0 in a new claim. Often slept on.
    pub(super) state: AtomicU32,
    /// A number beside it: a ticket, a count.
    pub(super) number: AtomicU64,
}

/// Slots for claims; lies in an object.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Slots {
    here: [Slot; HERE],
    more: AtomicU64,
}

/// Further slots. All-zero memory is one without claims.
#[derive(Debug)]
#[repr(C)]
pub struct Part {
    slots: [Slot; THERE],
    more: AtomicU64,
    _spare: AtomicU64,
}

/// Where parts come from and lie.
pub trait Space {
    /// A zeroed part that belongs to no member, or `None` if there is no room.
    fn new_part(&self) -> Option<u64>;

    /// The part of that number; `None` if it cannot be one.
    fn part(&self, at: u64) -> Option<&Part>;

    /// Gives back a part that nothing links to.
    fn free_part(&self, at: u64);
}

impl Slot {
    /// Who has claimed it.
    pub(super) fn owner(&self) -> Option<MemberId> {
        MemberId::new(self.owner.load(Relaxed))
    }

    /// Gives the slot back. Nobody but the owner, or who knows it dead, may do so.
    pub(super) fn free(&self) {
        self.state.store(0, Relaxed);
        // SYNC: pairs with the acquire in `claim_from`.
        self.owner.store(0, Release);
    }

    /// Makes the claim `to`'s, as it is. The caller keeps everybody else from claiming it.
    pub(super) fn give_to(&self, to: MemberId) {
        self.owner.store(to.get(), Relaxed);
    }

    /// Makes it `to`'s instead of `from`'s (0: nobody's).
    pub(super) fn claim_from(&self, from: u32, to: MemberId) -> bool {
        // SYNC: pairs with the release in `free`.
        let claimed = self
            .owner
            .compare_exchange(from, to.get(), AcqRel, Relaxed)
            .is_ok();
        if claimed {
            crash_point!("slots.claimed");
            self.state.store(0, Relaxed);
            self.number.store(0, Relaxed);
        }
        claimed
    }
}

impl Slots {
    /// All slots, claimed or not.
    pub(super) fn iter<'a>(&'a self, space: &'a impl Space) -> impl Iterator<Item = &'a Slot> {
        self.here
            .iter()
            .chain(self.parts(space).flat_map(|(_, part)| &part.slots))
    }

    fn parts<'a>(&'a self, space: &'a impl Space) -> impl Iterator<Item = (u64, &'a Part)> {
        // SYNC: pairs with the release in `link`: the part's zeros.
        let first = self.more.load(Acquire);
        let follow = move |at: u64| (at != 0).then(|| space.part(at).map(|part| (at, part)))?;
        std::iter::successors(follow(first), move |(_, part)| {
            follow(part.more.load(Acquire))
        })
        .take(LONGEST)
    }

    /// Claims a slot for this process: a free one, else a dead member's, else a new one.
    ///
    /// `None` if there is no room for more slots.
    pub(super) fn claim<'a>(&'a self, home: &'a (impl Members + Space)) -> Option<&'a Slot> {
        let me = home.claimant();
        if let Some(slot) = self
            .iter(home)
            .find(|s| s.owner().is_none() && s.claim_from(0, me))
        {
            return Some(slot);
        }
        let of_the_dead = |slot: &&Slot| match slot.owner() {
            Some(owner) => !home.is_alive(owner) && slot.claim_from(owner.get(), me),
            None => slot.claim_from(0, me),
        };
        if let Some(slot) = self.iter(home).find(of_the_dead) {
            return Some(slot);
        }
        self.claim_new(home)
    }

    /// Claims a slot in a new part. `None` if there is no room for one.
    pub(super) fn claim_new<'a>(&'a self, home: &'a (impl Members + Space)) -> Option<&'a Slot> {
        let me = home.claimant();
        self.grow(home)?
            .slots
            .iter()
            .find(|slot| slot.claim_from(0, me))
    }

    fn grow<'a>(&'a self, space: &'a impl Space) -> Option<&'a Part> {
        let at = space.new_part()?;
        let part = space.part(at)?;
        crash_point!("slots.part_unlinked");
        let mut link = &self.more;
        loop {
            // SYNC: pairs with the acquires in `parts`.
            match link.compare_exchange(0, at, AcqRel, Acquire) {
                Ok(_) => return Some(part),
                Err(next) => match space.part(next) {
                    Some(next) => link = &next.more,
                    None => {
                        space.free_part(at);
                        return None;
                    }
                },
            }
        }
    }

    /// Gives back all parts. Nobody may use the object any more.
    pub fn reclaim(&self, space: &impl Space) {
        let parts: Vec<u64> = self.parts(space).map(|(at, _)| at).collect();
        self.more.store(0, Relaxed);
        parts.into_iter().for_each(|at| space.free_part(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Heap, Mapped};

    #[test]
    fn grows_and_finds_room_again() {
        let (home, slots) = (Heap, Slots::default());
        let all = HERE + 2 * THERE;
        let claimed: Vec<_> = (0..all).map(|_| slots.claim(&home).unwrap()).collect();
        assert_eq!(slots.parts(&home).count(), 2);
        claimed[20].free();
        assert!(std::ptr::eq(slots.claim(&home).unwrap(), claimed[20]));
        assert_eq!(slots.parts(&home).count(), 2);
        slots.reclaim(&home);
        assert_eq!(slots.parts(&home).count(), 0);
    }

    #[test]
    fn takes_the_slots_of_the_dead() {
        let slots = Mapped::<Slots>::new();
        let child = Child::run(|| {
            for _ in 0..HERE {
                slots.claim(&Heap).unwrap();
            }
        });
        assert_eq!(child.join(), 0);
        for slot in &slots.here {
            assert!(slot.owner().is_some());
            slots.claim(&Heap).unwrap();
        }
        assert_eq!(slots.parts(&Heap).count(), 0);
    }
}

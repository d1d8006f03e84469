//! Who holds how many of something: what the dead held is found and comes back.
//!
//! One entry a member, in [`Slots`]; where there is no room for one, the thing is a *stray*, which
//! nobody misses. Changes are of one word each; who adds and who removes, and whoever looks at more
//! than one entry, is kept apart from others of its kind by a lock of the user's.

use super::slots::{Slot, Slots, Space};
use super::{MemberId, Members};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::Relaxed;

/// See the module.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Holdings {
    /// Things without an entry.
    strays: AtomicU32,
    /// Who holds how many (`number`).
    holders: Slots,
}

impl Holdings {
    /// This process holds one more. Under the lock of those who add.
    #[inline]
    pub(crate) fn add(&self, home: &(impl Members + Space)) {
        match self.my_entry(home) {
            Some(entry) => _ = entry.number.fetch_add(1, Relaxed),
            None => _ = self.strays.fetch_add(1, Relaxed),
        }
    }

    /// One is held no more: one of this process's, else anybody's, else a stray; nothing if there is
    /// none. Under the lock of those who remove.
    #[inline]
    pub(crate) fn remove(&self, home: &(impl Members + Space)) {
        let me = home.claimant();
        let holds = |slot: &&Slot| slot.number.load(Relaxed) > 0;
        let mine = |slot: &&Slot| slot.owner() == Some(me) && holds(slot);
        let entry = self
            .holders
            .iter(home)
            .find(mine)
            .or_else(|| self.holders.iter(home).find(holds));
        match entry {
            Some(entry) => _ = entry.number.fetch_sub(1, Relaxed),
            None => {
                let less = |n: u32| n.checked_sub(1);
                _ = self.strays.fetch_update(Relaxed, Relaxed, less);
            }
        }
    }

    /// How many are held. Under both locks.
    pub(crate) fn total(&self, space: &impl Space) -> u64 {
        let held = self.holders.iter(space);
        let held: u64 = held.map(|slot| slot.number.load(Relaxed)).sum();
        held + u64::from(self.strays.load(Relaxed))
    }

    /// Drops the entries of the dead; says whether there were any. Under both locks.
    pub(crate) fn bury(&self, home: &(impl Members + Space)) -> bool {
        let mut found = false;
        for slot in self.holders.iter(home).filter(|slot| is_dead(slot, home)) {
            slot.number.store(0, Relaxed);
            crash_point!("holdings.burying");
            slot.free();
            found = true;
        }
        found
    }

    /// What `from` holds is this process's from now on. Under both locks.
    pub(crate) fn inherit(&self, from: MemberId, home: &(impl Members + Space)) {
        let mut held = self.holders.iter(home);
        if let Some(slot) = held.find(|slot| slot.owner() == Some(from)) {
            slot.give_to(home.me());
        }
    }

    /// Whether a dead process holds something. Without a lock; a look at each holder's life.
    pub(crate) fn any_dead(&self, home: &(impl Members + Space)) -> bool {
        self.holders.iter(home).any(|slot| is_dead(slot, home))
    }

    /// Gives back what lies outside of the object. Nobody may use it any more.
    pub(crate) fn reclaim(&self, space: &impl Space) {
        self.holders.reclaim(space);
    }

    /// This process's entry, if need be a new one.
    pub(super) fn my_entry<'a>(&'a self, home: &'a (impl Members + Space)) -> Option<&'a Slot> {
        let me = home.claimant();
        let mut unused = None;
        for slot in self.holders.iter(home) {
            match slot.owner() {
                Some(owner) if owner == me => return Some(slot),
                owner if slot.number.load(Relaxed) == 0 => unused = unused.or(Some((slot, owner))),
                _ => {}
            }
        }
        // An entry of nothing says nothing, so it may be anybody's.
        match unused {
            Some((slot, owner)) if slot.claim_from(owner.map_or(0, |o| o.get()), me) => Some(slot),
            // All are in use, and by the living, as far as anybody looked.
            _ => self.holders.claim_new(home),
        }
    }
}

fn is_dead(slot: &Slot, members: &impl Members) -> bool {
    slot.number.load(Relaxed) > 0 && slot.owner().is_some_and(|owner| !members.is_alive(owner))
}

//! The member table: which processes the family has, and who is alive.
//!
//! A slot goes round `Free -> Reserved -> Live -> Reaping -> Free`, and counts its rounds. A
//! [`MemberId`] is a slot and its round, so the id of a process that was reaped never becomes that
//! of another one.
//!
//! | state | meaning | left by |
//! | --- | --- | --- |
//! | Free | nobody's | reservation (a CAS) |
//! | Reserved | for a child that is being started; references may already be booked on it | the child's adoption, or the reaper |
//! | Live | the process `pid`, which ran at the time `seen` | the reaper, once that process is dead |
//! | Reaping | member `reaper` gives back what it held; if the reaper dies, another one goes on | the reaper |

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::layout::{MEMBERS, Slot};
use super::{Arena, refs};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::os::life;
use crate::sync::owner::MemberId;

/// A reserved slot that no child has taken after so many seconds belongs to a fork that failed.
const LEASE: u64 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Free = 0,
    Reserved = 1,
    Live = 2,
    Reaping = 3,
}

/// A slot's state word: its round (19 bits) and its phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlotState {
    pub(super) round: u32,
    pub(super) phase: Phase,
}

const ROUNDS: u32 = 1 << 19;

/// The member in slot `index` in its round `round`, which is never 0 for a slot that is taken.
fn id_of(index: usize, round: u32) -> MemberId {
    let bits = round.max(1) << 12 | index as u32;
    MemberId::new(bits & MemberId::MASK).unwrap_or(FIRST)
}

const FIRST: MemberId = match MemberId::new(1 << 12) {
    Some(id) => id,
    None => panic!("a constant that is not 0"),
};

fn index_of(id: MemberId) -> usize {
    id.get() as usize % MEMBERS
}

fn round_of(id: MemberId) -> u32 {
    id.get() >> 12
}

impl SlotState {
    fn word(self) -> u32 {
        self.round << 2 | self.phase as u32
    }

    fn of(word: u32) -> Self {
        let phase = match word & 3 {
            0 => Phase::Free,
            1 => Phase::Reserved,
            2 => Phase::Live,
            _ => Phase::Reaping,
        };
        Self {
            round: (word >> 2) % ROUNDS,
            phase,
        }
    }

    fn with(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }
}

impl Slot {
    pub(super) fn load(&self) -> SlotState {
        // SYNC: pairs with the Release in `change`.
        SlotState::of(self.state.load(Acquire))
    }

    fn change(&self, from: SlotState, to: SlotState) -> bool {
        // SYNC: pairs with the Acquire in `load`.
        self.state
            .compare_exchange(from.word(), to.word(), AcqRel, Relaxed)
            .is_ok()
    }
}

impl Arena {
    pub(super) fn slot_of(&self, id: MemberId) -> &Slot {
        &self.slots()[index_of(id)]
    }

    /// Takes a free slot for a child that is about to be started.
    pub(super) fn reserve(&self) -> Result<MemberId> {
        let header = self.header();
        let start = header.slot_hint.load(Relaxed) as usize;
        for pass in 0..2 {
            for i in 0..MEMBERS {
                let index = (start + i) % MEMBERS;
                let slot = &self.slots()[index];
                let state = slot.load();
                if state.phase != Phase::Free {
                    // The second time round, dead members make room.
                    if pass == 1 || self.lease_is_over(slot, state) {
                        self.reap_slot(index);
                    }
                    continue;
                }
                let round = state.round % (ROUNDS - 1) + 1;
                let taken = SlotState {
                    round,
                    phase: Phase::Reserved,
                };
                if slot.change(state, taken) {
                    slot.since.store(life::seconds(), Relaxed);
                    slot.creator.store(self.me_or_zero(), Relaxed);
                    header
                        .slot_hint
                        .store(((index + 1) % MEMBERS) as u32, Relaxed);
                    return Ok(id_of(index, round));
                }
            }
        }
        Err(Error::new(
            Kind::Full,
            format!("the family already has {MEMBERS} processes, the most that one arena serves"),
        ))
    }

    fn lease_is_over(&self, slot: &Slot, state: SlotState) -> bool {
        state.phase == Phase::Reserved
            && slot.creator.load(Relaxed) == self.me_or_zero()
            && life::seconds().saturating_sub(slot.since.load(Relaxed)) > LEASE
    }

    /// Makes the calling process the member `id`, whose slot was reserved for it.
    pub(super) fn enter(&self, id: MemberId) -> Result<()> {
        if self.occupy(id) {
            self.set_me(id);
            Ok(())
        } else {
            Err(Error::new(
                Kind::Gone,
                "this process came too late: its place in the family has been given up",
            ))
        }
    }

    /// Says that it is the calling process which lives in the reserved slot of `id`; false if it is
    /// not reserved any more.
    pub(super) fn occupy(&self, id: MemberId) -> bool {
        let slot = self.slot_of(id);
        let state = slot.load();
        slot.pid.store(std::process::id(), Relaxed);
        slot.seen.store(life::ticks(), Relaxed);
        state.round == round_of(id)
            && state.phase == Phase::Reserved
            && slot.change(state, state.with(Phase::Live))
    }

    /// Whether the process behind `id` lives. A zombie is dead. Costs some system calls.
    pub fn is_alive(&self, id: MemberId) -> bool {
        if id.get() == self.me_or_zero() {
            return true;
        }
        let slot = self.slot_of(id);
        let state = slot.load();
        if state.round != round_of(id) {
            return false;
        }
        match state.phase {
            Phase::Free | Phase::Reaping => false,
            Phase::Live => {
                let (pid, seen) = (slot.pid.load(Relaxed), slot.seen.load(Relaxed));
                life::is_running(pid, seen)
            }
            Phase::Reserved => match MemberId::new(slot.creator.load(Relaxed)) {
                // The creator is a running member, not another reservation.
                Some(creator) => {
                    let state = self.slot_of(creator).load();
                    state.phase == Phase::Live && self.is_alive(creator)
                }
                // Just being reserved. Who is killed right there leaves one slot unused for ever.
                None => true,
            },
        }
    }

    /// Gives back what process `pid` held, if it was a member and is dead. True if it was reaped.
    ///
    /// Never blocks for long: the work grows with the references the process held.
    pub fn reap_pid(&self, pid: u32) -> bool {
        let reaped = (0..MEMBERS).filter(|&index| {
            let slot = &self.slots()[index];
            slot.pid.load(Relaxed) == pid
                && slot.load().phase == Phase::Live
                && self.reap_slot(index)
        });
        // All of them: it may have had surrogates.
        reaped.count() > 0
    }

    /// Gives up the slot of a child that never came to life, or that is dead.
    pub fn cancel(&self, id: MemberId) -> bool {
        let slot = self.slot_of(id);
        let state = slot.load();
        if state.round != round_of(id) {
            return false;
        }
        if state.phase == Phase::Reserved {
            // The child is known not to exist: it needs no proof of death.
            return self.claim_and_reap(slot, state);
        }
        self.reap_slot(index_of(id))
    }

    /// Gives up the place `before` of this process, which has another one.
    pub(super) fn leave(&self, before: MemberId) {
        let slot = self.slot_of(before);
        let state = slot.load();
        if state.round == round_of(before) && state.phase == Phase::Live {
            self.claim_and_reap(slot, state);
        }
    }

    /// Reaps all dead members; returns how many.
    pub fn reap_all(&self) -> usize {
        (0..MEMBERS).filter(|&i| self.reap_slot(i)).count()
    }

    fn reap_slot(&self, index: usize) -> bool {
        let slot = &self.slots()[index];
        let state = slot.load();
        let id = id_of(index, state.round);
        if id.get() == self.me_or_zero() {
            return false;
        }
        match state.phase {
            Phase::Free => false,
            Phase::Live => !self.is_alive(id) && self.claim_and_reap(slot, state),
            Phase::Reserved => {
                (self.lease_is_over(slot, state) || !self.is_alive(id))
                    && self.claim_and_reap(slot, state)
            }
            Phase::Reaping => {
                // The reaper itself may have died: then its work is taken over.
                let reaper = slot.reaper.load(Relaxed);
                let dead = MemberId::new(reaper).is_none_or(|r| !self.is_alive(r));
                dead && slot
                    .reaper
                    .compare_exchange(reaper, self.me_or_zero(), AcqRel, Relaxed)
                    .is_ok()
                    && self.finish_reaping(slot, state)
            }
        }
    }

    fn claim_and_reap(&self, slot: &Slot, state: SlotState) -> bool {
        // A reaper that dies between these two lines leaves reaper = itself, dead: taken over.
        slot.reaper.store(self.me_or_zero(), Relaxed);
        crash_point!("reap.announced");
        let reaping = state.with(Phase::Reaping);
        slot.change(state, reaping) && self.finish_reaping(slot, reaping)
    }

    /// Each step may be repeated by a second reaper after the first was killed.
    fn finish_reaping(&self, slot: &Slot, state: SlotState) -> bool {
        let index = (std::ptr::from_ref(slot) as usize - self.slots().as_ptr() as usize)
            / size_of::<Slot>();
        crash_point!("reap.begun");
        refs::release_table(self, slot);
        crash_point!("reap.table_released");
        self.free_owned_by(id_of(index, state.round));
        crash_point!("reap.buffers_freed");
        self.tell_of_death();
        crash_point!("reap.told");
        slot.pid.store(0, Relaxed);
        slot.seen.store(0, Relaxed);
        slot.creator.store(0, Relaxed);
        slot.change(state, state.with(Phase::Free))
    }

    /// The pids of the members that are alive, this process included.
    pub fn member_pids(&self) -> Vec<u32> {
        self.slots()
            .iter()
            .filter(|s| s.load().phase == Phase::Live)
            .map(|s| s.pid.load(Relaxed))
            .filter(|&pid| life::is_running(pid, 0))
            .collect()
    }

    /// Each living member with the member that started it, as pids: also where another process, a
    /// zygote, is its parent for the system.
    pub(crate) fn kinship(&self) -> Vec<(u32, u32)> {
        let parent = |slot: &Slot| {
            let creator = MemberId::new(slot.creator.load(Relaxed))?;
            self.pid_of(creator)
        };
        self.slots()
            .iter()
            .filter(|slot| slot.load().phase == Phase::Live)
            .filter_map(|slot| Some((slot.pid.load(Relaxed), parent(slot)?)))
            .filter(|(child, parent)| child != parent)
            .collect()
    }

    pub(super) fn pid_of(&self, id: MemberId) -> Option<u32> {
        let slot = self.slot_of(id);
        let state = slot.load();
        (state.round == round_of(id) && state.phase == Phase::Live).then(|| slot.pid.load(Relaxed))
    }

    /// Takes the first reservation of the creator of the arena.
    pub(super) fn enter_first(&self) -> Result<()> {
        let id = self.reserve()?;
        // SYNC: pairs with the Acquire in `Slot::load`; nobody else knows the arena yet.
        self.slot_of(id).creator.store(id.get(), Release);
        self.enter(id)
    }
}

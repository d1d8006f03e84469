//! The primitives as objects of the arena, and the arena as the place for their further slots.

use super::slots::{Part, Space};
use super::{Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};
use crate::arena::{Arena, Shareable, kind};

impl Space for Arena {
    fn new_part(&self) -> Option<u64> {
        let at = self
            .alloc_zeroed(kind::PART, size_of::<Part>() as u64)
            .ok()?;
        // It is the object's, and must outlive this process.
        self.set_owner(at, None);
        Some(at)
    }

    fn part(&self, at: u64) -> Option<&Part> {
        let (part, len) = self.part(at, kind::PART).ok()?;
        // SAFETY: a block of this kind, checked to be inside the arena and large enough; payloads
        // are aligned to 64; a part is atomics only, for which any bytes will do. It is freed only
        // when its object goes, which whoever asks for the part holds.
        (len >= size_of::<Part>() as u64).then(|| unsafe { &*part.cast::<Part>() })
    }

    fn free_part(&self, at: u64) {
        self.free(at, kind::PART);
    }
}

macro_rules! shareable {
    ($($kind:literal $name:ident $reclaim:expr $(, $peer_died:expr)?;)*) => {$(
        // SAFETY: `repr(C)` or transparent, atomics only, no address, no `Drop`. Its module's
        // docs say what a death at each step leaves behind.
        unsafe impl Shareable for $name {
            const KIND: u32 = $kind;
            const NAME: &'static str = stringify!($name);

            fn reclaim(&self, arena: &Arena) {
                let reclaim: fn(&Self, &Arena) = $reclaim;
                reclaim(self, arena);
            }
            $(
                const MINDS_DEATHS: bool = true;

                fn peer_died(&self, arena: &Arena) {
                    let peer_died: fn(&Self, &Arena) = $peer_died;
                    peer_died(self, arena);
                }
            )?
        }
    )*};
}

// Who sleeps without slices is woken by the reaper, if the one who died owed it a wake-up; the
// sleepers of locks and semaphores look once a slice. What the dead held or waited for is seen to
// also where nobody sleeps.
shareable! {
    16 Lock |_, _| {};
    17 RLock |_, _| {};
    18 Semaphore |_, _| {};
    19 BoundedSemaphore |object, arena| object.reclaim(arena), |object, arena| object.peer_died(arena);
    20 Condition |object, arena| object.reclaim(arena), |object, arena| object.peer_died(arena);
    21 Event |_, _| {}, |object, _| object.peer_died();
    22 Barrier |object, arena| object.reclaim(arena), |object, arena| object.peer_died(arena);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Shared;
    use crate::sync::Members;

    #[test]
    fn further_slots_come_from_the_arena_and_go_back() {
        let condition = Shared::create(Condition::new()).unwrap();
        let arena = condition.arena();
        let waiters: Vec<_> = (0..100).map(|_| condition.enlist(arena).unwrap()).collect();
        assert_eq!(condition.waiters(arena), 100);
        assert_eq!(condition.notify(10, arena), 10);
        assert_eq!(
            waiters
                .into_iter()
                .filter_map(|w| w.leave().then_some(()))
                .count(),
            10
        );
        assert!(arena.is_alive(arena.me()));
    }
}

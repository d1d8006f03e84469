//! Giving back the pages of large free blocks that nobody has used for a while.
//!
//! The system takes some 0.1 s for the pages of one GiB, and nobody who wants a block of that size
//! waits for that: the blocks leave their free list first, a few at a time. (Beside a process that
//! gave 900 MB back, another one's messages of 15 MiB took up to 280 ms with the list locked
//! meanwhile; now up to 40.)
//!
//! | step | a block, if we are killed after it |
//! | --- | --- |
//! | off the list | is lost, one block |
//! | of kind `COOLING`, ours | is put back by whoever reaps us, as a warm one |
//! | its pages are gone | the same |
//! | of kind `FREE` again | is lost, one block |
//! | at the end of the list | is there |

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::alloc::{Offset, saturating_sub};
use super::layout::{self, Block, LARGE};
use super::{Arena, kind};
use crate::fault::crash_point;
use crate::os::life;
use crate::os::memory::{self, PAGE};

/// So many seconds after it was freed a large block is stale.
const STALE: u64 = 10;
/// Bytes given back in one go: some milliseconds of work.
const SWEEP: u64 = 32 * 1024 * 1024;

impl Arena {
    /// Gives the pages of all large free blocks back to the system.
    pub fn trim(&self) {
        self.cool(u64::MAX, u64::MAX);
    }

    /// Gives back what nobody has used for a while, `now` seconds after the clock's beginning: at
    /// most once a second, and not much at a time.
    ///
    /// There is no thread that would do so in an idle program: who allocates does.
    pub(super) fn sweep(&self, now: u64) {
        let header = self.header();
        let last = header.swept.load(Relaxed);
        let claim = || {
            header
                .swept
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_ok()
        };
        if now > last && header.warm.load(Relaxed) > 0 && claim() {
            self.cool(now.saturating_sub(STALE), SWEEP);
        }
    }

    /// Gives the pages of large free blocks back that were freed by the second `until`, up to the
    /// block with which they come to `most` bytes.
    fn cool(&self, until: u64, most: u64) {
        // No more than there is now: others may go on freeing.
        let mut left = most.min(self.header().warm.load(Relaxed));
        for class in 0..layout::CLASSES {
            let size = layout::class_size(class);
            if size < LARGE {
                continue;
            }
            while left > 0 {
                let taken = self.take_warm(class, until, left.min(SWEEP));
                if taken.is_empty() {
                    break;
                }
                left = left.saturating_sub(size.saturating_mul(taken.len() as u64));
                let mut all = true;
                for &offset in &taken {
                    all &= self.discard(offset, size);
                    crash_point!("cool.discarded");
                }
                self.put_last(class, &taken);
                if !all {
                    // The system refuses, and would do so again.
                    return;
                }
            }
        }
    }

    /// Takes free blocks off their list that were freed by the second `until` and have their pages,
    /// up to the one with which they come to `most` bytes. They are this member's, to be given to
    /// [`put_last`](Self::put_last).
    pub(super) fn take_warm(&self, class: usize, until: u64, most: u64) -> Vec<Offset> {
        let size = layout::class_size(class);
        let list = &self.header().classes[class];
        let (mut taken, mut bytes) = (Vec::new(), 0);
        if list.head.load(Relaxed) == 0 {
            return taken;
        }
        let _guard = list.lock.guard(self);
        let mut link = &list.head;
        for _ in 0..self.most_links() {
            let offset = link.load(Acquire);
            let Ok(block) = self.free_block(offset, class) else {
                break;
            };
            if block.cold.load(Relaxed) != 0 || block.freed.load(Relaxed) > until {
                link = &block.next;
                continue;
            }
            link.store(block.next.load(Relaxed), Release);
            crash_point!("cool.unlinked");
            saturating_sub(&self.header().warm, size);
            block.owner.store(self.me_or_zero(), Relaxed);
            // SYNC: pairs with the Acquire in `free_owned_by`.
            block.kind.store(kind::COOLING, Release);
            crash_point!("cool.taken");
            taken.push(offset);
            bytes += size;
            if bytes >= most {
                break;
            }
        }
        taken
    }

    /// Gives the pages of a block back that nobody else sees; whether the system took them.
    fn discard(&self, offset: Offset, size: u64) -> bool {
        let cold = memory::discard(self.fd(), offset + PAGE as u64, size - PAGE as u64);
        if let Ok(block) = self.block(offset) {
            block.cold.store(u32::from(cold), Relaxed);
        }
        if !cold {
            self.header().warm.fetch_add(size, Relaxed);
        }
        cold
    }

    /// Puts blocks at the end of their free list: those before them have their pages and are better
    /// to have.
    pub(super) fn put_last(&self, class: usize, blocks: &[Offset]) {
        let list = &self.header().classes[class];
        let _guard = list.lock.guard(self);
        let mut link = &list.head;
        for _ in 0..self.most_links() {
            let Ok(block) = self.free_block(link.load(Acquire), class) else {
                break;
            };
            link = &block.next;
        }
        for &offset in blocks {
            let Ok(block) = self.block(offset) else {
                continue;
            };
            block.owner.store(0, Relaxed);
            block.next.store(0, Relaxed);
            // SYNC: pairs with the Acquire in `check`.
            block.kind.store(kind::FREE, Release);
            crash_point!("cool.unlisted");
            link.store(offset, Release);
            link = &block.next;
        }
    }

    /// Puts a block back whose pages a member was giving back when it died.
    pub(super) fn warm_again(&self, offset: Offset, block: &Block) {
        let class = block.class.load(Relaxed) as usize % layout::CLASSES;
        block.cold.store(0, Relaxed);
        block.freed.store(life::seconds(), Relaxed);
        self.header()
            .warm
            .fetch_add(layout::class_size(class), Relaxed);
        self.put_last(class, &[offset]);
    }
}

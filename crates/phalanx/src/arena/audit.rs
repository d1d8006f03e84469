//! Walking the heap: what is in use, and by whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::layout::{self, BLOCK_HEADER, HEAP, LARGE};
use super::{Arena, alloc::Offset, kind};
use crate::sync::owner::MemberId;

/// What the blocks in use add up to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in use, by kind: how many and their bytes.
    pub kinds: BTreeMap<u32, (u64, u64)>,
    /// The same by the member that allocated them; `None` for blocks in transit.
    pub members: BTreeMap<Option<u32>, (u64, u64)>,
}

impl Usage {
    /// Blocks in use.
    pub fn blocks(&self) -> u64 {
        self.kinds.values().map(|v| v.0).sum()
    }

    /// Bytes in use, headers and rounding included.
    pub fn bytes(&self) -> u64 {
        self.kinds.values().map(|v| v.1).sum()
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes are in use", self.bytes())?;
        let mut members: Vec<_> = self.members.iter().collect();
        members.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
        for (pid, (blocks, bytes)) in members.iter().take(4) {
            match pid {
                Some(pid) => write!(
                    f,
                    ", {bytes} of them in {blocks} blocks made by process {pid}"
                )?,
                None => write!(
                    f,
                    ", {bytes} in {blocks} blocks of messages not yet received"
                )?,
            }
        }
        Ok(())
    }
}

impl Arena {
    /// The chunks of the heap: offset and size.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (Offset, u64)> + '_ {
        let mut at = HEAP;
        std::iter::from_fn(move || {
            // SYNC: pairs with the Release in `fresh`.
            if at >= self.header().top.load(Acquire) {
                return None;
            }
            let size = self.block(at).ok()?.size.load(Relaxed);
            let here = at;
            at = at.checked_add(size.max(BLOCK_HEADER))?;
            Some((here, size))
        })
    }

    /// Counts all blocks in use. Takes no lock; exact only while nobody else allocates.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (chunk, size) in self.chunks() {
            let Ok(head) = self.block(chunk) else { break };
            let class = head.class.load(Relaxed) as usize % layout::CLASSES;
            if layout::class_size(class) >= LARGE {
                self.count(chunk, class, &mut usage);
                continue;
            }
            let step = layout::class_size(class);
            let mut at = chunk + BLOCK_HEADER;
            while at + step <= chunk + size && self.block(at).is_ok() {
                self.count(at, class, &mut usage);
                at += step;
            }
        }
        usage
    }

    fn count(&self, offset: Offset, class: usize, usage: &mut Usage) {
        let Ok(block) = self.block(offset) else {
            return;
        };
        let what = block.kind.load(Acquire);
        if what == kind::FREE {
            return;
        }
        let size = layout::class_size(class);
        let pid = MemberId::new(block.owner.load(Relaxed)).and_then(|id| self.pid_of(id));
        for entry in [
            usage.kinds.entry(what).or_default(),
            usage.members.entry(pid).or_default(),
        ] {
            entry.0 += 1;
            entry.1 += size;
        }
    }
}

//! Walking the heap: what is in use, and by whom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::layout::{self, BLOCK_HEADER, HEAP, LARGE};
use super::{Arena, alloc::Offset, kind};
use crate::sync::owner::MemberId;

/// What the blocks in use add up to, and those whose pages somebody is giving back just now.
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
            if at >= self.top() {
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
        for (offset, size) in self.used_blocks() {
            let Ok(block) = self.block(offset) else {
                continue;
            };
            let what = block.kind.load(Acquire);
            let pid = MemberId::new(block.owner.load(Relaxed)).and_then(|id| self.pid_of(id));
            for entry in [
                usage.kinds.entry(what).or_default(),
                usage.members.entry(pid).or_default(),
            ] {
                entry.0 += 1;
                entry.1 += size;
            }
        }
        usage
    }

    /// The blocks that are in use: offset and size, header included.
    pub(super) fn used_blocks(&self) -> impl Iterator<Item = (Offset, u64)> + '_ {
        self.chunks()
            .flat_map(move |(chunk, size)| {
                let class = self.block(chunk).map_or(0, |b| b.class.load(Relaxed)) as usize;
                let step = layout::class_size(class % layout::CLASSES);
                let (first, end) = match step {
                    LARGE.. => (chunk, chunk + step),
                    _ => (chunk + BLOCK_HEADER, chunk + size),
                };
                (0u64..)
                    .map(move |i| (first + i * step, step))
                    .take_while(move |&(at, step)| at + step <= end && self.block(at).is_ok())
            })
            .filter(move |&(at, _)| {
                self.block(at)
                    .is_ok_and(|b| b.kind.load(Acquire) != kind::FREE)
            })
    }
}

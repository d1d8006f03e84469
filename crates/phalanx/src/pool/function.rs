//! What many tasks have in common, put into the arena once: a serialized function.

use crate::arena::{Arena, Handle, Shareable, Shared, kind};
use crate::error::{Error, Result};

/// The shared part of a [`Function`].
#[repr(C)]
#[derive(Debug)]
pub struct FunctionCore {
    /// The block of the bytes; constant.
    at: u64,
    hash: u64,
}

// SAFETY: repr(C), constants only, no address, no `Drop`.
unsafe impl Shareable for FunctionCore {
    const KIND: u32 = 49;
    const NAME: &'static str = "Function";

    fn reclaim(&self, arena: &Arena) {
        arena.free(self.at, kind::PART);
    }
}

/// The bytes of a function, or of whatever goes along with many tasks.
///
/// Tasks name it by its [`FunctionKey`]; a worker fetches it when it first meets that key. It is
/// there as long as somebody holds it, so the parent holds it while such tasks are due.
#[derive(Clone, Debug)]
pub struct Function {
    core: Shared<FunctionCore>,
}

/// The name of a function: never that of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionKey {
    /// Where it lies, and in which life of that block.
    pub handle: u64,
    /// Of its contents.
    pub hash: u64,
}

impl FunctionKey {
    /// Bytes of a key in a task's head.
    pub const SIZE: usize = 16;

    /// The key as bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        (u128::from(self.handle) << 64 | u128::from(self.hash)).to_ne_bytes()
    }

    /// The key that [`FunctionKey::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let both = u128::from_ne_bytes(bytes);
        Self {
            handle: (both >> 64) as u64,
            hash: both as u64,
        }
    }
}

impl Function {
    /// Puts the bytes of `parts`, one after the other, into the arena.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new(arena: &'static Arena, parts: &[&[u8]]) -> Result<Self> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let at = arena.alloc(kind::PART, len as u64)?;
        // It belongs to the object, not to this process.
        arena.set_owner(at, None);
        let hash = hash_of(parts);
        let filled = arena.payload(at).map(|mut to| {
            for part in parts {
                // SAFETY: the block has room for all parts together, and nobody else knows it.
                unsafe {
                    to.copy_from_nonoverlapping(part.as_ptr(), part.len());
                    to = to.add(part.len());
                }
            }
        });
        let shared = filled.and_then(|()| Shared::create(FunctionCore { at, hash }));
        match shared {
            Ok(core) => Ok(Self { core }),
            Err(error) => {
                arena.free(at, kind::PART);
                Err(error)
            }
        }
    }

    /// The function that a task of the same family names.
    ///
    /// # Errors
    /// `is_gone` if nobody holds it any more, `is_foreign`, `is_corrupt`.
    pub fn fetch(family: u64, key: FunctionKey) -> Result<Self> {
        let core = Shared::<FunctionCore>::attach(family, Handle::from_bits(key.handle))?;
        if core.hash != key.hash {
            return Err(Error::corrupt("a task names another function"));
        }
        Ok(Self { core })
    }

    /// What tasks name it by.
    pub fn key(&self) -> FunctionKey {
        FunctionKey {
            handle: self.core.handle().bits(),
            hash: self.core.hash,
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn bytes(&self) -> Result<&[u8]> {
        let (start, len) = self.core.arena().part(self.core.at, kind::PART)?;
        // SAFETY: `part` checked that the block has so many bytes; they are not written any more,
        // and freed only when the last reference goes.
        Ok(unsafe { std::slice::from_raw_parts(start, len as usize) })
    }

    /// Whether its bytes are those of `parts`.
    pub fn is(&self, parts: &[&[u8]]) -> bool {
        let Ok(mut rest) = self.bytes() else {
            return false;
        };
        if self.core.hash != hash_of(parts) {
            return false;
        }
        parts
            .iter()
            .all(|part| match rest.split_at_checked(part.len()) {
                Some((start, after)) => {
                    rest = after;
                    start == *part
                }
                None => false,
            })
            && rest.is_empty()
    }
}

/// A quick hash: it only spares comparisons, so nothing depends on its strength.
fn hash_of(parts: &[&[u8]]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let wide = u128::from(hash ^ word) * u128::from(K);
        (wide >> 64) as u64 ^ wide as u64 ^ word.rotate_left(32)
    };
    let mut hash = K;
    for part in parts {
        let mut words = part.chunks_exact(8);
        for word in &mut words {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            hash = mix(hash, word);
        }
        let rest = words.remainder();
        let tail = rest.iter().fold(1u64, |tail, &b| tail << 8 | u64::from(b));
        hash = mix(hash, tail);
    }
    hash
}

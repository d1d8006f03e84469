//! What is put into a log, and what is taken out.

use crate::arena::{Arena, Buffer, MIN_BUFFER, buffer};
use crate::error::{Error, Kind, Result};

use super::segment::RecordHead;

/// Payloads up to this size travel inside the segment, longer ones in a buffer of their own.
pub const INLINE: usize = MIN_BUFFER;

/// The message's bytes are in its last buffer, not in the record.
pub(super) const IN_BUFFER: u16 = 1 << 15;

/// A message ready to be put, whose bytes are `parts` one after the other.
///
/// What is large has been copied into the arena already. May be tried as often as it takes; what
/// was not put is freed with it.
#[derive(Debug)]
pub struct Letter<'a> {
    pub(super) arena: &'static Arena,
    pub(super) head: RecordHead,
    /// What goes into the segment.
    pub(super) parts: &'a [&'a [u8]],
    pub(super) handles: Vec<u64>,
}

impl<'a> Letter<'a> {
    /// A message of `parts` and `buffers`, with 15 bits of `tag` for the receiver.
    ///
    /// # Errors
    /// `is_arena_full`; `is_too_large` for more than 65,534 buffers.
    #[inline]
    pub fn new(
        arena: &'static Arena,
        parts: &'a [&'a [u8]],
        tag: u16,
        buffers: Vec<Buffer>,
    ) -> Result<Self> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let mut letter = Self {
            arena,
            head: RecordHead {
                len: len as u32,
                buffers: 0,
                tag: tag & !IN_BUFFER,
            },
            parts,
            handles: Vec::new(),
        };
        if len > INLINE || !buffers.is_empty() {
            letter.enclose(len, buffers)?;
        }
        Ok(letter)
    }

    #[cold]
    fn enclose(&mut self, len: usize, buffers: Vec<Buffer>) -> Result<()> {
        if buffers.len() + 1 >= usize::from(u16::MAX) {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "a message of {} buffers; it may bring at most 65,534",
                    buffers.len()
                ),
            ));
        }
        for buffer in buffers {
            self.handles.push(buffer.send()?);
        }
        if len > INLINE {
            self.handles
                .push(gather(self.arena, self.parts, len)?.send()?);
            self.head.len = 0;
            self.head.tag |= IN_BUFFER;
            self.parts = &[];
        }
        self.head.buffers = self.handles.len() as u16;
        Ok(())
    }
}

impl Drop for Letter<'_> {
    fn drop(&mut self) {
        for &bits in &self.handles {
            buffer::discard(self.arena, bits);
        }
    }
}

/// Bytes of a message's buffers.
pub(super) fn weight(arena: &Arena, handles: &[u64]) -> u64 {
    handles.iter().fold(0, |sum: u64, &bits| {
        sum.wrapping_add(buffer::len(arena, bits))
    })
}

fn gather(arena: &'static Arena, parts: &[&[u8]], len: usize) -> Result<Buffer> {
    let mut whole = Buffer::new(arena, len)?;
    let mut at = 0;
    for part in parts {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Ok(whole)
}

/// A message taken from a log.
#[derive(Debug)]
pub struct Message {
    /// How many messages were put before this one.
    pub number: u64,
    /// What the sender said about the bytes: 15 bits.
    pub tag: u16,
    /// The bytes that went along in buffers of their own, in order.
    pub buffers: Vec<Buffer>,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    Inline(Vec<u8>),
    Buffer(Buffer),
}

impl Message {
    /// The message's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.payload {
            Payload::Inline(bytes) => bytes,
            Payload::Buffer(buffer) => buffer,
        }
    }

    /// Whether the bytes came in the log itself, not in a buffer of their own.
    pub fn is_inline(&self) -> bool {
        matches!(self.payload, Payload::Inline(_))
    }

    /// The buffer that the bytes came in, if they did.
    pub fn into_buffer(self) -> Option<Buffer> {
        match self.payload {
            Payload::Inline(_) => None,
            Payload::Buffer(buffer) => Some(buffer),
        }
    }

    /// The message's bytes as a vector; copied only if they came in a buffer.
    pub fn into_vec(self) -> Vec<u8> {
        match self.payload {
            Payload::Inline(bytes) => bytes,
            Payload::Buffer(buffer) => buffer.to_vec(),
        }
    }
}

/// What [`Log::pop_into`] says about the message whose bytes it copied.
#[derive(Debug)]
pub struct Taken {
    /// How many messages were put before this one.
    pub number: u64,
    pub(super) tag: u16,
    pub(super) handles: Vec<u64>,
}

impl Taken {
    /// What the sender said about the bytes.
    pub fn tag(&self) -> u16 {
        self.tag & !IN_BUFFER
    }

    /// Whether all of the message is in the bytes that were copied.
    pub fn is_plain(&self) -> bool {
        self.handles.is_empty()
    }

    /// The whole message, whose inline bytes are `bytes`.
    ///
    /// # Errors
    /// `is_corrupt` if one of its buffers is not there.
    pub fn into_message(self, arena: &'static Arena, bytes: Vec<u8>) -> Result<Message> {
        let mut buffers = Vec::with_capacity(self.handles.len());
        for &bits in &self.handles {
            buffers.push(Buffer::receive(arena, bits)?);
        }
        let payload = if self.tag & IN_BUFFER != 0 {
            Payload::Buffer(
                buffers
                    .pop()
                    .ok_or_else(|| Error::corrupt("a message without its payload"))?,
            )
        } else {
            Payload::Inline(bytes)
        };
        Ok(Message {
            number: self.number,
            tag: self.tag(),
            buffers,
            payload,
        })
    }
}

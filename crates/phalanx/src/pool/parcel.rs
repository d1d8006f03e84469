//! A message with a head that always lies in the log and a body that may be large.

use crate::arena::{Arena, Buffer};
use crate::channel::message::{INLINE, Letter, Taken};
use crate::error::{Error, Result};

/// In the tag: the body is the last buffer.
const APART: u16 = 1 << 14;

/// What came with a message outside its bytes.
#[derive(Debug)]
pub struct Large {
    /// The body, if it was too large to lie in the log.
    pub body: Option<Buffer>,
    /// The buffers that the sender gave, in order.
    pub buffers: Vec<Buffer>,
}

/// Bytes beside the head that still go into the log.
const ROOM: usize = INLINE - 64;

/// Calls `send` with the letter of head, body and buffers.
pub(super) fn pack<R>(
    arena: &'static Arena,
    head: &[u8],
    body: &[u8],
    tag: u16,
    mut buffers: Vec<Buffer>,
    send: impl FnOnce(&mut Letter<'_>) -> Result<R>,
) -> Result<R> {
    let tag = tag & !APART;
    if body.len() <= ROOM {
        return send(&mut Letter::new(arena, &[head, body], tag, buffers)?);
    }
    buffers.push(Buffer::copy(arena, body)?);
    send(&mut Letter::new(arena, &[head], tag | APART, buffers)?)
}

pub(super) fn tag(taken: &Taken) -> u16 {
    taken.tag() & !APART
}

pub(super) fn unpack(arena: &'static Arena, taken: Taken) -> Result<Large> {
    let apart = taken.tag() & APART != 0;
    let mut buffers = taken.into_message(arena, Vec::new())?.buffers;
    let missing = || Error::corrupt("a pool's message without its body");
    let body = if apart {
        Some(buffers.pop().ok_or_else(missing)?)
    } else {
        None
    };
    Ok(Large { body, buffers })
}

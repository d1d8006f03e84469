//! What tasks and results look like as messages.
//!
//! A task's head is the key of its function, its body the encoded arguments; a result's body is the
//! encoded value or exception. The tag says how the body is encoded (low four bits) and what it is.

use phalanx::pool::Large;
use pyo3::prelude::*;

use crate::buffer::ReceivedBuffer;
use crate::codec;

const CODEC_BITS: u16 = 4;
const CODEC: u16 = (1 << CODEC_BITS) - 1;

/// How a task's body is passed to its function `f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tuple: `f(*body)`.
    Call,
    /// A tuple and a dict: `f(*body[0], **body[1])`.
    CallKw,
    /// Any object: `f(body)`.
    One,
    /// An iterable: `f(*body)`.
    Star,
    /// An iterable of objects: `[f(item) for item in body]`.
    Map,
    /// An iterable of iterables: `[f(*item) for item in body]`.
    StarMap,
}

impl Kind {
    /// For a call of a map that hands over so many items at once.
    pub(super) fn of_map(star: bool, chunk: usize) -> Self {
        match (star, chunk) {
            (false, 1) => Self::One,
            (true, 1) => Self::Star,
            (false, _) => Self::Map,
            (true, _) => Self::StarMap,
        }
    }

    pub(super) fn tag(self, codec: u16) -> u16 {
        (self as u16) << CODEC_BITS | codec
    }

    pub(super) fn of(tag: u16) -> Option<Self> {
        [
            Self::Call,
            Self::CallKw,
            Self::One,
            Self::Star,
            Self::Map,
            Self::StarMap,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == tag >> CODEC_BITS)
    }
}

/// What a worker delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Value,
    Error,
    /// Not of a task: the initializer raised this.
    StartError,
    /// Not of a task: the worker has done its share and is about to end.
    Leaving,
}

impl Outcome {
    pub(super) fn tag(self, codec: u16) -> u16 {
        (self as u16) << CODEC_BITS | codec
    }

    pub(super) fn of(tag: u16) -> Self {
        match tag >> CODEC_BITS {
            0 => Self::Value,
            1 => Self::Error,
            2 => Self::StartError,
            _ => Self::Leaving,
        }
    }
}

/// The object in a message's body, which is `inline` unless `large` has it.
///
/// # Errors
/// Whatever unpickling raises.
pub(super) fn decode<'py>(
    py: Python<'py>,
    tag: u16,
    inline: &[u8],
    large: Option<Large>,
) -> PyResult<Bound<'py, PyAny>> {
    let codec_tag = tag & CODEC;
    let Some(large) = large else {
        return codec::decode_plain(py, codec_tag, inline);
    };
    match large.body {
        Some(body) if codec_tag == codec::tag::PICKLE => {
            let body = Bound::new(py, ReceivedBuffer::new(body))?;
            codec::unpickle(body.as_any(), large.buffers)
        }
        Some(body) => codec::decode_parts(py, codec_tag, &body, large.buffers),
        None => codec::decode_parts(py, codec_tag, inline, large.buffers),
    }
}

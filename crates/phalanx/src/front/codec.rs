//! Values as bytes. Both sides are the same program, so the format says nothing about types.

use std::cell::{Cell, RefCell};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arena::Arena;
use crate::channel::Taken;
use crate::error::{Error, Kind, Result};

/// What a message holds, for error messages.
fn name<T>() -> &'static str {
    std::any::type_name::<T>()
}

thread_local! {
    /// Space that is used for one message after the other.
    static SPACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Why a handle inside a value could not be written or read: the format has no room for it.
    static REASON: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// More than this is not kept for the next message. Fresh memory costs more than all copying: when
/// only 64 KiB were kept, a message of 1 MiB took 970 µs instead of 80.
const KEPT: usize = 1 << 22;

/// Keeps `error` as the reason for what the codec is about to report.
pub(crate) fn because(error: Error) -> String {
    let text = error.to_string();
    REASON.set(Some(error));
    text
}

/// The bytes of `value`, for as long as `use_bytes` runs.
///
/// # Errors
/// `is_unsupported` if the type cannot be written, and what `use_bytes` returns.
pub(crate) fn with_encoded<T: Serialize, R>(
    value: &T,
    use_bytes: impl FnOnce(&[u8]) -> Result<R>,
) -> Result<R> {
    let bytes = encode(value)?;
    let result = use_bytes(&bytes);
    keep(bytes);
    result
}

/// The value of the message that `take` copies over the bytes it is given, if there is one.
///
/// # Errors
/// What `take` says, and as [`decode`].
pub(crate) fn receive<T: DeserializeOwned>(
    arena: &'static Arena,
    take: impl FnOnce(&mut Vec<u8>) -> Result<Option<Taken>>,
) -> Result<Option<T>> {
    let mut bytes = SPACE.take();
    let value = match take(&mut bytes)? {
        None => Ok(None),
        Some(taken) if taken.is_plain() => decode(&bytes).map(Some),
        // Its bytes are in a buffer: this front sends none beside them.
        Some(taken) => taken
            .into_message(arena, Vec::new())
            .and_then(|message| decode(message.bytes()).map(Some)),
    };
    keep(bytes);
    value
}

/// Keeps the space of `bytes` for the next message of this thread.
pub(crate) fn keep(bytes: Vec<u8>) {
    if bytes.capacity() <= KEPT {
        SPACE.set(bytes);
    }
}

/// The bytes of `value`, whose space may be [kept](keep) after use.
///
/// # Errors
/// `is_unsupported` if the type cannot be written; what a handle in it says.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    // A value that puts into a queue while it is serialized finds none and takes new space.
    let mut space = SPACE.take();
    space.clear();
    REASON.set(None);
    postcard::serialize_with_flavor(value, Growing(space))
        .map_err(|e| failed("written", name::<T>(), &e))
}

/// The value that `bytes` are of.
///
/// # Errors
/// As [`decode_first`]; `is_corrupt` if there is more than one value.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let (value, rest) = decode_first(bytes)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(Error::corrupt(format!("a {} with bytes left", name::<T>())))
    }
}

/// The value that `bytes` begin with, and the rest.
///
/// # Errors
/// `is_unsupported` if the type cannot be read, `is_invalid` if the bytes are of something else,
/// and what a handle among them says: `is_foreign`, `is_gone`.
pub(crate) fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8])> {
    REASON.set(None);
    postcard::take_from_bytes(bytes).map_err(|e| failed("read", name::<T>(), &e))
}

#[cold]
fn failed(done: &str, what: &str, error: &postcard::Error) -> Error {
    if let Some(reason) = REASON.take() {
        return reason;
    }
    match error {
        postcard::Error::WontImplement | postcard::Error::NotYetImplemented => Error::new(
            Kind::Unsupported,
            format!(
                "{what} cannot be {done}: values travel without their types, so what looks at the \
                 data to learn its type (untagged enums, flattened fields, values of any type) \
                 cannot go to another process; turn it into a string first"
            ),
        ),
        postcard::Error::SerializeSeqLengthUnknown => Error::new(
            Kind::Unsupported,
            format!("{what} cannot be {done}: it has a sequence of unknown length"),
        ),
        _ => Error::new(
            Kind::Invalid,
            format!("{what} cannot be {done}: its serde implementation failed ({error})"),
        ),
    }
}

/// Appends to a vector.
struct Growing(Vec<u8>);

impl postcard::ser_flavors::Flavor for Growing {
    type Output = Vec<u8>;

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[test]
    fn values_come_back_equal() {
        let value = (
            1u8,
            "two".to_owned(),
            vec![Some(3.5), None],
            BTreeMap::from([(4, 'x')]),
        );
        assert_eq!(
            decode::<(u8, String, Vec<Option<f64>>, BTreeMap<i32, char>)>(&encode(&value).unwrap())
                .unwrap(),
            value
        );
        with_encoded(&value, |outer| {
            with_encoded(&7u32, |inner| {
                assert_eq!(decode::<u32>(inner).unwrap(), 7);
                Ok(())
            })?;
            assert_eq!(outer, encode(&value).unwrap());
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_is_no_such_value_is_refused() {
        assert!(decode::<String>(&[200]).unwrap_err().is_invalid());
        assert!(decode::<u8>(&[1, 2]).unwrap_err().is_corrupt());
    }

    #[test]
    fn a_type_that_asks_for_types_is_refused_with_the_reason() {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Any {
            Number(u32),
        }
        let bytes = encode(&Any::Number(1)).unwrap();
        let error = decode::<Any>(&bytes).unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        assert!(error.to_string().contains("untagged"), "{error}");
    }
}

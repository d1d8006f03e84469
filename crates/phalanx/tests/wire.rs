//! The wire format of connections against arbitrary bytes: a message, the end, or an error, and
//! never more memory than has arrived.
//!
//! `PROPTEST_CASES` sets how many cases are tried (`make fuzz`: many).

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use phalanx::channel::wire::{Incoming, Outgoing, Reader};
use proptest::prelude::*;

/// Reads until nothing can follow.
fn read_all(stream: &UnixStream, limit: Option<u64>) -> (Vec<Vec<u8>>, io::Result<Incoming>) {
    let mut reader = Reader::new();
    let mut messages = Vec::new();
    loop {
        match reader.read_from(stream, limit) {
            Ok(Incoming::Message(body)) => messages.push(body),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            last => return (messages, last),
        }
    }
}

/// What arrives if these bytes are written and the stream is closed.
fn received(bytes: &[u8], limit: Option<u64>) -> (Vec<Vec<u8>>, io::Result<Incoming>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The reader may have gone, with a part unread.
            let _ = ours.write_all(bytes);
        });
        let found = read_all(&theirs, limit);
        drop(theirs);
        found
    })
}

fn encoded(bodies: &[Vec<u8>]) -> Vec<u8> {
    bodies
        .iter()
        .flat_map(|body| Outgoing::new(body).rest())
        .collect()
}

fn bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8)
}

proptest! {
    #[test]
    fn what_is_sent_arrives(bodies in bodies()) {
        let (messages, last) = received(&encoded(&bodies), None);
        prop_assert_eq!(messages, bodies);
        prop_assert_eq!(last.unwrap(), Incoming::End);
    }

    #[test]
    fn any_bytes_give_messages_and_then_an_end(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        limit in prop::option::of(0u64..5000),
    ) {
        let (messages, last) = received(&bytes, limit);
        let arrived: usize = messages.iter().map(|body| body.len() + 4).sum();
        prop_assert!(arrived <= bytes.len());
        match last {
            Ok(Incoming::TooLong(length)) => prop_assert!(Some(length) > limit),
            Ok(Incoming::End) => prop_assert!(arrived <= bytes.len()),
            Ok(Incoming::Malformed) => {}
            Ok(Incoming::Message(_)) => unreachable!(),
            Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
        }
    }

    #[test]
    fn a_damaged_stream_is_read_up_to_the_damage(
        first in prop::collection::vec(any::<u8>(), 0..300),
        others in bodies(),
        place in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let bodies = [vec![first], others].concat();
        let mut bytes = encoded(&bodies);
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        let (messages, last) = received(&bytes, Some(1 << 20));
        // Whatever lies wholly before the damage has arrived.
        let mut end = 0;
        for (index, body) in bodies.iter().enumerate() {
            end += 4 + body.len();
            if end > place {
                break;
            }
            prop_assert_eq!(messages.get(index), Some(body));
        }
        if let Err(error) = last {
            prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}

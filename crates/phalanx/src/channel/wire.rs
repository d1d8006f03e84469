//! Messages over a byte stream, in the format of the standard library's `Connection`.
//!
//! A message is its length, four bytes big-endian and signed, and then its bytes. A length that
//! does not fit is written as `-1` and then as eight bytes, unsigned:
//!
//! ```text
//!   0 .. 0x7fff_ffff      | len: i32 | body ...
//!   beyond                |   -1     | len: u64 | body ...
//! ```
//!
//! ```
//! use phalanx::channel::wire::{Incoming, Outgoing, Reader};
//!
//! let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
//! let mut letter = Outgoing::new(b"how do you do");
//! letter.write_to(&ours)?;
//!
//! let mut reader = Reader::new();
//! assert_eq!(reader.read_from(&theirs, None)?, Incoming::Message(b"how do you do".to_vec()));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Neither side ever reads a byte beyond the message it is reading, so that a descriptor may be
//! handed to another process between two messages. Both sides remember how far they are: a call
//! that was interrupted by a signal is continued by calling again.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};

/// The longest body that the short header can announce.
const SHORT: u64 = i32::MAX as u64;

/// How much memory is taken for a body before any of it has arrived. Beyond this, memory grows
/// with the bytes that do arrive, so that an invented length costs its author as much as us.
const TRUSTED: usize = 1 << 20;

/// The most that one `read` is asked for; the kernel itself stops at about 2 GiB.
const MOST: usize = 1 << 30;

/// What a [`Reader`] has found on the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Message(Vec<u8>),
    /// The stream ended between two messages: the other end has closed it, or has died.
    End,
    /// The message announced is longer than the limit given. Its body is still on the stream,
    /// which is of no use for reading any more.
    TooLong(u64),
    /// The length is one that nothing can have. The stream is of no use for reading any more.
    Malformed,
}

/// The reading side of a stream, with the message that is under way.
#[derive(Debug, Default)]
pub struct Reader {
    /// Header bytes, of which the first `filled` have arrived.
    header: [u8; 12],
    /// 0 to 12; 4 or 12 once the header is whole.
    filled: usize,
    /// Length of the body, known as soon as the header is whole.
    length: Option<usize>,
    /// The part of the body that has arrived.
    body: Vec<u8>,
}

/// What the header read so far says.
enum Header {
    Wants(usize),
    Length(u64),
    Malformed,
}

impl Reader {
    /// A reader at the beginning of a message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a part of a message has been read and the rest is still to come.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.filled > 0
    }

    /// Reads the next message, or the rest of the one under way.
    ///
    /// Blocks until the message is whole, unless the descriptor is in non-blocking mode.
    ///
    /// # Errors
    /// `Interrupted` or `WouldBlock`: call again to go on where this call stopped. (`Interrupted`
    /// also comes without a signal, so that a caller gets to serve one it may have missed.)
    /// `UnexpectedEof`: the other end closed the stream, or died, in the middle of a message.
    /// Anything else is the error of `read(2)`. No memory: `OutOfMemory`.
    pub fn read_from(&mut self, stream: impl AsFd, limit: Option<u64>) -> io::Result<Incoming> {
        let length = loop {
            if let Some(length) = self.length {
                break length;
            }
            match self.decode() {
                Header::Length(length) if limit.is_some_and(|most| length > most) => {
                    return Ok(Incoming::TooLong(length));
                }
                Header::Length(length) => match usize::try_from(length) {
                    Ok(length) if length <= isize::MAX as usize => self.length = Some(length),
                    _ => return Ok(Incoming::Malformed),
                },
                Header::Malformed => return Ok(Incoming::Malformed),
                Header::Wants(until) => {
                    match rustix::io::read(&stream, &mut self.header[self.filled..until])? {
                        0 if self.filled == 0 => return Ok(Incoming::End),
                        0 => return Err(cut_short()),
                        got => self.filled += got,
                    }
                }
            }
        };
        while self.body.len() < length {
            self.reserve(length)?;
            let room = self.body.capacity() - self.body.len();
            let most = room.min(length - self.body.len()).min(MOST);
            let (arrived, _) =
                rustix::io::read(&stream, &mut self.body.spare_capacity_mut()[..most])?;
            let arrived = arrived.len();
            if arrived == 0 {
                return Err(cut_short());
            }
            let whole = self.body.len() + arrived;
            // SAFETY: `read` has initialised the first `arrived` bytes of the spare capacity.
            unsafe { self.body.set_len(whole) };
            // A signal that came while the kernel was copying has interrupted nothing. Before
            // sleeping, the caller has its chance to serve it.
            if whole < length && !is_ready(&stream)? {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        self.filled = 0;
        self.length = None;
        Ok(Incoming::Message(std::mem::take(&mut self.body)))
    }

    fn decode(&self) -> Header {
        if self.filled < 4 {
            return Header::Wants(4);
        }
        let [a, b, c, d, long @ ..] = self.header;
        match i32::from_be_bytes([a, b, c, d]) {
            -1 if self.filled < 12 => Header::Wants(12),
            -1 => Header::Length(u64::from_be_bytes(long)),
            short => u64::try_from(short).map_or(Header::Malformed, Header::Length),
        }
    }

    /// Makes room for more of the body: at most as much again as has arrived, and [`TRUSTED`].
    fn reserve(&mut self, length: usize) -> io::Result<()> {
        if self.body.len() < self.body.capacity() {
            return Ok(());
        }
        let more = (length - self.body.len()).min(self.body.len().max(TRUSTED));
        self.body.try_reserve_exact(more).map_err(|_| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("no memory for a message of {length} bytes"),
            )
        })
    }
}

/// Whether something can be read without waiting.
fn is_ready(stream: impl AsFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(&stream, PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&Timespec::default()))? > 0)
}

#[cold]
fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "got end of file during message",
    )
}

/// A message on its way out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    header: [u8; 12],
    /// 4, 12, or 0 for bytes that have their header already.
    header_len: usize,
    body: &'a [u8],
    /// How much of header and body is on the stream.
    sent: usize,
}

impl<'a> Outgoing<'a> {
    /// The message of these bytes. Nothing is copied.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        let mut header = [0; 12];
        let length = body.len() as u64;
        let header_len = if length > SHORT {
            header[..4].copy_from_slice(&(-1_i32).to_be_bytes());
            header[4..].copy_from_slice(&length.to_be_bytes());
            12
        } else {
            header[..4].copy_from_slice(&(length as u32).to_be_bytes());
            4
        };
        Self {
            header,
            header_len,
            body,
            sent: 0,
        }
    }

    /// Bytes that go out as they are: what [`rest`](Self::rest) gave back earlier.
    #[must_use]
    pub fn resumed(rest: &'a [u8]) -> Self {
        Self {
            header: [0; 12],
            header_len: 0,
            body: rest,
            sent: 0,
        }
    }

    /// Whether some bytes, but not all, are on the stream: it needs [`rest`](Self::rest) before
    /// any other message.
    #[must_use]
    pub fn is_amid(&self) -> bool {
        self.sent > 0 && self.sent < self.header_len + self.body.len()
    }

    /// The bytes that are not yet on the stream.
    #[must_use]
    pub fn rest(&self) -> Vec<u8> {
        let [header, body] = self.remaining();
        [header, body].concat()
    }

    /// Writes the message, or what is left of it, header and body in one system call.
    ///
    /// Blocks until all of it has been taken, unless the descriptor is in non-blocking mode. A
    /// message that fits into the stream's buffer is written at once and whole.
    ///
    /// # Errors
    /// `Interrupted` or `WouldBlock`: call again to go on where this call stopped. `BrokenPipe` or
    /// `ConnectionReset`: the other end is closed or its process dead. Anything else is the error
    /// of `writev(2)`.
    pub fn write_to(&mut self, stream: impl AsFd) -> io::Result<()> {
        while self.sent < self.header_len + self.body.len() {
            let [header, body] = self.remaining();
            // An empty slice beside a full one does no harm: it is one system call all the same.
            match rustix::io::writev(&stream, &[IoSlice::new(header), IoSlice::new(body)])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                took => self.sent += took,
            }
            if self.is_amid() {
                // Only a signal makes a blocking write stop halfway.
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    }

    fn remaining(&self) -> [&[u8]; 2] {
        let header = self.sent.min(self.header_len);
        let body = self.sent - header;
        [&self.header[header..self.header_len], &self.body[body..]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    /// Reads on after interruptions.
    fn read(reader: &mut Reader, stream: &UnixStream) -> io::Result<Incoming> {
        loop {
            match reader.read_from(stream, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn write(letter: &mut Outgoing<'_>, stream: &UnixStream) {
        while let Err(error) = letter.write_to(stream) {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    }

    /// A small deterministic generator (xorshift): the same "random" streams in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    #[test]
    fn smoke() {
        let (a, b) = pair();
        let mut reader = Reader::new();
        for body in [&b""[..], b"x", b"twelve bytes"] {
            Outgoing::new(body).write_to(&a).unwrap();
            assert_eq!(
                reader.read_from(&b, None).unwrap(),
                Incoming::Message(body.to_vec())
            );
        }
        drop(a);
        assert_eq!(reader.read_from(&b, None).unwrap(), Incoming::End);
    }

    #[test]
    fn the_bytes_are_those_of_the_standard_library() {
        let (a, mut b) = pair();
        Outgoing::new(b"hello").write_to(&a).unwrap();
        drop(a);
        let mut all = Vec::new();
        b.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"\0\0\0\x05hello");
    }

    #[test]
    fn a_long_header_is_understood() {
        let (mut a, b) = pair();
        a.write_all(b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x03abc")
            .unwrap();
        let got = Reader::new().read_from(&b, None).unwrap();
        assert_eq!(got, Incoming::Message(b"abc".to_vec()));
    }

    #[test]
    fn a_limit_is_checked_before_the_body() {
        let (mut a, b) = pair();
        a.write_all(b"\0\0\x01\0").unwrap();
        assert_eq!(
            Reader::new().read_from(&b, Some(255)).unwrap(),
            Incoming::TooLong(256)
        );
    }

    #[test]
    fn negative_and_absurd_lengths_are_malformed() {
        for header in [
            &b"\x80\0\0\0"[..],
            b"\xff\xff\xff\xfe",
            b"\xff\xff\xff\xff\xff\0\0\0\0\0\0\0",
        ] {
            let (mut a, b) = pair();
            a.write_all(header).unwrap();
            assert_eq!(
                Reader::new().read_from(&b, None).unwrap(),
                Incoming::Malformed
            );
        }
    }

    #[test]
    fn an_invented_length_takes_little_memory() {
        let (mut a, b) = pair();
        a.write_all(b"\xff\xff\xff\xff\0\0\x0f\0\0\0\0\0not so long")
            .unwrap();
        drop(a);
        let mut reader = Reader::new();
        let error = read(&mut reader, &b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(reader.body.capacity() <= 2 * TRUSTED);
    }

    #[test]
    fn an_end_inside_a_header_or_a_body_is_an_error() {
        for part in [
            &b"\0"[..],
            b"\0\0\0",
            b"\0\0\0\x02",
            b"\0\0\0\x02a",
            b"\xff\xff\xff\xff\0\0",
        ] {
            let (mut a, b) = pair();
            a.write_all(part).unwrap();
            drop(a);
            let error = Reader::new().read_from(&b, None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{part:?}");
        }
    }

    #[test]
    fn a_reader_keeps_its_place() {
        let (mut a, b) = pair();
        b.set_nonblocking(true).unwrap();
        let mut reader = Reader::new();
        for byte in b"\0\0\0\x02h" {
            let error = reader.read_from(&b, None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            a.write_all(&[*byte]).unwrap();
        }
        assert!(reader.read_from(&b, None).is_err() && reader.is_amid());
        a.write_all(b"i\0\0\0\0").unwrap();
        assert_eq!(
            reader.read_from(&b, None).unwrap(),
            Incoming::Message(b"hi".to_vec())
        );
        assert!(!reader.is_amid());
        assert_eq!(
            reader.read_from(&b, None).unwrap(),
            Incoming::Message(Vec::new())
        );
    }

    #[test]
    fn a_writer_keeps_its_place_and_gives_back_the_rest() {
        let (a, b) = pair();
        a.set_nonblocking(true).unwrap();
        let body: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
        let mut letter = Outgoing::new(&body);
        while letter.write_to(&a).unwrap_err().kind() != io::ErrorKind::WouldBlock {}
        assert!(letter.is_amid());
        let rest = letter.rest();
        a.set_nonblocking(false).unwrap();
        let sender = std::thread::spawn(move || {
            write(&mut Outgoing::resumed(&rest), &a);
            write(&mut Outgoing::new(b"next"), &a);
        });
        let mut reader = Reader::new();
        assert_eq!(read(&mut reader, &b).unwrap(), Incoming::Message(body));
        assert_eq!(
            read(&mut reader, &b).unwrap(),
            Incoming::Message(b"next".to_vec())
        );
        sender.join().unwrap();
    }

    /// Whatever bytes come, in whatever pieces, reading ends without a panic, and the messages are
    /// those that a plain decoder finds.
    #[test]
    fn any_bytes_in_any_pieces() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..300 {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for _ in 0..dice.below(6) {
                let body: Vec<u8> = (0..dice.below(200))
                    .map(|_| dice.below(256) as u8)
                    .collect();
                if dice.below(2) == 0 {
                    stream.extend((body.len() as u32).to_be_bytes());
                } else {
                    stream.extend([0xff; 4]);
                    stream.extend((body.len() as u64).to_be_bytes());
                }
                stream.extend(&body);
                expected.push(body);
            }
            stream.extend((0..dice.below(20)).map(|_| dice.below(256) as u8));
            let (mut a, b) = pair();
            b.set_nonblocking(true).unwrap();
            let mut reader = Reader::new();
            let mut found = Vec::new();
            let mut pieces = stream.as_slice();
            loop {
                match reader.read_from(&b, Some(1 << 16)) {
                    Ok(Incoming::Message(body)) => found.push(body),
                    Ok(Incoming::TooLong(_) | Incoming::Malformed | Incoming::End) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let (now, later) = pieces.split_at(pieces.len().min(1 + dice.below(30)));
                        if now.is_empty() {
                            break;
                        }
                        a.write_all(now).unwrap();
                        pieces = later;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(found.starts_with(&expected), "{found:?} {expected:?}");
        }
    }
}

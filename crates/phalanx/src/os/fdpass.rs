//! Messages with descriptors over Unix sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::error::{Error, Kind, Result};

/// How many descriptors the system lets one message carry.
pub(crate) const MOST: usize = 253;

/// Two connected sockets that keep messages apart; closed on exec.
///
/// # Errors
/// The system's, when it is out of descriptors.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::os("a pair of sockets cannot be made", e))
}

/// Sends one message with descriptors. Blocks while the socket is full.
///
/// # Errors
/// `is_peer_death()` if nobody can receive it any more, `is_interrupted()`, `is_invalid()` for more
/// than [`MOST`] descriptors.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if fds.len() > MOST {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} descriptors at once are more than {MOST}", fds.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::new(Kind::Invalid, "too many descriptors at once"));
    }
    match sendmsg(
        socket,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    ) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => Err(Error::interrupted()),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(Error::new(
            Kind::PeerDeath,
            "the process at the other end of the socket has ended",
        )),
        Err(e) => Err(Error::os("descriptors cannot be sent", e)),
    }
}

/// Receives one message with its descriptors, closed on exec; `None` at the end of the socket.
///
/// The message is cut off after `buffer`. With `peek` it stays in the socket (and so do its
/// descriptors: a peeked message has to carry none).
///
/// # Errors
/// `is_interrupted()`; the system's.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    peek: bool,
) -> Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if peek {
        flags |= RecvFlags::PEEK;
    }
    let received = match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
        Ok(received) => received,
        Err(Errno::INTR) => return Err(Error::interrupted()),
        Err(Errno::CONNRESET) => return Ok(None),
        Err(e) => return Err(Error::os("descriptors cannot be received", e)),
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::new(
            Kind::Invalid,
            "descriptors were lost on the way: this process may open no more (see ulimit -n)",
        ));
    }
    Ok((received.bytes > 0 || !fds.is_empty()).then_some((received.bytes, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        send(ours.as_fd(), b"take this", &[writer.as_fd()]).unwrap();
        let mut buffer = [0; 32];
        let (n, mut fds) = receive(theirs.as_fd(), &mut buffer, false)
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..n], b"take this");
        writer.write_all(b"one ").unwrap();
        drop(writer);
        let mut copy = File::from(fds.pop().unwrap());
        assert!(fds.is_empty());
        copy.write_all(b"two").unwrap();
        drop(copy);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    }

    #[test]
    fn peeking_leaves_the_message_and_the_end_is_seen() {
        let (ours, theirs) = pair().unwrap();
        send(ours.as_fd(), b"status", &[]).unwrap();
        drop(ours);
        let mut buffer = [0; 8];
        for peek in [true, true, false] {
            let (n, _) = receive(theirs.as_fd(), &mut buffer, peek).unwrap().unwrap();
            assert_eq!(&buffer[..n], b"status");
        }
        assert!(
            receive(theirs.as_fd(), &mut buffer, true)
                .unwrap()
                .is_none()
        );
        assert!(send(theirs.as_fd(), b"x", &[]).unwrap_err().is_peer_death());
    }
}

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use super::{Zygote, is_alive, request, wait};
use crate::os::{fdpass, pidfd};
use crate::process::watch;
use crate::testing::{Child, in_child};

/// A zygote, and the socket for asking it.
fn zygote() -> (OwnedFd, Child) {
    let (ours, theirs) = fdpass::pair().unwrap();
    let (asking, serving) = (ours.as_raw_fd(), theirs.as_raw_fd());
    let child = in_child(move || {
        // Other tests' descriptors, and ours for asking, must not be kept open in here.
        // SAFETY: closes what nothing in this process will use.
        unsafe {
            libc::close(asking);
            libc::close_range(3, serving as u32 - 1, 0);
            libc::close_range(serving as u32 + 1, u32::MAX, 0);
        }
        serve(theirs);
    });
    (ours, child)
}

/// Children write their note to the descriptor they got, and then do what its first letter says.
fn serve(control: OwnedFd) {
    let mut zygote = Zygote::new(control).unwrap();
    while zygote.wait().unwrap() {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                let code = zygote.receive().unwrap().map_or(0, |request| {
                    rustix::io::write(&request.fds[0], &request.note).unwrap();
                    match request.note[0] {
                        b'e' => 7,
                        _ => loop {
                            std::thread::park();
                        },
                    }
                });
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(code) }
            }
            pid => zygote.forked(pid as u32).unwrap(),
        }
    }
}

#[test]
fn a_child_gets_its_note_and_its_end_is_told() {
    let (control, server) = zygote();
    for i in 0..5 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let note = format!("exit, says {i}");
        let pending = request(control.as_fd(), note.as_bytes(), &[writer.as_fd()], false).unwrap();
        drop(writer);
        let pid = pending.wait().unwrap();
        let child = pending.started(pid).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, note);
        for _ in 0..2 {
            let status = wait(child.connection.as_fd(), None).unwrap().unwrap();
            assert_eq!(status.code(), Some(7));
        }
    }
    assert!(is_alive(control.as_fd()));
    drop(control);
    server.wait();
}

#[test]
fn a_request_that_is_taken_back_leaves_nothing() {
    let (control, server) = zygote();
    for i in 0..20 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pending = request(control.as_fd(), b"sleep", &[writer.as_fd()], false).unwrap();
        drop(writer);
        let pid = (i % 2 == 0).then(|| pending.wait().unwrap());
        drop(pending);
        if let Some(pid) = pid {
            let child = pidfd::open(pid).unwrap();
            assert!(pidfd::wait_readable(child.as_fd(), Some(Instant::now())).unwrap());
        }
        // Nobody is left who could write.
        reader.read_to_end(&mut Vec::new()).unwrap();
    }
    assert!(is_alive(control.as_fd()));
    drop(control);
    server.wait();
}

#[test]
fn watched_children_die_with_their_client_and_others_do_not() {
    let (control, server) = zygote();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut reader = File::from(OwnedFd::from(reader));
    let client = in_child(|| {
        for watched in [true, false] {
            let pending = request(control.as_fd(), b"sleep", &[writer.as_fd()], watched).unwrap();
            let pid = pending.wait().unwrap();
            rustix::io::write(&writer, &pid.to_ne_bytes()).unwrap();
            std::mem::forget(pending.started(pid).unwrap());
        }
        loop {
            std::thread::park();
        }
    });
    let mut said = Vec::new();
    while said.len() < 18 {
        let mut part = [0; 18];
        let n = reader.read(&mut part).unwrap();
        said.extend_from_slice(&part[..n]);
    }
    // The pids came between or after the children's own words.
    let said: Vec<u8> = remove(&remove(&said, b"sleep"), b"sleep");
    let pids: Vec<u32> = said
        .chunks(4)
        .map(|c| u32::from_ne_bytes(c.try_into().unwrap()))
        .collect();
    let (watched, other) = (pidfd::open(pids[0]).unwrap(), pidfd::open(pids[1]).unwrap());
    client.kill();
    assert!(watch::wait_readable(watched.as_fd(), None).unwrap());
    let now = Some(std::time::Instant::now());
    assert!(!watch::wait_readable(other.as_fd(), now).unwrap());
    drop(control);
    // The zygote goes when its last child does.
    assert!(server.is_running());
    pidfd::send_signal(other.as_fd(), libc::SIGKILL).unwrap();
    server.wait();
}

fn remove(text: &[u8], word: &[u8]) -> Vec<u8> {
    let at = text.windows(word.len()).position(|w| w == word).unwrap();
    [&text[..at], &text[at + word.len()..]].concat()
}

#[test]
fn the_death_of_the_zygote_is_seen() {
    let (control, server) = zygote();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let pending = request(control.as_fd(), b"sleep", &[writer.as_fd()], false).unwrap();
    let pid = pending.wait().unwrap();
    let child = pending.started(pid).unwrap();
    let mut word = [0; 5];
    reader.read_exact(&mut word).unwrap();
    server.kill();
    while is_alive(control.as_fd()) {
        std::thread::yield_now(); // the ready child is being killed
    }
    let error = request(control.as_fd(), b"exit", &[writer.as_fd()], false).unwrap_err();
    assert!(error.is_peer_death(), "{error}");
    // Its child lives on, and its connection ends with it.
    let now = Some(std::time::Instant::now());
    assert!(wait(child.connection.as_fd(), now).unwrap().is_none());
    let fd = pidfd::open(pid).unwrap();
    pidfd::send_signal(fd.as_fd(), libc::SIGKILL).unwrap();
    let status = wait(child.connection.as_fd(), None).unwrap().unwrap();
    assert_eq!((status.code(), status.signal()), (None, None));
}

//! The zygote: a small single-threaded process that forks ready-made children on request.
//!
//! ```text
//!  client ──── control ────> warm child          one socket for all clients; whoever holds its
//!    │                          │                other end may ask, and nobody else can
//!    │                          ├── link ──> zygote     "taken": the connection, the client
//!    └─── connection ───────────┘                       pid, then, from the zygote, the status
//! ```
//!
//! A client sends one message over the control socket: a note, and descriptors, among them one end
//! of a new *connection*. The message is read by one of the children that the zygote has forked
//! ahead (the first when the first request comes), so a start costs one wake-up. There are two of them,
//! so that starts one after the other need not wait for each fork. That child hands the connection on to
//! the zygote, tells the client its pid and becomes the process; the zygote, which lets those run first
//! who have work to do, forks the next one, and when the child ends it writes the status to the connection. The
//! connection is therefore the child's sentinel: readable when it has ended. The child stays a zombie,
//! whose pid is nobody else's, until the client has read the status.
//!
//! Who dies, and what happens:
//!
//! | who | then |
//! | --- | --- |
//! | the client | its *watched* children are killed; the others go on |
//! | all holders of the control socket | the zygote ends, once it has no children |
//! | a warm child | another one is forked |
//! | the zygote | the warm children are killed; a request that one of them had read is answered by the end of its connection, and the client asks another zygote; children go on, and their connections end with them, without a status |

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::os::fdpass;

pub use client::{Pending, Started, is_alive, request, wait};
pub use server::{Request, Zygote};

/// How long a note may be.
pub const LONGEST_NOTE: usize = 4096;

/// The first byte of a request: whether the child is watched.
const PLAIN: u8 = 1;
const WATCHED: u8 = 2;

/// What comes over a connection. The child's pid is missing if it was killed before it could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The child has begun; its pid.
    Began(u32),
    /// It has ended; the status as `waitpid` has it.
    Ended(i32),
}

const BEGAN: u8 = b'+';
const ENDED: u8 = b'-';

fn word(kind: u8, value: [u8; 4]) -> [u8; 5] {
    let [a, b, c, d] = value;
    [kind, a, b, c, d]
}

fn began(pid: u32) -> [u8; 5] {
    word(BEGAN, pid.to_ne_bytes())
}

fn ended(status: i32) -> [u8; 5] {
    word(ENDED, status.to_ne_bytes())
}

/// The next news, `None` if none will come: the zygote has died, and the child has ended. With
/// `peek` the news stay.
fn news(connection: BorrowedFd<'_>, peek: bool) -> Result<Option<News>> {
    let mut message = [0; 5];
    Ok(match fdpass::receive(connection, &mut message, peek)? {
        Some((5, _)) => {
            let [kind, a, b, c, d] = message;
            let value = [a, b, c, d];
            match kind {
                BEGAN => Some(News::Began(u32::from_ne_bytes(value))),
                _ => Some(News::Ended(i32::from_ne_bytes(value))),
            }
        }
        _ => None,
    })
}

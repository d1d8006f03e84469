//! Ending a process with all its descendants.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use crate::arena::Arena;
use crate::error::Result;
use crate::os::pidfd;

/// Sends `signal` to all descendants of process `pid`, but not to itself.
///
/// They are stopped first, the process itself too, so that none can start another one behind our
/// back; then they get the signal and go on, and so does the process.
///
/// # Errors
/// The system's, if a signal may not be sent.
pub fn signal_descendants(pid: u32, signal: i32) -> Result<usize> {
    let root = pidfd::open(pid)?;
    pidfd::send_signal(root.as_fd(), libc::SIGSTOP)?;
    let mut known: HashMap<u32, OwnedFd> = HashMap::new();
    loop {
        let mut found = false;
        for (descendant, parent) in descendants(pid) {
            if known.contains_key(&descendant) || descendant == std::process::id() {
                continue;
            }
            let fd = pidfd::open(descendant)?;
            // The pid may have gone to another process since the list was made.
            if !kinship_of(descendant).contains(&(descendant, parent)) {
                continue;
            }
            pidfd::send_signal(fd.as_fd(), libc::SIGSTOP)?;
            known.insert(descendant, fd);
            found = true;
        }
        if !found {
            break;
        }
    }
    for fd in known.values() {
        pidfd::send_signal(fd.as_fd(), signal)?;
    }
    for fd in known.values().chain([&root]) {
        pidfd::send_signal(fd.as_fd(), libc::SIGCONT)?;
    }
    Ok(known.len())
}

/// The processes below `pid`, each with its parent.
fn descendants(pid: u32) -> Vec<(u32, u32)> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, parent) in kinship() {
        children.entry(parent).or_default().push(child);
    }
    let mut found = Vec::new();
    let mut seen = HashSet::from([pid]);
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child) {
                found.push((child, parent));
                open.push(child);
            }
        }
    }
    found
}

/// All pairs of child and parent: those of the system, and those of the family, in which the parent
/// of a zygote's child is the process that asked for it.
fn kinship() -> Vec<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pairs: Vec<_> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|child| Some((child, parent_of(child)?)))
        .collect();
    pairs.extend(family());
    pairs
}

fn kinship_of(pid: u32) -> Vec<(u32, u32)> {
    let own = parent_of(pid).map(|parent| (pid, parent));
    own.into_iter().chain(family()).collect()
}

fn family() -> Vec<(u32, u32)> {
    Arena::current().map_or_else(Vec::new, Arena::kinship)
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; then come the state and the parent.
    let after = stat.iter().rposition(|&b| b == b')')?;
    let fields = std::str::from_utf8(stat.get(after + 2..)?).ok()?;
    fields.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn reaches_children_of_children() {
        let mut child = Command::new("sh")
            .args(["-c", "sh -c 'sleep 100 & sleep 100 & wait' & wait"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while descendants(child.id()).len() < 3 {
            std::thread::yield_now();
        }
        let below: Vec<_> = descendants(child.id()).iter().map(|d| d.0).collect();
        assert_eq!(signal_descendants(child.id(), libc::SIGKILL).unwrap(), 3);
        child.wait().unwrap();
        for pid in below {
            let fd = pidfd::open(pid).unwrap();
            assert!(pidfd::wait_readable(fd.as_fd(), None).unwrap());
        }
    }
}

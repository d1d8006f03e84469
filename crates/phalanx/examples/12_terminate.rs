//! Ending processes early: a sleeping child, a child with children of its own, and one that dies
//! with its parent.

use std::time::Duration;

use phalanx::{Process, Queue, Result};

fn sleep(_: ()) {
    std::thread::sleep(Duration::from_secs(600));
}

/// Starts two children that sleep, tells their ids, and sleeps.
fn sleep_with_children((ids, bound): (Queue<u32>, bool)) {
    let children: Vec<Process<()>> = (0..2)
        .map(|_| {
            let mut builder = Process::builder();
            builder.die_with_parent(bound).spawn(sleep, ()).unwrap()
        })
        .collect();
    for child in &children {
        ids.put(child.id()).unwrap();
    }
    sleep(());
}

fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The state is behind the name, which is in brackets; a zombie has ended.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn wait_until_gone(ids: [u32; 2]) {
    while ids.into_iter().any(runs) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Joins a process that was ended by a signal, and says by which.
fn signal_of(process: Process<()>) -> Option<i32> {
    let error = process.join().unwrap_err();
    println!("{error}");
    assert!(error.is_peer_death());
    error.exit_status().and_then(phalanx::ExitStatus::signal)
}

fn main() -> Result<()> {
    phalanx::init();
    let child = Process::spawn(sleep, ())?;
    assert!(child.is_alive());
    child.terminate()?;
    assert_eq!(signal_of(child), Some(15));

    let ids = Queue::new()?;
    let child = Process::spawn(sleep_with_children, (ids.clone(), false))?;
    let grandchildren = [ids.get()?, ids.get()?];
    child.terminate_tree()?;
    assert_eq!(signal_of(child), Some(15));
    wait_until_gone(grandchildren);
    println!("and its children are gone");

    let child = Process::spawn(sleep_with_children, (ids.clone(), true))?;
    let grandchildren = [ids.get()?, ids.get()?];
    child.kill()?;
    assert_eq!(signal_of(child), Some(9));
    wait_until_gone(grandchildren);
    println!("and those that were to die with it are gone");
    Ok(())
}

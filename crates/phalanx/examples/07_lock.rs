//! One lock, five workers: never two at a time in the section that it guards.
//!
//! `inside` counts the workers in the section: only the lock keeps them apart.

use std::sync::TryLockError;
use std::time::{Duration, Instant};

use phalanx::{Lock, Process, Value};

fn work((lock, inside, entries): (Lock, Value<u32>, Value<u32>)) -> bool {
    let mut alone = true;
    for _ in 0..20 {
        let _guard = lock.lock().unwrap();
        alone &= inside.fetch_add(1) == 0;
        entries.fetch_add(1);
        // Gives the others every chance to come in.
        std::thread::sleep(Duration::from_millis(1));
        alone &= inside.fetch_sub(1) == 1;
    }
    alone
}

fn impatient(lock: Lock) -> (bool, Duration) {
    let begin = Instant::now();
    let refused = matches!(
        lock.lock_timeout(Duration::from_millis(200)),
        Err(TryLockError::WouldBlock)
    );
    (refused, begin.elapsed())
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let (lock, inside, entries) = (Lock::new(())?, Value::new(0)?, Value::new(0)?);
    let workers = (0..5)
        .map(|_| Process::spawn(work, (lock.clone(), inside.clone(), entries.clone())))
        .collect::<phalanx::Result<Vec<_>>>()?;
    for worker in workers {
        assert!(worker.join()?, "two were inside at once");
    }
    println!("{} entries, never two at a time", entries.get());
    assert_eq!(entries.get(), 100);

    let guard = lock.lock().unwrap();
    let (refused, waited) = Process::spawn(impatient, lock.clone())?.join()?;
    drop(guard);
    println!("with a timeout of 200 ms while it is held: refused after that time");
    assert!(refused && waited >= Duration::from_millis(200));
    Ok(())
}

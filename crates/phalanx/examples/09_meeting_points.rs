//! Waiting for each other: an event, a semaphore, a condition and a barrier.

use std::time::Duration;

use phalanx::{Barrier, Condition, Event, Mutex, Process, Queue, Result, Semaphore, Value};

/// An event lets all go who wait for it.
fn event() -> Result<()> {
    let (go, gone) = (Event::new()?, Value::new(0)?);
    let wait = |(go, gone): (Event, Value<u32>)| {
        go.wait();
        gone.fetch_add(1);
    };
    let runners = (0..3)
        .map(|_| Process::spawn(wait, (go.clone(), gone.clone())))
        .collect::<Result<Vec<_>>>()?;
    let before = gone.get();
    go.set();
    for runner in runners {
        runner.join()?;
    }
    println!(
        "event: {before} had gone before it was set, {} after",
        gone.get()
    );
    assert_eq!((before, gone.get()), (0, 3));
    Ok(())
}

/// A semaphore of two lets at most two in.
fn semaphore() -> Result<()> {
    let (seats, inside) = (Semaphore::new(2)?, Value::new(0)?);
    let visit = |(seats, inside): (Semaphore, Value<u32>)| {
        let mut most = 0;
        for _ in 0..10 {
            let _seat = seats.acquire();
            most = most.max(inside.fetch_add(1) + 1);
            std::thread::sleep(Duration::from_millis(1));
            inside.fetch_sub(1);
        }
        most
    };
    let visitors = (0..5)
        .map(|_| Process::spawn(visit, (seats.clone(), inside.clone())))
        .collect::<Result<Vec<_>>>()?;
    let mut most = 0;
    for visitor in visitors {
        most = most.max(visitor.join()?);
    }
    println!("semaphore: five visitors, never more than {most} inside");
    assert!(most <= 2);
    Ok(())
}

/// A condition hands a number over, once it is there.
fn condition() -> Result<()> {
    let (cell, changed) = (Mutex::new(0)?, Condition::new()?);
    let receive = |(cell, changed): (Mutex<u32>, Condition)| {
        let empty = |number: &mut u32| *number == 0;
        let number = changed.wait_while(cell.lock().unwrap(), empty).unwrap();
        *number
    };
    let receiver = Process::spawn(receive, (cell.clone(), changed.clone()))?;
    let mut guard = cell.lock().unwrap();
    *guard = 42;
    changed.notify_all(&guard);
    drop(guard);
    let received = receiver.join()?;
    println!("condition: {received} was handed over");
    assert_eq!(received, 42);
    Ok(())
}

/// Nobody begins a round before all have ended the one before.
fn barrier() -> Result<()> {
    let (line, log) = (Barrier::new(3)?, Queue::new()?);
    let run = |(line, log): (Barrier, Queue<u32>)| {
        for round in 0..4 {
            log.put(round).unwrap();
            line.wait().unwrap();
        }
    };
    let runners = (0..3)
        .map(|_| Process::spawn(run, (line.clone(), log.clone())))
        .collect::<Result<Vec<_>>>()?;
    for runner in runners {
        runner.join()?;
    }
    let mut rounds = Vec::new();
    while let Some(round) = log.try_get()? {
        rounds.push(round);
    }
    println!("barrier: the rounds of three runners: {rounds:?}");
    assert_eq!(rounds, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    Ok(())
}

fn main() -> Result<()> {
    phalanx::init();
    event()?;
    semaphore()?;
    condition()?;
    barrier()
}

//! A queue used both ways: numbers go to a worker, `Stop` ends it, and its sum comes back.
//!
//! The worker is the only reader until it ends, so the parent reads the sum after `join`.

use phalanx::{Process, Queue};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Item {
    Number(u64),
    Stop,
    Sum(u64),
}

fn add_up(queue: Queue<Item>) {
    let mut total = 0;
    while let Item::Number(number) = queue.get().unwrap() {
        total += number;
    }
    queue.put(Item::Sum(total)).unwrap();
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let queue = Queue::new()?;
    let worker = Process::spawn(add_up, queue.clone())?;
    for number in 1..=100 {
        queue.put(Item::Number(number))?;
    }
    queue.put(Item::Stop)?;
    worker.join()?;
    let sum = queue.get()?;
    println!("the sum of 1 to 100: {sum:?}");
    assert_eq!(sum, Item::Sum(5050));
    Ok(())
}

//! A child puts 100,000 items of 1 kB into a queue and is joined before anything is read.
//!
//! An item is in the queue when `put` returns; nothing has to be sent when the child ends. So
//! `join` never waits for a reader, and then every item is there.

use phalanx::{Process, Queue};

const ITEMS: u64 = 100_000;

fn produce(queue: Queue<(u64, Vec<u8>)>) {
    for number in 0..ITEMS {
        let item = (number * 2, vec![number as u8; 1000]);
        queue.put(item).unwrap();
    }
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let queue = Queue::new()?;
    Process::spawn(produce, queue.clone())?.join()?;
    println!("the child has ended and left {} items", queue.len()?);
    assert_eq!(queue.len()?, ITEMS);

    let mut count = 0;
    while !queue.is_empty()? {
        let (even, bytes) = queue.get()?;
        assert_eq!((even, bytes.len()), (count * 2, 1000));
        assert!(bytes.iter().all(|&byte| byte == count as u8));
        count += 1;
    }
    println!("read {count} of them, all whole and in order");
    assert_eq!(count, ITEMS);
    Ok(())
}

//! A producer that waits for its consumer: the queue has room for three items.
//!
//! `None` says that nothing more will come. The consumer waits for a sign before it takes the
//! first item, so that the producer is seen to stand at the full queue.

use std::time::Duration;

use phalanx::{Event, Process, Queue};

fn produce((queue, full): (Queue<Option<u32>>, Event)) -> u32 {
    let mut waits = 0;
    for number in 0..20 {
        // An item that finds no room comes back with the error.
        if let Err(undelivered) = queue.try_put(Some(number)) {
            assert!(undelivered.is_full());
            waits += 1;
            full.set();
            queue.put(undelivered.into_inner()).unwrap();
        }
    }
    queue.put(None).unwrap();
    waits
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let (queue, full) = (Queue::bounded(3)?, Event::new()?);
    let producer = Process::spawn(produce, (queue.clone(), full.clone()))?;
    full.wait();
    println!(
        "the producer waits; {} items are in the queue",
        queue.len()?
    );
    assert_eq!(queue.len()?, 3);

    let mut numbers = Vec::new();
    while let Some(number) = queue.get_timeout(Duration::from_secs(60))? {
        assert!(queue.len()? <= 3);
        numbers.push(number);
    }
    let waits = producer.join()?;
    println!(
        "{} numbers came in order; the producer had to wait",
        numbers.len()
    );
    assert!(numbers == Vec::from_iter(0..20) && waits >= 1);
    Ok(())
}

//! Numbers in shared memory: a value, a value under a mutex, and an array.

use phalanx::{Array, Mutex, Process, Value};

fn add((atomic, guarded): (Value<i32>, Mutex<i32>)) {
    for _ in 0..1000 {
        // One step, which cannot be interrupted.
        atomic.fetch_add(1);
        // Reads and writes, with the lock held.
        *guarded.lock().unwrap() += 1;
    }
}

fn fill((row, part): (Array<f64>, usize)) {
    let numbers: Vec<f64> = (0..25).map(|i| (part * 25 + i) as f64).collect();
    row.write(part * 25, &numbers);
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let (atomic, guarded) = (Value::new(0)?, Mutex::new(0)?);
    let workers = (0..4)
        .map(|_| Process::spawn(add, (atomic.clone(), guarded.clone())))
        .collect::<phalanx::Result<Vec<_>>>()?;
    for worker in workers {
        worker.join()?;
    }
    let sums = (atomic.get(), *guarded.lock().unwrap());
    println!("four workers added 1,000 each: {sums:?}");
    assert_eq!(sums, (4000, 4000));

    let row = Array::new(100)?;
    let workers = (0..4)
        .map(|part| Process::spawn(fill, (row.clone(), part)))
        .collect::<phalanx::Result<Vec<_>>>()?;
    for worker in workers {
        worker.join()?;
    }
    let sum: f64 = row.read(0..100).iter().sum();
    println!("four workers filled a quarter each: the sum is {sum}");
    assert_eq!(sum, 4950.0);
    Ok(())
}

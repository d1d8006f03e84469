//! `counted WORKLOAD COUNT`: work in one process, whose instructions `compare.py` counts.

use std::hint::black_box;

use phalanx::{Mutex, Pipe, Queue, Value};

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let mut arguments = std::env::args().skip(1);
    let workload = arguments.next().unwrap_or_default();
    let count: u64 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    match workload.as_str() {
        "queue" => {
            let queue = Queue::<u64>::new()?;
            for n in 0..count {
                queue.put(n)?;
                black_box(queue.get()?);
            }
        }
        "queue-many" => {
            let queue = Queue::<u64>::new()?;
            for n in 0..count / 100 {
                queue.put_many((n..n + 100).collect())?;
                black_box(queue.get_many(100)?);
            }
        }
        "queue-tuple" => {
            let queue = Queue::<(u64, String, f64)>::new()?;
            for n in 0..count {
                queue.put((n, "two".to_owned(), 3.0))?;
                black_box(queue.get()?);
            }
        }
        "pipe" => {
            let (here, there) = Pipe::<u64, u64>::new()?;
            for n in 0..count {
                here.send(n)?;
                black_box(there.recv()?);
            }
        }
        "mutex" => {
            let mutex = Mutex::new(0_u64)?;
            for _ in 0..count {
                *mutex.lock().expect("nobody died") += 1;
            }
        }
        "value" => {
            let value = Value::new(0_u64)?;
            for n in 0..count {
                value.set(n);
                black_box(value.get());
            }
        }
        "create" => {
            for _ in 0..count {
                drop(black_box(Queue::<u64>::new()?));
            }
        }
        other => panic!("no workload is called {other:?}"),
    }
    Ok(())
}

//! A worker puts a greeting into a queue; its parent gets it.

use phalanx::{Process, Queue};

fn greet(queue: Queue<String>) {
    let name = phalanx::process_name();
    queue.put(format!("hello from {name}")).unwrap();
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let queue = Queue::new()?;
    let worker = Process::builder()
        .name("Greeter")
        .spawn(greet, queue.clone())?;
    let greeting = queue.get()?;
    worker.join()?;
    println!("{greeting}");
    assert_eq!(greeting, "hello from Greeter");
    Ok(())
}

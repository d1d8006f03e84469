//! Five workers started in a loop, each given its number, and joined.
//!
//! Each worker is a process of its own: this very program, which enters the function that it was
//! started for by `phalanx::init()`.

use phalanx::Process;

fn work(number: u32) -> u32 {
    println!("worker {number} is process {}", std::process::id());
    number * 10
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let workers = (0..5)
        .map(|number| Process::spawn(work, number))
        .collect::<phalanx::Result<Vec<_>>>()?;
    let mut pids: Vec<u32> = workers.iter().map(Process::id).collect();
    let results = workers
        .into_iter()
        .map(Process::join)
        .collect::<phalanx::Result<Vec<_>>>()?;
    println!("all have ended well: {results:?}");
    assert_eq!(results, [0, 10, 20, 30, 40]);
    pids.push(std::process::id());
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 6, "five children and this process");
    Ok(())
}

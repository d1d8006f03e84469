//! A test harness whose `main` begins with `phalanx::init()`.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A test that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(100);

/// Runs the tests whose name contains one of the words given to the program; all without one.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    phalanx::init();
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut failed = Vec::new();
    for &(name, test) in tests {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let _dog = Watchdog::new(name);
        let begin = Instant::now();
        let passed = catch_unwind(test).is_ok();
        let left = children();
        if !left.is_empty() {
            println!("test {name} has left processes: {left:?}");
        }
        let good = passed && left.is_empty();
        let said = if good { "ok" } else { "FAILED" };
        println!("test {name} ... {said} ({:.0?})", begin.elapsed());
        if !good {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("\nfailed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

/// The functions with their names.
macro_rules! named {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name as fn())),*]
    };
}
pub(crate) use named;

/// A `main` that runs the functions as tests.
#[allow(unused_macros, reason = "a test file may have a main of its own")]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            common::run(common::named![$($name),*])
        }
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use tests;

/// Ends the program if it is not dropped in time.
struct Watchdog {
    _alive: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn new(name: &str) -> Self {
        let name = name.to_owned();
        let (alive, dropped) = channel::<()>();
        std::thread::spawn(move || {
            if dropped.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("test {name} hangs");
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

/// Waits until `done`; the watchdog is the limit.
pub(crate) fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process of that number runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(") ").next().unwrap_or("").chars().next();
    !matches!(state, None | Some('Z' | 'X'))
}

/// The children of this process that run.
fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    let parent_of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        Some(fields.split(' ').nth(1)?.to_owned())
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| runs(*pid) && parent_of(pid).as_deref() == Some(me.as_str()))
        .collect()
}

/// Sleeps until killed.
pub(crate) fn sleep_for_ever() {
    loop {
        std::thread::park();
    }
}

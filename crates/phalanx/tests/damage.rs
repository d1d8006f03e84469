//! Writes rubbish over the arena and goes on using it: errors may come, nothing else.
//!
//! Each round is a process of its own with an arena of its own. It must end by itself: not by a
//! signal (it touched memory outside the arena), not by a panic, not by the watchdog.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::time::Duration;

use phalanx::arena::{Arena, Buffer, Handle, Shared, fork};
use phalanx::channel::{Patience, Queue, pipe};
use phalanx::sync::{Event, Lock};

const WATCHDOG: u32 = 20;

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = number("PHALANX_DAMAGE_FIRST").unwrap_or(1);
    let rounds: u64 = number("PHALANX_DAMAGE_ROUNDS").unwrap_or(150);
    // More than there are processors: a round spends a third of its time in waits that nobody ends.
    let most = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let (mut running, mut bad) = (HashMap::new(), Vec::new());
    for seed in first..first + rounds {
        if running.len() == most {
            bad.extend(await_one(&mut running));
        }
        running.insert(start(seed), seed);
    }
    while !running.is_empty() {
        bad.extend(await_one(&mut running));
    }
    assert!(bad.is_empty(), "{}", bad.join("; "));
    println!("test result: ok. {rounds} damaged arenas");
}

/// Has a round run in a child; its pid.
fn start(seed: u64) -> i32 {
    // SAFETY: this program has one thread, and no arena yet.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a signal at the end of the time is what is wanted.
        unsafe { libc::alarm(WATCHDOG) };
        let failed = std::panic::catch_unwind(|| round(seed)).is_err();
        // SAFETY: ends the child here.
        unsafe { libc::_exit(i32::from(failed)) };
    }
    pid
}

/// Waits for the end of some round; what is wrong with it.
fn await_one(running: &mut HashMap<i32, u64>) -> Option<String> {
    let mut status = 0;
    // SAFETY: there are children, and all of them are rounds.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
    let seed = running.remove(&pid)?;
    (status != 0).then(|| format!("round {seed} ended with status {status:#x}"))
}

/// A small generator: the same seed does the same damage.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }
}

fn round(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let arena = Arena::get().unwrap();
    let queue = Queue::new((dice.below(2) == 0).then_some(50)).unwrap();
    let (left, right) = pipe::pipe().unwrap();
    let lock = Shared::create(Lock::new()).unwrap();
    let mut handles = vec![lock.handle().bits()];
    let mut objects = vec![Shared::create(Event::new()).unwrap()];
    let mut buffers = Vec::new();
    use_all(
        &mut dice,
        &queue,
        &left,
        &right,
        &mut objects,
        &mut buffers,
        &mut handles,
    );
    let view = View::of(arena);
    for _ in 0..60 {
        for _ in 0..1 + dice.below(3) {
            view.damage(&mut dice);
        }
        use_all(
            &mut dice,
            &queue,
            &left,
            &right,
            &mut objects,
            &mut buffers,
            &mut handles,
        );
    }
    let _ = arena.usage();
    arena.trim();
    arena.reap_all();
    fork::prepare();
    fork::parent();
}

#[allow(clippy::too_many_arguments, reason = "all there is")]
fn use_all(
    dice: &mut Dice,
    queue: &Queue,
    left: &pipe::End,
    right: &pipe::End,
    objects: &mut Vec<Shared<Event>>,
    buffers: &mut Vec<Buffer>,
    handles: &mut Vec<u64>,
) {
    let Ok(arena) = Arena::get() else { return };
    let soon = || Some(std::time::Instant::now() + Duration::from_millis(1));
    let bytes = vec![7; dice.below(100_000) as usize];
    let parts = [&bytes[..]];
    let extra = Buffer::new(arena, 60_000).map_or(Vec::new(), |b| vec![b]);
    if let Ok(mut letter) = queue.letter(&parts, 0, extra) {
        let _ = queue.try_put(&mut letter, Patience::Wait);
    }
    if let Ok(mut letter) = left.letter(&parts, 0, Vec::new()) {
        let _ = left.try_send(&mut letter, Patience::Wait);
    }
    if let Ok(message) = queue.get(soon()) {
        std::hint::black_box(message.bytes().iter().map(|&b| u64::from(b)).sum::<u64>());
        buffers.extend(message.buffers);
    }
    let _ = (queue.len(), queue.task_done(), queue.exposed_fd());
    if let Ok(message) = right.recv(soon()) {
        std::hint::black_box(message.bytes().len());
    }
    if let Ok(event) = Shared::create(Event::new()) {
        handles.push(event.handle().bits());
        objects.push(event);
    }
    let any =
        handles[dice.below(handles.len() as u64) as usize] ^ (dice.below(4) << dice.below(60));
    if let Ok(event) = Shared::<Event>::attach(arena.family(), Handle::from_bits(any)) {
        event.set();
        objects.push(event);
    }
    if let (Ok(child), Some(event)) = (arena.reserve_child(), objects.first()) {
        let _ = event.book_for(child);
        arena.cancel(child);
    }
    if dice.below(3) == 0 {
        objects.pop();
        buffers.pop();
    }
}

/// The arena's memory, seen from outside.
struct View {
    start: *mut u64,
    words: u64,
    fd: i32,
}

/// Words in a page.
const PAGE: u64 = 512;

impl View {
    fn of(arena: &Arena) -> Self {
        let length = 8 << 20;
        // SAFETY: a new mapping of a file that is larger than this.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                arena.fd().as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            words: length as u64 / 8,
            fd: arena.fd().as_raw_fd(),
        }
    }

    /// The first word from this one on that somebody may have written to. To read through pages
    /// that nobody has used took three quarters of a round, and gave each of them memory.
    fn written(&self, at: u64) -> u64 {
        // SAFETY: the call takes numbers.
        let found = unsafe { libc::lseek(self.fd, (at * 8) as i64, libc::SEEK_DATA) };
        // An error: there is none.
        u64::try_from(found)
            .map_or(self.words, |byte| byte / 8)
            .clamp(at, self.words - 1)
    }

    /// Overwrites one word: somewhere in the header, in the table, or near something that is not
    /// zero, where the objects are.
    fn damage(&self, dice: &mut Dice) {
        let mut at = match dice.below(6) {
            0 => dice.below(2000),
            _ => 40_000 + dice.below(self.words - 40_000),
        };
        at = self.written(at);
        // SAFETY: all below stays inside the mapping; other processes' views of it are atomics or
        // bytes that are copied.
        unsafe {
            while at + 1 < self.words && self.start.add(at as usize).read_volatile() == 0 {
                at += 1;
                if at % PAGE == 0 {
                    at = self.written(at);
                }
            }
            let word = self.start.add(at as usize);
            let old = word.read_volatile();
            word.write_volatile(match dice.below(7) {
                0 => 0,
                1 => u64::MAX,
                2 => dice.roll(),
                3 => old ^ (1 << dice.below(64)),
                4 => old.wrapping_add(dice.below(256)).wrapping_sub(128),
                5 => u64::from(old as u32) | (dice.roll() << 32),
                _ => self
                    .start
                    .add(dice.below(self.words) as usize)
                    .read_volatile(),
            });
        }
    }
}

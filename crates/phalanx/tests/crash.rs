//! Kills a process at every crash point in turn, while others work, and looks at what they find.
//!
//! Run by `cargo test -p phalanx --features crash-points --test crash`. For each scenario and each
//! point a victim is forked that kills itself when it comes to that point for the nth time. The
//! survivors must finish, and then:
//!
//! * every message that was received is whole, and none is received twice;
//! * none is missing but one that the victim had in hand;
//! * every task of a pool is delivered once or told to be lost once;
//! * of the arena's blocks no more than one is lost (or one object with what it holds).
//!
//! A point that no scenario comes to fails the test: the names are read from the sources.

#[path = "crash/pool.rs"]
mod pool;
#[path = "crash/primitives.rs"]
mod primitives;
#[path = "crash/runs.rs"]
mod runs;
#[path = "crash/shutdown.rs"]
mod shutdown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::{Duration, Instant};

use phalanx::arena::{Arena, Buffer, Shareable, Shared, Usage, fork};
use phalanx::channel::pipe::{self, End};
use phalanx::channel::{Message, Queue};
use phalanx::sync::{Event, Lock, Members};
use phalanx::{Error, fault};

/// Each scenario is over in well under a second; this long and it hangs.
const WATCHDOG: u32 = 30;
/// At which visit of its point a victim dies.
const VISITS: [u32; 3] = [1, 3, 20];
/// So often all scenarios are tried again for a point that none has come to.
const MORE_ROUNDS: usize = 20;
const IDS: usize = 4096;
const PIPE: u32 = pipe::PipeCore::KIND;
const SEGMENT: u32 = 2;
const COOLING: u32 = 5;

type Scenario = fn(&Run);
/// The ids of the victim's messages begin here, below are the siblings'.
const VICTIMS: u32 = 2048;

fn main() {
    // `-- NAME` restricts it to the points whose names contain that.
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wanted = wanted.unwrap_or_default();
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    let points = points();
    let scenarios: [(&str, Scenario); 18] = [
        ("queue", |run| queue(run, None)),
        ("bounded queue", |run| queue(run, Some(3))),
        ("pipe", |run| pipe(run, false)),
        ("polled pipe", |run| pipe(run, true)),
        ("pipe with an idle sender", lonely),
        ("watched queue", watched),
        ("shutdown", shutdown::shutdown),
        ("work", shutdown::work),
        ("runs", |run| runs::runs(run, None)),
        ("bounded runs", |run| runs::runs(run, Some(5))),
        ("objects", objects),
        ("reaping", reaping),
        ("pool", pool::pool),
        ("locks", primitives::locks),
        ("semaphores", primitives::semaphores),
        ("conditions and events", primitives::conditions),
        ("barriers", primitives::barriers),
        ("sleepers", primitives::sleepers),
    ];
    for (name, scenario) in scenarios {
        let begin = Instant::now();
        let mut kills = 0;
        // Once without a death: tables and segments of this process have their size afterwards.
        scenario(&Run::new(name, "", 1, 1));
        let mut number = 1;
        for point in points.iter().filter(|p| p.contains(&wanted)) {
            for visit in VISITS {
                number += 1;
                let run = Run::new(name, point, visit, number);
                scenario(&run);
                if !run.killed() {
                    // It does not come there so often.
                    break;
                }
                kills += 1;
                *reached.entry(point.clone()).or_default() += 1;
            }
        }
        println!("{name}: {kills} kills survived ({:.1?})", begin.elapsed());
    }
    // Some points lie where one only comes if others are slow, or quick: those get more rounds.
    let missing = |reached: &BTreeMap<String, u32>| -> Vec<String> {
        let missed = |p: &&String| p.contains(&wanted) && !reached.contains_key(*p);
        points.iter().filter(missed).cloned().collect()
    };
    for round in 0..MORE_ROUNDS {
        for point in missing(&reached) {
            for (name, scenario) in scenarios {
                let run = Run::new(name, &point, 1, 2 + round);
                scenario(&run);
                if run.killed() {
                    *reached.entry(point.clone()).or_default() += 1;
                }
            }
        }
    }
    let missed = missing(&reached);
    assert!(missed.is_empty(), "no scenario comes to {missed:?}");
    println!(
        "test result: ok. {} crash points, {} kills",
        points.len(),
        reached.values().sum::<u32>()
    );
}

/// The names of all points, from the sources.
fn points() -> BTreeSet<String> {
    fn visit(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("fault.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.split("crash_point!(\"").skip(1);
                found.extend(names.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut found = BTreeSet::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 20);
    found
}

/// What the processes of one run write down, in memory that they share.
struct Board {
    /// How often a message was received.
    seen: [AtomicU8; IDS],
    /// Whether its `put` has returned.
    sent: [AtomicU8; IDS],
    done: AtomicU32,
}

/// One victim's life.
struct Run<'a> {
    scenario: &'a str,
    point: &'a str,
    visit: u32,
    board: &'static Board,
    killed: std::cell::Cell<bool>,
    /// Counts the runs of a scenario.
    number: usize,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a str, point: &'a str, visit: u32, number: usize) -> Self {
        // SAFETY: alarm is always safe; its signal ends the process.
        unsafe { libc::alarm(WATCHDOG) };
        static BOARD: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        let at = *BOARD.get_or_init(|| {
            // SAFETY: a new mapping.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size_of::<Board>(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            at as usize
        });
        // SAFETY: mapped above for ever, zeroed, atomics only.
        let board = unsafe { &*(at as *const Board) };
        board
            .seen
            .iter()
            .chain(&board.sent)
            .for_each(|a| a.store(0, SeqCst));
        board.done.store(0, SeqCst);
        Self {
            scenario,
            point,
            visit,
            board,
            killed: false.into(),
            number,
        }
    }

    fn killed(&self) -> bool {
        self.killed.get()
    }

    /// Forks the victim, armed.
    fn victim(&self, work: impl FnOnce()) -> Child {
        Child::fork(|| {
            if !self.point.is_empty() {
                fault::arm(self.point, self.visit);
            }
            work();
        })
    }

    fn check(&self, condition: bool, what: impl std::fmt::Display) {
        assert!(
            condition,
            "{}, killed at {:?} (visit {}): {what}",
            self.scenario, self.point, self.visit
        );
    }

    fn received(&self, message: &Message) {
        let id = self.verify(message);
        let before = self.board.seen[id].fetch_add(1, SeqCst);
        self.check(before == 0, format_args!("message {id} was received twice"));
    }

    fn verify(&self, message: &Message) -> usize {
        let bytes = message.bytes();
        self.check(bytes.len() >= 4, "a torn message");
        let id = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
        let whole = bytes.len() == size_of_message(id)
            && bytes[4..].iter().all(|&b| b == id as u8)
            && message.buffers.len() == usize::from(has_buffer(id))
            && message
                .buffers
                .iter()
                .all(|b| b.len() == 60_000 && b.iter().all(|&b| b == id as u8));
        self.check(whole, format_args!("message {id} is torn"));
        id as usize
    }

    /// Everything was received once, but for one message that the victim may have had in hand.
    fn all_arrived(&self, siblings: u32) {
        self.all_arrived_but(siblings, 1);
    }

    fn all_arrived_but(&self, siblings: u32, in_hand: usize) {
        let board = self.board;
        let missing: Vec<usize> = (0..IDS)
            .filter(|&id| {
                let sent = (id as u32) < siblings || board.sent[id].load(SeqCst) == 1;
                sent && board.seen[id].load(SeqCst) == 0
            })
            .collect();
        let allowed = in_hand * usize::from(self.killed());
        self.check(missing.len() <= allowed, format_args!("lost: {missing:?}"));
    }

    /// Reaps the victim if it has ended, as a parent does, and says whether it has.
    fn bury(&self, victim: &Child) -> bool {
        let Some(status) = victim.poll() else {
            return false;
        };
        let by_kill = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        self.check(
            by_kill || status == 0,
            format_args!("the victim failed: {status:#x}"),
        );
        self.killed.set(by_kill);
        self.check(!self.point.is_empty() || !by_kill, "killed without reason");
        true
    }
}

fn size_of_message(id: u32) -> usize {
    match id {
        _ if has_buffer(id) => 4,
        _ if id.is_multiple_of(13) => 70_000,
        _ if id.is_multiple_of(5) => 9_000,
        _ => 40,
    }
}

fn has_buffer(id: u32) -> bool {
    id.is_multiple_of(11)
}

fn body(id: u32) -> Vec<u8> {
    let mut bytes = vec![id as u8; size_of_message(id)];
    bytes[..4].copy_from_slice(&id.to_ne_bytes());
    bytes
}

fn buffers(id: u32) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    if has_buffer(id) {
        buffers.push(Buffer::copy(Arena::get().unwrap(), &[id as u8; 60_000]).unwrap());
    }
    buffers
}

fn put(queue: &Queue, id: u32) {
    let bytes = body(id);
    let parts = [&bytes[..]];
    let mut letter = queue.letter(&parts, 0, buffers(id)).unwrap();
    retry(|| queue.put(&mut letter, None)).unwrap();
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    loop {
        match call() {
            Err(error) if error.is_interrupted() => {}
            done => return done,
        }
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(2))
}

struct Child {
    pid: libc::pid_t,
    status: std::cell::Cell<Option<i32>>,
}

impl Child {
    fn fork(work: impl FnOnce()) -> Self {
        fork::prepare();
        // SAFETY: this program has one thread.
        match unsafe { libc::fork() } {
            0 => {
                fork::child();
                // SAFETY: the watchdog is not inherited.
                unsafe { libc::alarm(WATCHDOG) };
                let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
                // SAFETY: ends the child here.
                unsafe { libc::_exit(i32::from(failed)) }
            }
            pid => {
                fork::parent();
                assert!(pid > 0, "cannot fork");
                Self {
                    pid,
                    status: None.into(),
                }
            }
        }
    }

    /// Waits until it has ended; it stays for others to find and to bury.
    fn wait_unburied(&self) {
        // SAFETY: all-zero bytes are a siginfo, which the call fills.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let how = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: our own child, not waited for yet.
        let waited = unsafe { libc::waitid(libc::P_PID, self.pid as u32, &mut info, how) };
        assert_eq!(waited, 0);
    }

    /// Whether it sleeps, and not just waits for a processor.
    fn is_asleep(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        stat.rsplit(')').next().unwrap().starts_with(" S")
    }

    /// The child's status once it has ended; it is reaped then.
    fn poll(&self) -> Option<i32> {
        self.wait_with(libc::WNOHANG)
    }

    fn wait(&self) -> i32 {
        self.wait_with(0).unwrap()
    }

    fn wait_with(&self, flags: i32) -> Option<i32> {
        if self.status.get().is_none() {
            let mut status = 0;
            // SAFETY: our own child, not waited for yet.
            if unsafe { libc::waitpid(self.pid, &mut status, flags) } == self.pid {
                self.status.set(Some(status));
                Arena::get().unwrap().reap_pid(self.pid as u32);
            }
        }
        self.status.get()
    }
}

/// Runs a scenario and compares the blocks in use before and after.
fn audited(run: &Run, scenario: impl FnOnce()) {
    let arena = Arena::get().unwrap();
    arena.reap_all();
    let before = arena.usage();
    scenario();
    arena.reap_all();
    let after = arena.usage();
    // An end of a pipe that is lost keeps its pipe, and that its segments: one object with what it
    // holds.
    let held = |usage: &Usage, kind: u32| usage.kinds.get(&kind).map_or(0, |count| count.0);
    let mut allowed = before.blocks() + u64::from(run.killed());
    if held(&after, PIPE) > held(&before, PIPE) {
        allowed += held(&after, PIPE).saturating_sub(held(&before, PIPE));
        allowed += held(&after, SEGMENT).saturating_sub(held(&before, SEGMENT));
    }
    run.check(
        held(&after, COOLING) == 0,
        "a block that was being given back is not put back",
    );
    run.check(
        run.point.is_empty() || after.blocks() <= allowed,
        format_args!("blocks lost:\n{before:?}\n{after:?}"),
    );
}

/// A producer that lives, a victim that puts and takes, a parent that takes.
fn queue(run: &Run, bound: Option<u64>) {
    const SIBLINGS: u32 = 150;
    audited(run, || {
        let queue = Queue::new(bound).unwrap();
        let sibling = Child::fork(|| (0..SIBLINGS).for_each(|id| put(&queue, id)));
        let victim = run.victim(|| {
            for id in VICTIMS..VICTIMS + 200 {
                put(&queue, id);
                run.board.sent[id as usize].store(1, SeqCst);
                if id % 3 > 0
                    && let Ok(message) = retry(|| queue.get(soon()))
                {
                    run.received(&message);
                }
            }
        });
        loop {
            let over = run.bury(&victim) && sibling.poll().is_some();
            match retry(|| queue.get(soon())) {
                Ok(message) => run.received(&message),
                Err(error) => {
                    run.check(error.is_empty(), &error);
                    if over {
                        break;
                    }
                }
            }
        }
        run.check(sibling.wait() == 0, "a sibling failed");
        run.check(queue.len().unwrap() == 0, "something is left");
        run.all_arrived(SIBLINGS);
    });
}

/// A queue whose descriptor the victim and the parent poll.
fn watched(run: &Run) {
    const SIBLINGS: u32 = 60;
    audited(run, || {
        let queue = Queue::new(None).unwrap();
        let victim = run.victim(|| {
            queue.exposed_fd().unwrap();
            for id in VICTIMS..VICTIMS + 60 {
                put(&queue, id);
                run.board.sent[id as usize].store(1, SeqCst);
                if let Some(message) = queue.try_get().unwrap() {
                    run.received(&message);
                }
            }
        });
        let sibling = Child::fork(|| (0..SIBLINGS).for_each(|id| put(&queue, id)));
        loop {
            let over = run.bury(&victim) && sibling.poll().is_some();
            let fd = queue.exposed_fd().unwrap();
            if readable(fd, if over { 0 } else { 5 }) {
                if let Some(message) = queue.try_get().unwrap() {
                    run.received(&message);
                }
            } else if over {
                break;
            }
        }
        run.check(sibling.wait() == 0, "a sibling failed");
        run.check(
            queue.len().unwrap() == 0,
            "something is left that poll does not show",
        );
        run.all_arrived(SIBLINGS);
    });
}

fn readable(fd: i32, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, ours.
    unsafe { libc::poll(&mut poll, 1, milliseconds) > 0 }
}

fn send(end: &End, id: u32) -> Result<(), Error> {
    let bytes = body(id);
    let parts = [&bytes[..]];
    let mut letter = end.letter(&parts, 0, buffers(id)).unwrap();
    retry(|| end.send(&mut letter, None))
}

/// A victim and a sibling at one end, the parent at the other, messages both ways.
fn pipe(run: &Run, polled: bool) {
    const SIBLINGS: u32 = 60;
    const BACK: u32 = 1000;
    audited(run, || {
        let (ours, theirs) = pipe::pipe().unwrap();
        let victim = run.victim(|| {
            if let Ok(message) = retry(|| theirs.recv(soon())) {
                run.received(&message);
            }
            for id in VICTIMS..VICTIMS + 60 {
                send(&theirs, id).unwrap();
                run.board.sent[id as usize].store(1, SeqCst);
                if let Ok(message) = retry(|| theirs.recv(soon())) {
                    run.received(&message);
                }
            }
        });
        let sibling = Child::fork(|| {
            for id in 0..SIBLINGS {
                send(&theirs, id).unwrap();
            }
            // All that comes back is taken by somebody.
            while victim_is_there(run) {
                if let Ok(message) = retry(|| theirs.recv(soon())) {
                    run.received(&message);
                }
            }
            while let Ok(message) = retry(|| theirs.recv(soon())) {
                run.received(&message);
            }
        });
        drop(theirs);
        let mut back = BACK;
        loop {
            if run.bury(&victim) {
                run.board.done.store(1, SeqCst);
            }
            if polled && !readable(std::os::fd::AsRawFd::as_raw_fd(&ours.exposed_fd()), 2) {
                continue;
            }
            match retry(|| ours.recv(soon())) {
                Ok(message) => run.received(&message),
                Err(error) if error.is_closed() => break,
                Err(error) => run.check(error.is_timeout(), &error),
            }
            if back < BACK + 40 && run.board.done.load(SeqCst) == 0 && send(&ours, back).is_ok() {
                run.board.sent[back as usize].store(1, SeqCst);
                back += 1;
            }
        }
        run.check(sibling.wait() == 0, "a sibling failed");
        victim.wait();
        run.all_arrived(SIBLINGS);
    });
}

/// A victim that sends, while the parent holds the same end and never uses it: neither a later
/// message nor the end of file wakes the reader.
fn lonely(run: &Run) {
    const MESSAGES: u32 = 30;
    const FAREWELL: usize = 0;
    audited(run, || {
        let (ours, theirs) = pipe::pipe().unwrap();
        let reader = Child::fork(|| {
            while run.board.seen[FAREWELL].load(SeqCst) == 0 {
                run.received(&retry(|| ours.recv(None)).unwrap());
            }
        });
        let victim = run.victim(|| {
            for id in VICTIMS..VICTIMS + MESSAGES {
                send(&theirs, id).unwrap();
                run.board.sent[id as usize].store(1, SeqCst);
                // Now and then the reader has gone to sleep.
                while id % 4 == 0 && !reader.is_asleep() {
                    std::thread::yield_now();
                }
            }
        });
        victim.wait_unburied();
        // What was sent is received, with nothing to wake the reader any more: or else the watchdog
        // ends this. (A message in the victim's hand may come with the farewell, or not at all.)
        let due = |id: usize| run.board.sent[id].load(SeqCst) > run.board.seen[id].load(SeqCst);
        while (0..IDS).any(due) {
            std::thread::yield_now();
        }
        run.bury(&victim);
        send(&theirs, FAREWELL as u32).unwrap();
        run.check(reader.wait() == 0, "the reader failed");
        run.all_arrived(1);
    });
}

fn victim_is_there(run: &Run) -> bool {
    run.board.done.load(SeqCst) == 0
}

/// A victim that makes, shares, books and drops objects, and forks, beside others that do.
fn objects(run: &Run) {
    let churn = || {
        let arena = Arena::get().unwrap();
        let kept = Shared::create(Lock::new()).unwrap();
        for i in 0..60usize {
            let event = Shared::create(Event::new()).unwrap();
            let again = Shared::<Event>::attach(event.family(), event.handle()).unwrap();
            let others: Vec<_> = (0..i % 5)
                .map(|_| Shared::create(Lock::new()).unwrap())
                .collect();
            let buffer = Buffer::copy(arena, &vec![1; 1000 + i * 3000]).unwrap();
            drop((again, others, buffer));
            if i % 10 == 5 {
                arena.trim();
            }
            // Held by a child's place alone for a moment, and then attached from outside.
            let child = arena.reserve_child().unwrap();
            kept.book_for(child).unwrap();
            event.book_for(child).unwrap();
            let handle = event.handle();
            drop(event);
            drop(Shared::<Event>::attach(arena.family(), handle).unwrap());
            arena.cancel(child);
            if i % 20 == 7 {
                let (other, end) = pipe::pipe().unwrap();
                let mut letter = other.letter(&[b"x"], 0, Vec::new()).unwrap();
                retry(|| other.send(&mut letter, None)).unwrap();
                retry(|| end.recv(None)).unwrap();
                assert!(retry(|| end.recv(soon())).is_err());
                let held = Buffer::copy(arena, &[3; 80_000]).unwrap();
                Child::fork(|| assert_eq!(kept.clone().arena().me(), arena.me())).wait();
                assert!(held.iter().all(|&b| b == 3));
            }
        }
    };
    audited(run, || {
        let parents = Shared::create(Lock::new()).unwrap();
        let handle = parents.handle();
        let sibling = Child::fork(churn);
        let victim = run.victim(|| {
            // More than any run before: the free lists do not have so many.
            let fresh = run.point.starts_with("alloc.");
            let many = if fresh { 600 * run.number } else { 0 };
            let locks: Vec<_> = (0..many)
                .map(|_| Shared::create(Lock::new()).unwrap())
                .collect();
            drop(locks);
            churn();
        });
        churn();
        run.check(sibling.wait() == 0, "a sibling failed");
        victim.wait();
        run.bury(&victim);
        let again = Shared::<Lock>::attach(parents.family(), handle);
        run.check(again.is_ok(), "an object that is held is gone");
    });
}

/// A member dies with its hands full, and whoever reaps it dies over that.
fn reaping(run: &Run) {
    audited(run, || {
        let arena = Arena::get().unwrap();
        let queue = Queue::new(None).unwrap();
        let rich = Child::fork(|| {
            let mut held = Vec::new();
            for i in 0..200 {
                held.push(Shared::create(Lock::new()).unwrap());
                std::mem::forget(Buffer::new(arena, 60_000 + i).unwrap());
            }
            std::mem::forget(held);
            run.board.done.store(1, SeqCst);
            loop {
                std::thread::park();
            }
        });
        while run.board.done.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        // SAFETY: our own child; not waited for yet, so that it is the victim that reaps it.
        unsafe { libc::kill(rich.pid, libc::SIGKILL) };
        let victim = run.victim(|| {
            while arena.reap_all() == 0 {
                std::thread::yield_now();
            }
        });
        victim.wait();
        run.bury(&victim);
        rich.wait();
        arena.reap_all();
        run.check(
            !arena.member_pids().contains(&(rich.pid as u32)),
            "the dead is still a member",
        );
        put(&queue, 1);
        run.received(&queue.get(None).unwrap());
    });
}

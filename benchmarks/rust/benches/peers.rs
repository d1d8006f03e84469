//! The crate beside other crates, and beside what the machine can do: `make bench-rust`.
//!
//! Each group is one piece of work between two processes, by phalanx, by its peers, and bare: spinning
//! on a shared word, a futex, a memcpy, a fork. rayon, in one process, is the bound for pools.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use phalanx::{Pipe, Pool, Process, Queue};
use rayon::prelude::*;
use serde_bytes::ByteBuf;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

fn take<T, E: std::fmt::Debug>(result: Result<T, E>) {
    black_box(result.unwrap());
}

/// Forks a child that does `work` and ends; `meanwhile` runs in this process until it has ended.
fn beside<R>(work: impl FnOnce(), meanwhile: impl FnOnce() -> R) -> R {
    // SAFETY: the child does its work and leaves by `_exit`; the benchmarks have no other threads
    // but rayon's idle ones, which the child does not use.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            work();
            libc::_exit(0);
        }
        let result = meanwhile();
        libc::waitpid(child, std::ptr::null_mut(), 0);
        result
    }
}

/// Two words that a forked child shares.
fn shared_words() -> &'static [AtomicU32; 2] {
    // SAFETY: a new mapping of zeros, never unmapped.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        &*at.cast()
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word is mapped; there is no timeout.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, 0, 0, 0);
    }
}

// Small messages, one way

fn produce((queue, count): (Queue<u64>, u64)) {
    (0..count).for_each(|n| queue.put(n).unwrap());
}

fn produce_many((queue, count): (Queue<u64>, u64)) {
    for begin in (0..count).step_by(100) {
        let end = count.min(begin + 100);
        queue.put_many((begin..end).collect()).unwrap();
    }
}

fn one_way(group: &mut Group<'_>) {
    group.throughput(Throughput::Elements(1));
    group.bench_function("phalanx queue", |b| {
        b.iter_custom(|count| {
            let queue = Queue::new().unwrap();
            let child = Process::spawn(produce, (queue.clone(), count + 1)).unwrap();
            queue.get().unwrap();
            let time = timed(|| (0..count).for_each(|_| take(queue.get())));
            child.join().unwrap();
            time
        });
    });
    group.bench_function("phalanx queue, 100 at a time", |b| {
        b.iter_custom(|count| {
            let queue = Queue::new().unwrap();
            let child = Process::spawn(produce_many, (queue.clone(), count + 1)).unwrap();
            queue.get().unwrap();
            let mut left = count;
            let time = timed(|| {
                while left > 0 {
                    let most = left.min(100) as usize;
                    queue.get_many(most).unwrap().into_iter().for_each(|item| {
                        take(item);
                        left -= 1;
                    });
                }
            });
            child.join().unwrap();
            time
        });
    });
    group.bench_function("ipc-channel", |b| {
        b.iter_custom(|count| {
            let (sender, receiver) = ipc_channel::ipc::channel::<u64>().unwrap();
            let send = || (0..=count).for_each(|n| sender.send(n).unwrap());
            beside(send, || {
                receiver.recv().unwrap();
                timed(|| (0..count).for_each(|_| take(receiver.recv())))
            })
        });
    });
}

// Small messages, there and back

fn echo((pipe, count): (Pipe<u64, u64>, u64)) {
    (0..count).for_each(|_| pipe.send(pipe.recv().unwrap()).unwrap());
}

fn round_trip(group: &mut Group<'_>) {
    group.bench_function("phalanx pipe", |b| {
        b.iter_custom(|count| {
            let (here, there) = Pipe::<u64, u64>::new().unwrap();
            let child = Process::spawn(echo, (there, count + 1)).unwrap();
            let trip = || {
                here.send(7).unwrap();
                black_box(here.recv().unwrap());
            };
            trip();
            let time = timed(|| (0..count).for_each(|_| trip()));
            child.join().unwrap();
            time
        });
    });
    group.bench_function("ipc-channel", |b| {
        b.iter_custom(|count| {
            let (to_child, in_child) = ipc_channel::ipc::channel::<u64>().unwrap();
            let (from_child, here) = ipc_channel::ipc::channel::<u64>().unwrap();
            let answer =
                || (0..=count).for_each(|_| from_child.send(in_child.recv().unwrap()).unwrap());
            beside(answer, || {
                let trip = || {
                    to_child.send(7).unwrap();
                    black_box(here.recv().unwrap());
                };
                trip();
                timed(|| (0..count).for_each(|_| trip()))
            })
        });
    });
    // The limits: two processes that spin, and two that sleep.
    for (name, sleeping) in [("bare: spinning", false), ("bare: futex", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|count| {
                let words = shared_words();
                let wait = |word: &AtomicU32, not: u32| {
                    while word.load(Acquire) == not {
                        if sleeping {
                            futex(word, libc::FUTEX_WAIT, not);
                        } else {
                            spin_loop();
                        }
                    }
                };
                let set = |word: &AtomicU32, to: u32| {
                    word.store(to, Release);
                    if sleeping {
                        futex(word, libc::FUTEX_WAKE, 1);
                    }
                };
                let count = count as u32;
                let answer = || {
                    (1..=count).for_each(|n| {
                        wait(&words[0], n - 1);
                        set(&words[1], n);
                    });
                };
                beside(answer, || {
                    timed(|| {
                        (1..=count).for_each(|n| {
                            set(&words[0], n);
                            wait(&words[1], n - 1);
                        });
                    })
                })
            });
        });
    }
}

// Large messages

const LARGE: usize = 1 << 20;

// As bytes: serde takes a `Vec<u8>` apart into its numbers.
fn produce_large((queue, count): (Queue<ByteBuf>, u64)) {
    let data = ByteBuf::from(vec![7; LARGE]);
    (0..count).for_each(|_| queue.put(data.clone()).unwrap());
}

fn large(group: &mut Group<'_>) {
    group.throughput(Throughput::Bytes(LARGE as u64));
    group.bench_function("phalanx queue", |b| {
        b.iter_custom(|count| {
            let queue = Queue::<ByteBuf>::bounded(8).unwrap();
            let child = Process::spawn(produce_large, (queue.clone(), count + 1)).unwrap();
            queue.get().unwrap();
            let time = timed(|| (0..count).for_each(|_| take(queue.get())));
            child.join().unwrap();
            time
        });
    });
    group.bench_function("ipc-channel", |b| {
        b.iter_custom(|count| {
            let (sender, receiver) = ipc_channel::ipc::bytes_channel().unwrap();
            let data = vec![7; LARGE];
            let send = || (0..=count).for_each(|_| sender.send(&data).unwrap());
            beside(send, || {
                receiver.recv().unwrap();
                timed(|| (0..count).for_each(|_| take(receiver.recv())))
            })
        });
    });
    group.bench_function("bare: memcpy", |b| {
        let (data, mut copy) = (vec![7; LARGE], vec![0; LARGE]);
        b.iter(|| {
            copy.copy_from_slice(black_box(&data));
            black_box(&copy);
        });
    });
}

// Processes

fn nothing((): ()) {}

fn start(group: &mut Group<'_>) {
    group.bench_function("phalanx process", |b| {
        b.iter(|| Process::spawn(nothing, ()).unwrap().join().unwrap());
    });
    group.bench_function("procspawn", |b| {
        b.iter(|| procspawn::spawn((), nothing).join().unwrap());
    });
    group.bench_function("bare: fork", |b| b.iter(|| beside(|| (), || ())));
}

// Many calls

/// Some 20 µs.
fn work(seed: u64) -> u64 {
    (0..20_000).fold(seed, |x, _| {
        x.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17)
    })
}

fn same(item: u64) -> u64 {
    item
}

fn map(group: &mut Group<'_>, function: fn(u64) -> u64, pool_map: impl Fn(&Pool, u64)) {
    const ITEMS: u64 = 10_000;
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    group.throughput(Throughput::Elements(ITEMS));
    group.bench_function("phalanx pool", |b| {
        let pool = Pool::new(workers).unwrap();
        b.iter(|| pool_map(&pool, ITEMS));
        pool.join().unwrap();
    });
    group.bench_function("procspawn pool", |b| {
        let pool = procspawn::Pool::new(workers).unwrap();
        b.iter(|| {
            // Each call that is under way has a descriptor.
            for begin in (0..ITEMS).step_by(100) {
                let calls: Vec<_> = (begin..begin + 100)
                    .map(|item| pool.spawn(item, function))
                    .collect();
                calls.into_iter().for_each(|call| take(call.join()));
            }
        });
        pool.shutdown();
    });
    group.bench_function("rayon, in one process", |b| {
        b.iter(|| black_box((0..ITEMS).into_par_iter().map(function).collect::<Vec<_>>()));
    });
}

fn main() {
    phalanx::init();
    procspawn::init();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(10)
        .configure_from_args();
    let mut group = |name: &str, run: &dyn Fn(&mut Group<'_>)| {
        let mut group = criterion.benchmark_group(name);
        run(&mut group);
        group.finish();
    };
    group("small messages one way", &one_way);
    group("round trip", &round_trip);
    group("1 MiB messages one way", &large);
    group("start and join", &start);
    group("map of trivial calls", &|group| {
        map(group, same, |pool, n| take(pool.map(0..n, same)));
    });
    group("map of calls of 20 µs", &|group| {
        map(group, work, |pool, n| take(pool.map(0..n, work)));
    });
    criterion.final_summary();
}

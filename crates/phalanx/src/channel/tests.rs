use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;

use super::{Letter, Log, Patience, Pushed, Queue, Run};
use crate::arena::{Arena, Buffer, Shared};
use crate::testing::{Counter, in_child};

fn put(queue: &Queue, parts: &[&[u8]], tag: u16) {
    let mut letter = queue.letter(parts, tag, Vec::new()).unwrap();
    while let Err(error) = queue.put(&mut letter, None) {
        assert!(error.is_interrupted(), "{error}");
    }
}

fn try_put(queue: &Queue, parts: &[&[u8]]) -> bool {
    queue
        .try_put(
            &mut queue.letter(parts, 1, Vec::new()).unwrap(),
            Patience::Wait,
        )
        .unwrap()
}

fn push(log: &Log, parts: &[&[u8]], tag: u16, buffers: Vec<Buffer>) {
    let mut letter = Letter::new(Arena::get().unwrap(), parts, tag, buffers).unwrap();
    let pushed = log.push(&mut letter, Patience::Wait, |_, _| true).unwrap();
    assert!(matches!(pushed, Pushed::Number(_)));
}

#[test]
fn smoke() {
    let queue = Queue::new(None).unwrap();
    assert!(queue.is_empty().unwrap());
    put(&queue, &[b"one", b"two"], 3);
    put(&queue, &[], 0);
    assert_eq!(queue.len().unwrap(), 2);
    let message = queue.get(None).unwrap();
    assert_eq!(
        (message.bytes(), message.tag, message.number),
        (&b"onetwo"[..], 3, 0)
    );
    assert_eq!(queue.get(None).unwrap().bytes(), b"");
    let now = Some(std::time::Instant::now());
    assert!(queue.get(now).unwrap_err().is_empty());
}

#[test]
fn order_and_content_hold_across_segments() {
    let log = Log::new();
    let arena = Arena::get().unwrap();
    let mut model = VecDeque::new();
    let mut seed = 1u64;
    for step in 0..20_000u64 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        if seed >> 33 & 1 == 0 || model.is_empty() {
            let len = match seed >> 40 & 15 {
                0 => 20_000,
                1 => super::message::INLINE + (seed >> 50) as usize,
                _ => (seed >> 50) as usize % 300,
            };
            let bytes: Vec<u8> = (0..len).map(|i| (i as u64 ^ step) as u8).collect();
            push(&log, &[&bytes], step as u16 & 7, Vec::new());
            model.push_back((bytes, step as u16 & 7));
        } else {
            let message = log.pop(arena).unwrap().unwrap();
            let (bytes, tag) = model.pop_front().unwrap();
            assert_eq!(message.tag, tag);
            assert!(message.bytes() == bytes, "message {}", message.number);
        }
        assert_eq!(log.len(arena).unwrap(), model.len() as u64);
    }
    log.clear(arena);
}

#[test]
fn runs_and_single_messages_keep_their_order() {
    let queue = Queue::new(Some(500)).unwrap();
    let mut sent = 0_u32;
    let mut received = 0_u32;
    let is_next = |received: &mut u32, bytes: &[u8]| {
        assert_eq!(bytes[..4], received.to_ne_bytes());
        assert_eq!(bytes.len(), 4 + (*received as usize * 7) % 900);
        *received += 1;
    };
    for round in 0..400 {
        let body = |id: u32| {
            let mut bytes = id.to_ne_bytes().to_vec();
            bytes.resize(4 + (id as usize * 7) % 900, 1);
            bytes
        };
        let mut run = Run::new();
        for _ in 0..round % 9 {
            assert!(run.add(&body(sent), 5));
            sent += 1;
        }
        queue.put_run(&mut run, None).unwrap();
        assert!(run.is_empty() && run.size() == 0);
        put(&queue, &[&body(sent)], 6 + (round % 2) as u16);
        sent += 1;
        let mut taken = Run::new();
        let count = queue.try_get_run(&mut taken, 7, 2000, |tag| tag < 7);
        assert_eq!(count.unwrap(), taken.len());
        for (_, bytes) in taken.iter() {
            is_next(&mut received, bytes);
        }
        if round % 3 == 0 && sent > received {
            is_next(&mut received, queue.get(None).unwrap().bytes());
        }
        while sent - received > 480 {
            is_next(&mut received, queue.get(None).unwrap().bytes());
        }
        assert_eq!(queue.len().unwrap(), u64::from(sent - received));
    }
    let mut run = Run::new();
    (0..1000).for_each(|_| assert!(run.add(b"full", 0)));
    let room = 500 - (sent - received) as usize;
    assert_eq!(queue.try_put_run(&mut run, Patience::Wait).unwrap(), room);
    assert_eq!(run.len(), 1000 - room);
}

#[test]
fn buffers_travel_without_a_copy() {
    let queue = Queue::new(None).unwrap();
    let arena = Arena::get().unwrap();
    let buffer = Buffer::copy(arena, &vec![9; 300_000]).unwrap();
    let address = buffer.as_mut_ptr();
    let mut letter = queue.letter(&[b"x"], 0, vec![buffer]).unwrap();
    assert!(queue.try_put(&mut letter, Patience::Wait).unwrap());
    let message = queue.get(None).unwrap();
    assert_eq!(message.buffers[0].as_mut_ptr(), address);
    assert!(message.buffers[0].iter().all(|&b| b == 9));
}

#[test]
fn a_bounded_queue_blocks_and_goes_on() {
    let queue = Queue::new(Some(2)).unwrap();
    let total = 5_000u32;
    let producer = in_child(|| {
        for i in 0..total {
            put(&queue, &[&i.to_ne_bytes()], 0);
        }
    });
    for i in 0..total {
        assert!(queue.len().unwrap() <= 2);
        assert_eq!(queue.get(None).unwrap().bytes(), i.to_ne_bytes());
    }
    producer.wait();
    assert!(try_put(&queue, &[]) && try_put(&queue, &[]));
    let big = vec![5; 200_000];
    let parts: [&[u8]; 1] = [&big];
    let mut letter = queue.letter(&parts, 4, Vec::new()).unwrap();
    assert!(!queue.try_put(&mut letter, Patience::Wait).unwrap());
    let now = Some(std::time::Instant::now());
    assert!(queue.put(&mut letter, now).unwrap_err().is_full());
    assert!(queue.try_get().unwrap().is_some() && queue.try_get().unwrap().is_some());
    queue.put(&mut letter, None).unwrap();
    assert!(
        queue.get(None).unwrap().bytes() == big,
        "a letter that found no room goes later"
    );
}

#[test]
fn many_to_many_nothing_lost_nothing_twice() {
    let queue = Queue::new(None).unwrap();
    let sum = Shared::create(Counter(0.into())).unwrap();
    let (producers, each) = (3u64, 4_000u64);
    let work = |k: u64| {
        let queue = queue.clone();
        move || {
            for i in 0..each {
                put(&queue, &[&(k * each + i).to_ne_bytes()], 0);
            }
        }
    };
    let makers: Vec<_> = (0..producers).map(|k| in_child(work(k))).collect();
    let eaters: Vec<_> = (0..2)
        .map(|_| {
            in_child(|| {
                loop {
                    let message = queue.get(None).unwrap();
                    if message.bytes().is_empty() {
                        return;
                    }
                    let number = u64::from_ne_bytes(message.bytes().try_into().unwrap());
                    sum.0.fetch_add(number + 1, SeqCst);
                }
            })
        })
        .collect();
    makers.into_iter().for_each(|m| m.wait());
    eaters.iter().for_each(|_| put(&queue, &[], 0));
    eaters.into_iter().for_each(|e| e.wait());
    let n = producers * each;
    assert_eq!(sum.0.load(SeqCst), n * (n + 1) / 2);
}

#[test]
fn killed_producers_and_consumers_stop_nobody() {
    let queue = Queue::new(None).unwrap();
    let beat = Shared::create(Counter(0.into())).unwrap();
    for round in 0..40u64 {
        let victim = in_child(|| {
            for i in 0u64.. {
                if round % 2 == 0 {
                    put(&queue, &[&i.to_ne_bytes(), &[0; 500]], 0);
                } else {
                    try_put(&queue, &[&i.to_ne_bytes()]);
                    queue.try_get().unwrap();
                }
                beat.0.fetch_add(1, SeqCst);
            }
        });
        let start = beat.0.load(SeqCst);
        while beat.0.load(SeqCst) < start + 50 + round {
            std::thread::yield_now();
        }
        victim.kill();
        put(&queue, &[b"mine"], 7);
        loop {
            let message = queue.get(None).unwrap();
            if message.tag == 7 {
                assert_eq!(message.bytes(), b"mine");
                break;
            }
        }
        assert_eq!(queue.len().unwrap(), 0);
    }
}

#[test]
fn task_done_and_join() {
    let queue = Queue::new(None).unwrap();
    queue.join(None).unwrap();
    assert!(queue.task_done().unwrap_err().is_invalid());
    put(&queue, &[b"x"], 0);
    let now = Some(std::time::Instant::now());
    assert!(queue.join(now).unwrap_err().is_timeout());
    let worker = in_child(|| {
        queue.get(None).unwrap();
        queue.task_done().unwrap();
    });
    queue.join(None).unwrap();
    worker.wait();
    assert_eq!(queue.unfinished(), 0);
}

#[test]
fn work_of_the_dead_counts_as_done() {
    let queue = Queue::joinable(None).unwrap();
    for _ in 0..3 {
        put(&queue, &[b"x"], 0);
    }
    queue.get(None).unwrap();
    in_child(|| {
        queue.get(None).unwrap();
        queue.get(None).unwrap();
        queue.task_done().unwrap();
    })
    .wait();
    let now = Some(std::time::Instant::now());
    assert!(queue.join(now).unwrap_err().is_timeout());
    queue.task_done().unwrap();
    queue.join(None).unwrap();
    assert!(queue.task_done().unwrap_err().is_invalid());
}

#[test]
fn a_dropped_queue_gives_its_memory_back() {
    let arena = Arena::get().unwrap();
    let log = Log::new();
    for _ in 0..50 {
        let big = Buffer::copy(arena, &[1; 100_000]).unwrap();
        push(&log, &[&[2; 3000]], 0, vec![big]);
    }
    let full = arena.usage().bytes();
    log.clear(arena);
    // Other tests allocate at the same time, but not so much.
    assert!(arena.usage().bytes() + 40 * 100_000 <= full);
}

fn send(end: &super::pipe::End, bytes: &[u8]) -> crate::Result<()> {
    let parts = [bytes];
    end.send(&mut end.letter(&parts, 0, Vec::new())?, None)
}

#[test]
fn pipe_smoke() {
    let (a, b) = super::pipe::pipe().unwrap();
    send(&a, b"there").unwrap();
    assert_eq!(b.recv(None).unwrap().bytes(), b"there");
    send(&b, b"back").unwrap();
    assert_eq!(a.recv(None).unwrap().bytes(), b"back");
    let now = Some(std::time::Instant::now());
    assert!(a.recv(now).unwrap_err().is_timeout());
    send(&a, &[3; 300_000]).unwrap();
    drop(a);
    assert_eq!(b.recv(None).unwrap().bytes().len(), 300_000);
    assert!(b.recv(None).unwrap_err().is_closed());
    assert!(send(&b, b"x").unwrap_err().is_peer_death());
}

#[test]
fn pipe_there_and_back_between_processes() {
    let (a, b) = super::pipe::pipe().unwrap();
    let child = in_child(|| {
        for _ in 0..3000 {
            let message = b.recv(None).unwrap();
            send(&b, message.bytes()).unwrap();
        }
    });
    for i in 0..3000u32 {
        send(&a, &i.to_ne_bytes()).unwrap();
        assert_eq!(a.recv(None).unwrap().bytes(), i.to_ne_bytes());
    }
    child.wait();
}

#[test]
fn pipe_sender_waits_for_room() {
    let (a, b) = super::pipe::pipe().unwrap();
    let child = in_child(|| {
        for i in 0..300u32 {
            let size = if i % 50 == 0 { 400_000 } else { 20_000 };
            send(&b, &vec![i as u8; size]).unwrap();
        }
    });
    for i in 0..300u32 {
        let message = a.recv(None).unwrap();
        assert!(message.bytes().iter().all(|&x| x == i as u8));
    }
    child.wait();
    // Nobody reads: the sender fills the pipe and is told when the reader dies.
    let reader = in_child(|| {
        loop {
            std::thread::park();
        }
    });
    drop(a);
    let sender = std::thread::spawn(move || {
        loop {
            if let Err(error) = send(&b, &[0; 50_000]) {
                return error;
            }
        }
    });
    reader.kill();
    assert!(sender.join().unwrap().is_peer_death());
}

#[test]
fn pipe_end_is_seen_when_the_peer_is_killed() {
    let (a, b) = super::pipe::pipe().unwrap();
    let child = in_child(|| {
        send(&b, b"last words").unwrap();
        loop {
            std::thread::park();
        }
    });
    drop(b);
    assert_eq!(a.recv(None).unwrap().bytes(), b"last words");
    let killer = std::thread::spawn(move || child.kill());
    assert!(a.recv(None).unwrap_err().is_closed());
    killer.join().unwrap();
}

#[test]
fn an_exposed_descriptor_is_readable_when_there_is_something() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let readable = |end: &super::pipe::End| {
        let fd = end.exposed_fd();
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    let (a, b) = super::pipe::pipe().unwrap();
    send(&a, b"before anybody polled").unwrap();
    assert!(readable(&b));
    b.recv(None).unwrap();
    assert!(!readable(&b));
    for _ in 0..3 {
        send(&a, b"x").unwrap();
        send(&a, b"y").unwrap();
        assert!(readable(&b));
        b.recv(None).unwrap();
        assert!(readable(&b));
        b.recv(None).unwrap();
        assert!(!readable(&b));
    }
    drop(a);
    assert!(readable(&b));
}

#[test]
fn a_watched_queue_is_readable_while_there_is_something() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let queue = Queue::new(None).unwrap();
    let readable = |time: i64| {
        let fd = queue.exposed_fd().unwrap();
        // SAFETY: the queue keeps the descriptor open.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let time = Timespec {
            tv_sec: time,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).unwrap() == 1
    };
    put(&queue, &[b"before"], 0);
    assert!(readable(0));
    queue.get(None).unwrap();
    assert!(!readable(0));
    for _ in 0..20 {
        let child = in_child(|| {
            put(&queue, &[b"x"], 0);
            put(&queue, &[b"y"], 0);
        });
        assert!(readable(60));
        queue.get(None).unwrap();
        assert!(readable(60));
        queue.get(None).unwrap();
        assert!(!readable(0));
        child.wait();
    }
    // Who watched and was killed is forgotten.
    let (asked, child_queue) = (Queue::new(None).unwrap(), queue.clone());
    let child = in_child(|| {
        child_queue.exposed_fd().unwrap();
        put(&asked, &[], 0);
        loop {
            std::thread::park();
        }
    });
    asked.get(None).unwrap();
    child.kill();
    put(&queue, &[b"z"], 0);
    assert!(readable(0));
}

#[test]
fn a_pipe_decides_once_what_carries_its_messages() {
    let (a, b) = super::pipe::pipe().unwrap();
    assert!(b.use_arena() && a.use_arena());
    assert!(!a.use_stream() && !b.is_stream());
    send(&a, b"by the arena").unwrap();
    assert_eq!(b.recv(None).unwrap().bytes(), b"by the arena");

    let (a, b) = super::pipe::pipe().unwrap();
    assert!(b.use_stream() && a.use_stream());
    assert!(!a.use_arena() && a.is_stream());
    // The sockets are a stream and nothing else: a waiter leaves their bytes alone.
    rustix::io::write(a.socket(), b"raw").unwrap();
    assert!(b.wait(None).unwrap());
    let mut bytes = [0; 8];
    assert_eq!(rustix::io::read(b.socket(), &mut bytes).unwrap(), 3);
    assert_eq!(&bytes[..3], b"raw");
}

#[test]
fn a_receiver_notices_that_the_pipe_has_become_a_stream() {
    let (a, b) = super::pipe::pipe().unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            while !b.is_stream() {
                b.wait(None).unwrap();
            }
            b
        });
        assert!(a.use_stream());
        rustix::io::write(a.socket(), b"!").unwrap();
        let b = receiver.join().unwrap();
        assert_eq!(rustix::io::read(b.socket(), &mut [0; 8]).unwrap(), 1);
    });
}

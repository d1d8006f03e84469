//! Pipes of values between processes.

mod common;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use common::sleep_for_ever;
use phalanx::{Pipe, Process, Queue, Receiver, Sender};

common::tests![
    smoke,
    question_and_answer,
    the_end_is_seen_after_the_last_message,
    several_ends_at_once,
    the_death_of_the_other_end_is_seen,
    a_full_pipe_makes_the_sender_wait,
    a_descriptor_to_poll,
    killed_at_any_time,
    an_end_travels_only_with_a_start,
    round_trips,
];

fn smoke() {
    let (first, second) = Pipe::<u8, String>::new().unwrap();
    first.send(7).unwrap();
    assert_eq!(second.recv().unwrap(), 7);
    assert!(second.try_recv().unwrap().is_none());
    second.send("back".into()).unwrap();
    assert_eq!(first.recv().unwrap(), "back");
    assert!(
        first
            .recv_timeout(Duration::from_millis(5))
            .unwrap_err()
            .is_timeout()
    );
    drop(second);
    assert!(first.recv().unwrap_err().is_closed());
    let error = first.send(1).unwrap_err();
    assert!(error.is_peer_death());
    assert_eq!(error.into_inner(), 1);
}

fn question_and_answer() {
    type Server = Pipe<(String, f64, HashMap<String, u8>), u32>;
    let (here, there) = Pipe::new().unwrap();
    let child = Process::spawn(
        |pipe: Server| {
            for n in pipe.iter() {
                let n = n.unwrap();
                let map = HashMap::from([("n".to_owned(), n as u8)]);
                pipe.send((format!("<{n}>"), f64::from(n) / 2.0, map))
                    .unwrap();
            }
        },
        there,
    )
    .unwrap();
    for n in 0..200u32 {
        here.send(n).unwrap();
        let (text, half, map) = here.recv().unwrap();
        assert_eq!(
            (text, half, map["n"]),
            (format!("<{n}>"), f64::from(n) / 2.0, n as u8)
        );
    }
    drop(here);
    child.join().unwrap();
}

fn the_end_is_seen_after_the_last_message() {
    let (sender, receiver) = Pipe::one_way().unwrap();
    let child = Process::spawn(
        |sender: Sender<Vec<u32>>| {
            for n in 0..500 {
                sender.send(vec![n; 3]).unwrap();
            }
            sender.send(vec![1; 100_000]).unwrap();
        },
        sender,
    )
    .unwrap();
    let all: Vec<_> = receiver.iter().map(Result::unwrap).collect();
    assert_eq!(
        (all.len(), all[499][2], all[500].len()),
        (501, 499, 100_000)
    );
    assert!(receiver.recv().unwrap_err().is_closed());
    assert!(receiver.try_recv().unwrap_err().is_closed());
    child.join().unwrap();
}

fn several_ends_at_once() {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (sender, receiver) = Pipe::one_way().unwrap();
        senders.push(sender);
        receivers.push(receiver);
    }
    let child = Process::spawn(
        |senders: Vec<Sender<usize>>| {
            for (i, sender) in senders.iter().enumerate() {
                sender.send(i).unwrap();
            }
        },
        senders,
    )
    .unwrap();
    for (i, receiver) in receivers.iter().enumerate() {
        assert_eq!(receiver.recv().unwrap(), i);
    }
    child.join().unwrap();
    assert!(receivers[0].recv().unwrap_err().is_closed());
}

fn the_death_of_the_other_end_is_seen() {
    let (here, there) = Pipe::<u8>::new().unwrap();
    let child = Process::spawn(
        |pipe: Pipe<u8>| {
            pipe.send(1).unwrap();
            sleep_for_ever();
        },
        there,
    )
    .unwrap();
    assert_eq!(here.recv().unwrap(), 1);
    child.kill().unwrap();
    assert!(here.recv().unwrap_err().is_closed());
    assert!(child.join().unwrap_err().is_peer_death());
    assert!(here.send(1).unwrap_err().is_peer_death());
}

fn a_full_pipe_makes_the_sender_wait() {
    let (sender, receiver) = Pipe::one_way().unwrap();
    let long = vec![5u8; 50_000];
    let mut sent = 0;
    while sender
        .send_timeout(long.clone(), Duration::from_millis(10))
        .is_ok()
    {
        sent += 1;
    }
    assert!(sent > 1);
    let child = Process::spawn(
        |receiver: Receiver<Vec<u8>>| receiver.iter().map(|m| m.unwrap().len()).sum::<usize>(),
        receiver,
    )
    .unwrap();
    for _ in 0..50 {
        sender.send(long.clone()).unwrap();
    }
    drop(sender);
    assert_eq!(child.join().unwrap(), (sent + 50) * 50_000);
}

fn a_descriptor_to_poll() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let (sender, receiver) = Pipe::one_way().unwrap();
    let ready = |receiver: &Receiver<u8>| {
        let fd = receiver.as_fd();
        let now = Timespec::default();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() > 0
    };
    assert!(!ready(&receiver));
    sender.send(1).unwrap();
    assert!(ready(&receiver));
    receiver.recv().unwrap();
    assert!(!ready(&receiver));
    drop(sender);
    assert!(ready(&receiver), "the end");
}

fn killed_at_any_time() {
    for i in 0..40u64 {
        let (sender, receiver) = Pipe::one_way().unwrap();
        let child: Process<()> = Process::spawn(
            |sender: Sender<(u64, Vec<u64>)>| {
                for n in 0.. {
                    let len = if n % 5 == 0 { 9_000 } else { 2 };
                    if sender.send((n, vec![n; len])).is_err() {
                        break;
                    }
                }
            },
            sender,
        )
        .unwrap();
        let mut next = 0;
        let mut take = |(n, list): (u64, Vec<u64>)| {
            assert_eq!(n, next);
            assert!(list.iter().all(|&item| item == n));
            next += 1;
        };
        (0..i * 3).for_each(|_| take(receiver.recv().unwrap()));
        child.kill().unwrap();
        receiver.iter().for_each(|message| take(message.unwrap()));
        assert!(child.join().unwrap_err().is_peer_death());
    }
}

fn an_end_travels_only_with_a_start() {
    let queue = Queue::new().unwrap();
    let (sender, receiver) = Pipe::<u8>::one_way().unwrap();
    let error = queue.put(sender).unwrap_err();
    assert!(error.is_unsupported(), "{error}");
    let sender = error.into_inner();
    // And a start that fails leaves it as it was.
    let failed = Process::builder()
        .current_dir("/no/such/place")
        .spawn(|receiver: Receiver<u8>| drop(receiver), receiver);
    assert!(failed.is_err());
    assert!(
        sender.send(1).unwrap_err().is_peer_death(),
        "dropped with the argument"
    );
}

fn round_trips() {
    const TRIPS: u32 = 20_000;
    let (here, there) = Pipe::<u32>::new().unwrap();
    let child = Process::spawn(
        |pipe: Pipe<u32>| pipe.iter().for_each(|n| pipe.send(n.unwrap()).unwrap()),
        there,
    )
    .unwrap();
    let start = std::time::Instant::now();
    for n in 0..TRIPS {
        here.send(n).unwrap();
        assert_eq!(here.recv().unwrap(), n);
    }
    let rate = f64::from(TRIPS) / start.elapsed().as_secs_f64();
    println!("  {rate:.0} round trips a second");
    drop(here);
    child.join().unwrap();
}

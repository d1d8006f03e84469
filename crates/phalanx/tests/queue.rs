//! Queues of values between processes.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::sleep_for_ever;
use phalanx::{Process, Queue};
use serde::{Deserialize, Serialize};

common::tests![
    smoke,
    items_of_all_kinds,
    large_items_one_after_the_other,
    bounds_and_timeouts,
    an_undelivered_item_comes_back,
    many_producers_and_consumers,
    joined_before_it_is_read,
    a_queue_in_a_queue,
    a_queue_in_a_struct,
    work_is_reported_as_done,
    closing_ends_all_waiting,
    closing_now_throws_away,
    many_at_a_time,
    many_with_timeouts,
    what_cannot_be_put_comes_back,
    one_of_many_that_is_gone,
    many_that_are_reported_as_done,
    closing_ends_many,
    producers_killed_at_any_time,
    producers_of_many_killed_at_any_time,
    consumers_killed_at_any_time,
    throughput,
];

fn smoke() {
    let queue = Queue::new().unwrap();
    assert!(queue.is_empty().unwrap() && queue.try_get().unwrap().is_none());
    queue.put(1).unwrap();
    queue.put(2).unwrap();
    assert_eq!((queue.len().unwrap(), queue.capacity()), (2, None));
    assert_eq!((queue.get().unwrap(), queue.clone().get().unwrap()), (1, 2));
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
enum Item {
    Nothing,
    Words {
        list: Vec<String>,
        by: BTreeMap<u8, f32>,
    },
    Pair(i128, Option<char>),
}

fn items_of_all_kinds() {
    let queue = Queue::new().unwrap();
    let words = Item::Words {
        list: vec!["a".repeat(200_000), String::new()],
        by: BTreeMap::from([(1, 0.5)]),
    };
    let items = [Item::Nothing, words, Item::Pair(-1, Some('ß'))];
    for item in &items {
        queue.put(item.clone()).unwrap();
    }
    let echo = Process::spawn(
        |queue: Queue<Item>| (0..3).map(|_| queue.get().unwrap()).collect::<Vec<_>>(),
        queue,
    );
    assert_eq!(echo.unwrap().join().unwrap(), items);
}

fn large_items_one_after_the_other() {
    // Some above and some below what is kept for the next one, and small ones between.
    let sizes = [1 << 20, 3, 5 << 20, 0, 60_000, 2 << 20, 10, 6 << 20];
    let body = |size: usize| serde_bytes::ByteBuf::from(vec![size as u8 | 1; size]);
    let queue = Queue::bounded(2).unwrap();
    let child = Process::spawn(
        |(queue, sizes): (Queue<serde_bytes::ByteBuf>, Vec<usize>)| {
            for size in sizes {
                let item = queue.get().unwrap();
                assert!(item.len() == size && item.iter().all(|&byte| byte == size as u8 | 1));
            }
        },
        (queue.clone(), sizes.to_vec()),
    );
    sizes
        .iter()
        .for_each(|&size| queue.put(body(size)).unwrap());
    child.unwrap().join().unwrap();
}

fn bounds_and_timeouts() {
    assert!(Queue::<u8>::bounded(0).unwrap_err().is_invalid());
    let queue = Queue::bounded(2).unwrap();
    let moment = Duration::from_millis(20);
    let begin = Instant::now();
    assert!(queue.get_timeout(moment).unwrap_err().is_empty());
    queue.put(1).unwrap();
    queue.try_put(2).unwrap();
    assert!(queue.put_timeout(3, moment).unwrap_err().is_full());
    assert!(begin.elapsed() >= 2 * moment);
    let child = Process::spawn(|queue: Queue<i32>| queue.put(3).unwrap(), queue.clone()).unwrap();
    assert_eq!([1, 2, 3], [(); 3].map(|()| queue.get().unwrap()));
    child.join().unwrap();
}

fn an_undelivered_item_comes_back() {
    let queue = Queue::bounded(1).unwrap();
    queue.put("first".to_owned()).unwrap();
    let back = queue.try_put("second".to_owned()).unwrap_err();
    assert!(back.is_full());
    assert_eq!(back.into_inner(), "second");
    fn with_question_mark(queue: &Queue<String>) -> phalanx::Result<()> {
        queue.try_put("third".into())?;
        Ok(())
    }
    assert!(with_question_mark(&queue).unwrap_err().is_full());
}

fn many_producers_and_consumers() {
    let (numbers, sums) = (Queue::bounded(50).unwrap(), Queue::new().unwrap());
    let producers: Vec<_> = (0..3u64)
        .map(|i| {
            Process::spawn(
                |(queue, i): (Queue<Option<u64>>, u64)| {
                    for n in 0..2_000 {
                        queue.put(Some(n * 3 + i)).unwrap();
                    }
                },
                (numbers.clone(), i),
            )
            .unwrap()
        })
        .collect();
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            Process::spawn(
                |(queue, sums): (Queue<Option<u64>>, Queue<u64>)| {
                    let mut sum = 0;
                    while let Some(n) = queue.get().unwrap() {
                        sum += n;
                    }
                    sums.put(sum).unwrap();
                },
                (numbers.clone(), sums.clone()),
            )
            .unwrap()
        })
        .collect();
    producers.into_iter().for_each(|p| p.join().unwrap());
    consumers.iter().for_each(|_| numbers.put(None).unwrap());
    consumers.into_iter().for_each(|c| c.join().unwrap());
    let total = sums.get().unwrap() + sums.get().unwrap();
    assert_eq!(total, (0..6_000).sum::<u64>());
}

fn joined_before_it_is_read() {
    let queue = Queue::new().unwrap();
    let child = Process::spawn(
        |queue: Queue<(u32, String)>| {
            let text = "x".repeat(1000);
            for n in 0..20_000 {
                queue.put((n, text.clone())).unwrap();
            }
        },
        queue.clone(),
    );
    child.unwrap().join().unwrap();
    assert_eq!(queue.len().unwrap(), 20_000);
    for n in 0..20_000 {
        let (number, text) = queue.get().unwrap();
        assert_eq!((number, text.len()), (n, 1000));
    }
    assert!(queue.is_empty().unwrap());
}

fn a_queue_in_a_queue() {
    type Request = (u32, Queue<u32>);
    let requests = Queue::<Request>::new().unwrap();
    let server = Process::spawn(
        |requests: Queue<Request>| {
            for _ in 0..10 {
                let (n, reply) = requests.get().unwrap();
                reply.put(n * n).unwrap();
            }
        },
        requests.clone(),
    )
    .unwrap();
    let reply = Queue::new().unwrap();
    for n in 0..10 {
        requests.put((n, reply.clone())).unwrap();
        assert_eq!(reply.get().unwrap(), n * n);
    }
    server.join().unwrap();
    // Nobody kept it: the receiver is told.
    requests.put((1, Queue::new().unwrap())).unwrap();
    assert!(requests.get().unwrap_err().is_gone());
}

fn a_queue_in_a_struct() {
    #[derive(Serialize, Deserialize)]
    struct Job {
        name: String,
        out: Queue<String>,
        more: Vec<Queue<u8>>,
    }
    let job = Job {
        name: "job".into(),
        out: Queue::new().unwrap(),
        more: (0..50).map(|_| Queue::new().unwrap()).collect(),
    };
    let out = job.out.clone();
    let child = Process::spawn(
        |job: Job| {
            job.more.iter().for_each(|queue| queue.put(1).unwrap());
            job.out.put(job.name).unwrap();
        },
        job,
    );
    child.unwrap().join().unwrap();
    assert_eq!(out.get().unwrap(), "job");
}

fn work_is_reported_as_done() {
    let queue = Queue::new().unwrap();
    (0..20).for_each(|n: i32| queue.put(n).unwrap());
    assert!(
        queue
            .join_timeout(Duration::from_millis(10))
            .unwrap_err()
            .is_timeout()
    );
    let worker = Process::spawn(
        |queue: Queue<i32>| {
            while queue.try_get().unwrap().is_some() {
                queue.task_done().unwrap();
            }
        },
        queue.clone(),
    );
    queue.join().unwrap();
    assert!(queue.is_empty().unwrap());
    assert!(queue.task_done().unwrap_err().is_invalid());
    worker.unwrap().join().unwrap();
}

fn producers_killed_at_any_time() {
    let queue = Queue::<(u32, u64, Vec<u64>)>::new().unwrap();
    let mut next = BTreeMap::new();
    for i in 0..30u32 {
        let child = Process::spawn(
            |(queue, i): (Queue<(u32, u64, Vec<u64>)>, u32)| {
                for n in 0.. {
                    // Small ones and ones with a buffer of their own.
                    let len = if n % 7 == 0 { 9_000 } else { 3 };
                    queue.put((i, n, vec![n; len])).unwrap();
                }
            },
            (queue.clone(), i),
        )
        .unwrap();
        let take = |next: &mut BTreeMap<u32, u64>, (i, n, list): (u32, u64, Vec<u64>)| {
            assert_eq!(*next.get(&i).unwrap_or(&0), n, "in order, none missing");
            assert!(list.iter().all(|&item| item == n), "whole");
            next.insert(i, n + 1);
        };
        for _ in 0..(i * 5) {
            take(&mut next, queue.get().unwrap());
        }
        child.kill().unwrap();
        assert!(child.join().unwrap_err().is_peer_death());
        while let Some(item) = queue.try_get().unwrap() {
            take(&mut next, item);
        }
    }
    queue.put((99, 0, vec![])).unwrap();
    assert_eq!(queue.get().unwrap().0, 99);
}

fn consumers_killed_at_any_time() {
    let queue = Queue::<u64>::bounded(10).unwrap();
    let seen = Queue::<u64>::new().unwrap();
    let mut put = 0;
    for i in 0..20u64 {
        let child = Process::spawn(
            |(queue, seen): (Queue<u64>, Queue<u64>)| {
                loop {
                    seen.put(queue.get().unwrap()).unwrap();
                }
            },
            (queue.clone(), seen.clone()),
        );
        let child: Process<()> = child.unwrap();
        for _ in 0..(20 + i * 7) {
            queue.put(put).unwrap();
            put += 1;
        }
        child.kill().unwrap();
        assert!(child.join().unwrap_err().is_peer_death());
    }
    let last = Process::spawn(
        |queue: Queue<u64>| -> () {
            drop(queue);
            sleep_for_ever()
        },
        queue.clone(),
    )
    .unwrap();
    last.kill().unwrap();
    let mut all = Vec::new();
    while let Some(n) = seen.try_get().unwrap() {
        all.push(n);
    }
    while let Some(n) = queue.try_get().unwrap() {
        all.push(n);
    }
    assert!(
        all.windows(2).all(|pair| pair[0] < pair[1]),
        "in order, none twice"
    );
    assert!(
        put - all.len() as u64 <= 20,
        "each of the dead took one with it at most"
    );
}

fn throughput() {
    const ITEMS: u64 = 500_000;
    let queue = Queue::new().unwrap();
    let start = Instant::now();
    let child = Process::spawn(
        |queue: Queue<u64>| (0..ITEMS).for_each(|n| queue.put(n).unwrap()),
        queue.clone(),
    );
    for n in 0..ITEMS {
        assert_eq!(queue.get().unwrap(), n);
    }
    let rate = ITEMS as f64 / start.elapsed().as_secs_f64();
    println!("  {rate:.0} items a second from one process to another");
    child.unwrap().join().unwrap();
}

fn closing_ends_all_waiting() {
    let queue = Queue::<u32>::bounded(1).unwrap();
    let empty = Queue::<u32>::new().unwrap();
    queue.put(1).unwrap();
    let putter = Process::spawn(
        |queue: Queue<u32>| queue.put(2).unwrap_err().is_closed(),
        queue.clone(),
    );
    let getters = [(); 2].map(|()| {
        let get = |empty: Queue<u32>| empty.get().unwrap_err().is_closed();
        Process::spawn(get, empty.clone()).unwrap()
    });
    queue.close().unwrap();
    empty.close().unwrap();
    assert!(putter.unwrap().join().unwrap());
    assert!(getters.into_iter().all(|getter| getter.join().unwrap()));
    assert!(queue.is_closed() && queue.put(3).unwrap_err().is_closed());
    assert_eq!(queue.get().unwrap(), 1);
    assert!(queue.try_get().unwrap_err().is_closed());
}

fn closing_now_throws_away() {
    let queue = Queue::new().unwrap();
    (0..5).for_each(|_| queue.put("x".repeat(100_000)).unwrap());
    queue.get().unwrap();
    queue.close_now().unwrap();
    assert!(queue.is_empty().unwrap() && queue.get().unwrap_err().is_closed());
    assert!(queue.join_timeout(Duration::ZERO).unwrap_err().is_timeout());
    queue.task_done().unwrap();
    queue.join().unwrap();
    assert!(queue.task_done().unwrap_err().is_invalid());
    queue.close().unwrap();
}

/// Small ones, and some that travel alone.
fn words(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| n.to_string().repeat(if n % 50 == 7 { 2_000 } else { 2 }))
        .collect()
}

fn many_at_a_time() {
    const ITEMS: usize = 5_000;
    for queue in [Queue::new().unwrap(), Queue::bounded(300).unwrap()] {
        let child = Process::spawn(
            |queue: Queue<String>| queue.put_many(words(ITEMS)).unwrap(),
            queue.clone(),
        );
        let mut received = Vec::new();
        while received.len() < ITEMS {
            let items = queue.get_many(1_000).unwrap();
            assert!((1..=1_000).contains(&items.len()));
            received.extend(items.into_iter().map(Result::unwrap));
        }
        assert_eq!(received, words(ITEMS));
        child.unwrap().join().unwrap();
        assert!(queue.try_get_many(1).unwrap().is_empty());
    }
}

fn many_with_timeouts() {
    let queue = Queue::bounded(5).unwrap();
    queue.put_many(vec![]).unwrap();
    let moment = Duration::from_millis(20);
    let begin = Instant::now();
    assert!(queue.get_many_timeout(3, moment).unwrap_err().is_empty());
    let left = queue
        .put_many_timeout((0..8).collect(), moment)
        .unwrap_err();
    assert!(left.is_full());
    assert_eq!(left.into_inner(), [5, 6, 7]);
    assert!(begin.elapsed() >= 2 * moment);
    assert!(queue.get_many(0).unwrap_err().is_invalid());
    let three = queue.get_many_timeout(3, moment).unwrap();
    assert_eq!(three.into_iter().map(Result::unwrap).sum::<i32>(), 3);
    assert_eq!(queue.len().unwrap(), 2);
}

fn what_cannot_be_put_comes_back() {
    /// A number that refuses to be sent when it is 3.
    #[derive(Clone, Debug, PartialEq, Deserialize)]
    struct Number(u32);
    impl Serialize for Number {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                3 => Err(serde::ser::Error::custom("not 3")),
                number => (number,).serialize(serializer),
            }
        }
    }
    let queue = Queue::new().unwrap();
    let left = queue.put_many((0..6).map(Number).collect()).unwrap_err();
    assert!(left.is_invalid(), "{left}");
    assert_eq!(left.into_inner(), [3, 4, 5].map(Number));
    let items = queue.get_many(10).unwrap().into_iter();
    assert!(items.map(Result::unwrap).eq((0..3).map(Number)));
}

fn one_of_many_that_is_gone() {
    let queue = Queue::<(u32, Option<Queue<u8>>)>::new().unwrap();
    let kept = Queue::new().unwrap();
    let gone = Queue::new().unwrap();
    queue
        .put_many(vec![(0, None), (1, Some(gone)), (2, Some(kept.clone()))])
        .unwrap();
    // Dropped with the vector; nobody else has kept it.
    let mut items = queue.get_many(10).unwrap().into_iter();
    assert_eq!(items.next().unwrap().unwrap().0, 0);
    assert!(items.next().unwrap().unwrap_err().is_gone());
    let (number, received) = items.next().unwrap().unwrap();
    assert!(number == 2 && items.next().is_none());
    received.unwrap().put(7).unwrap();
    assert_eq!(kept.get().unwrap(), 7);
}

fn many_that_are_reported_as_done() {
    let queue = Queue::new().unwrap();
    queue.put_many((0..20).collect()).unwrap();
    let taken_and_killed = |queue: Queue<i32>| -> () {
        assert_eq!(queue.get_many(15).unwrap().len(), 15);
        std::process::abort()
    };
    let child = Process::spawn(taken_and_killed, queue.clone()).unwrap();
    assert!(child.join().unwrap_err().is_peer_death());
    assert_eq!(queue.get_many(100).unwrap().len(), 5);
    (0..5).for_each(|_| queue.task_done().unwrap());
    queue.join().unwrap();
}

fn closing_ends_many() {
    let queue = Queue::<u32>::bounded(10).unwrap();
    let putter = Process::spawn(
        |queue: Queue<u32>| {
            let left = queue.put_many((0..100).collect()).unwrap_err();
            assert!(left.is_closed());
            left.into_inner().len()
        },
        queue.clone(),
    )
    .unwrap();
    while queue.len().unwrap() < 10 {
        std::thread::yield_now();
    }
    queue.close().unwrap();
    assert_eq!(putter.join().unwrap(), 90);
    assert_eq!(queue.get_many(100).unwrap().len(), 10);
    assert!(queue.get_many(100).unwrap_err().is_closed());
    assert!(queue.try_get_many(100).unwrap_err().is_closed());
}

fn producers_of_many_killed_at_any_time() {
    let queue = Queue::<(u32, u64)>::new().unwrap();
    for i in 0..20u32 {
        let child: Process<()> = Process::spawn(
            |(queue, i): (Queue<(u32, u64)>, u32)| {
                for n in (0..).step_by(70) {
                    queue
                        .put_many((n..n + 70).map(|n| (i, n)).collect())
                        .unwrap();
                }
            },
            (queue.clone(), i),
        )
        .unwrap();
        let mut next = 0;
        let mut take = |items: Vec<phalanx::Result<(u32, u64)>>| {
            for item in items {
                assert_eq!(item.unwrap(), (i, next), "in order, none missing");
                next += 1;
            }
        };
        for _ in 0..=i {
            take(queue.get_many(33).unwrap());
        }
        child.kill().unwrap();
        assert!(child.join().unwrap_err().is_peer_death());
        while !queue.is_empty().unwrap() {
            take(queue.get_many(1_000).unwrap());
        }
    }
}

//! Pools: results, errors, and workers that die.

mod common;

use std::time::Duration;

use common::{runs, until};
use phalanx::{Pool, Process, Queue, Value};

common::tests![
    smoke,
    results_in_order,
    large_arguments_and_results,
    a_panic_costs_its_task_only,
    a_death_costs_its_task_only,
    an_exit_is_a_death,
    workers_killed_at_any_time,
    results_as_they_come,
    lazy_inputs_are_not_run_ahead_of,
    tasks_of_several_threads,
    tasks_are_waited_for_one_by_one,
    shared_objects_in_tasks,
    join_waits_for_all,
    a_dropped_pool_leaves_nothing,
    workers_die_with_their_parent,
    what_cannot_be_sent_is_refused,
    pools_in_workers,
    throughput,
];

fn square(n: u64) -> u64 {
    n * n
}

/// Ends this process as the system does.
fn die() {
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
    common::sleep_for_ever();
}

fn smoke() {
    assert!(Pool::new(0).unwrap_err().is_invalid());
    let pool = Pool::new(2).unwrap();
    assert_eq!((pool.workers(), pool.worker_ids().len()), (2, 2));
    assert_eq!(pool.apply(square, 12).unwrap(), 144);
    assert_eq!(pool.map([1, 2, 3], square).unwrap(), [1, 4, 9]);
    assert_eq!(pool.map([], square).unwrap(), []);
    let name = pool
        .apply(|()| phalanx::process_name().to_owned(), ())
        .unwrap();
    assert!(name.starts_with("PoolWorker-"), "{name}");
    pool.join().unwrap();
}

fn results_in_order() {
    let pool = Pool::new(3).unwrap();
    let results = pool.map(0..5_000, |n: u64| (n, n % 7)).unwrap();
    assert!(
        results
            .iter()
            .enumerate()
            .all(|(i, &(n, m))| n == i as u64 && m == n % 7)
    );
}

fn large_arguments_and_results() {
    let pool = Pool::new(2).unwrap();
    let items: Vec<Vec<u8>> = (0..6).map(|n| vec![n; 500_000 * usize::from(n)]).collect();
    let results = pool.map(items.clone(), |mut bytes: Vec<u8>| {
        bytes.reverse();
        bytes
    });
    assert_eq!(results.unwrap(), items);
}

fn a_panic_costs_its_task_only() {
    let pool = Pool::new(2).unwrap();
    let before = pool.worker_ids();
    let work = |n: u32| {
        assert!(n != 5, "not with {n}");
        n
    };
    let error = pool.map(0..10, work).unwrap_err();
    assert!(
        error.is_panic() && error.to_string().contains("not with 5"),
        "{error}"
    );
    let each = pool.map_each(0..10, work);
    assert_eq!(each.iter().filter(|result| result.is_ok()).count(), 9);
    assert!(each[5].is_err());
    assert_eq!(pool.worker_ids(), before, "the worker goes on");
}

fn a_death_costs_its_task_only() {
    let pool = Pool::new(2).unwrap();
    let each = pool.map_each(0..60, |n: u32| {
        if n % 20 == 10 {
            die();
        }
        n
    });
    for (n, result) in each.into_iter().enumerate() {
        match result {
            Ok(same) => assert_eq!(same as usize, n),
            Err(error) => {
                assert!(error.is_peer_death() && n % 20 == 10, "{n}: {error}");
                assert_eq!(error.exit_status().unwrap().signal(), Some(9));
            }
        }
    }
    assert_eq!(pool.apply(square, 3).unwrap(), 9);
    assert_eq!(pool.worker_ids().len(), 2);
}

fn an_exit_is_a_death() {
    let pool = Pool::new(1).unwrap();
    let error = pool
        .apply(|code: i32| -> u8 { std::process::exit(code) }, 4)
        .unwrap_err();
    assert!(
        error.is_peer_death() && error.to_string().contains("exit code 4"),
        "{error}"
    );
    assert_eq!(pool.apply(square, 2).unwrap(), 4);
}

fn workers_killed_at_any_time() {
    let pool = Pool::new(3).unwrap();
    let (stop, mut lost) = (Value::new(false).unwrap(), 0);
    let done = Value::new(0_u64).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0u64.. {
                // After the last kill something has been done: where processes start slowly, no
                // worker would live long enough otherwise.
                let before = done.get();
                std::thread::sleep(Duration::from_micros(2_000 + i % 7 * 900));
                until(|| stop.get() || done.get() != before);
                if stop.get() {
                    break;
                }
                let Some(&pid) = pool.worker_ids().get(i as usize % 3) else {
                    continue;
                };
                let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        for round in 0..20 {
            let each = pool.map_each((0..3_000).map(|n| (n, done.clone())), busy);
            for (n, result) in each.into_iter().enumerate() {
                match result {
                    Ok(same) => assert_eq!(same, n as u64 + 1, "in round {round}"),
                    Err(error) => {
                        assert!(error.is_peer_death(), "{error}");
                        lost += 1;
                    }
                }
            }
        }
        stop.set(true);
    });
    println!("  {lost} of 60000 tasks died with their worker");
    assert_eq!(pool.map(0..10, square).unwrap()[9], 81);
}

/// Takes some time, most of which a worker spends here.
fn busy((n, done): (u64, Value<u64>)) -> u64 {
    let sum: u64 = (0..20_000).map(std::hint::black_box).sum();
    done.set(n);
    n + sum.min(1)
}

fn results_as_they_come() {
    let pool = Pool::new(2).unwrap();
    let gate = Queue::<u8>::new().unwrap();
    let items = [(0, gate.clone()), (1, gate.clone()), (2, gate.clone())];
    let mut results = pool.imap_unordered(items, |(n, gate): (u8, Queue<u8>)| {
        if n == 0 {
            gate.get().unwrap();
        }
        n
    });
    let first = [
        results.next().unwrap().unwrap(),
        results.next().unwrap().unwrap(),
    ];
    assert_eq!(first, [1, 2]);
    gate.put(0).unwrap();
    assert_eq!(results.next().unwrap().unwrap(), 0);
    assert!(results.next().is_none() && results.next().is_none());
    let ordered: Vec<u64> = pool.imap(0..500, square).map(Result::unwrap).collect();
    assert_eq!(ordered, (0..500).map(square).collect::<Vec<_>>());
}

fn lazy_inputs_are_not_run_ahead_of() {
    let pool = Pool::new(2).unwrap();
    let asked = std::cell::Cell::new(0u64);
    let endless = std::iter::repeat_with(|| {
        asked.set(asked.get() + 1);
        asked.get()
    });
    let mut results = pool.imap(endless, square);
    for n in 1..=100 {
        assert_eq!(results.next().unwrap().unwrap(), n * n);
        assert!(asked.get() <= n + 2 * 8, "{} asked for at {n}", asked.get());
    }
}

fn tasks_of_several_threads() {
    let pool = Pool::new(2).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let pool = pool.clone();
            scope.spawn(move || {
                for n in 0..300 {
                    assert_eq!(
                        pool.apply(square, t * 1_000 + n).unwrap(),
                        square(t * 1_000 + n)
                    );
                }
                let all = pool.map(0..300, square).unwrap();
                assert_eq!(all[299], 299 * 299);
            });
        }
    });
}

fn tasks_are_waited_for_one_by_one() {
    let pool = Pool::new(1).unwrap();
    let gate = Queue::<u64>::new().unwrap();
    let mut slow = pool
        .spawn(|gate: Queue<u64>| gate.get().unwrap(), gate.clone())
        .unwrap();
    let quick = pool.spawn(square, 5).unwrap();
    assert!(slow.try_join().unwrap().is_none());
    assert!(
        slow.join_timeout(Duration::from_millis(60))
            .unwrap_err()
            .is_timeout()
    );
    gate.put(7).unwrap();
    assert_eq!(quick.join().unwrap(), 25);
    assert_eq!(slow.try_join().unwrap(), Some(7));
    assert!(slow.join().unwrap_err().is_invalid());
    drop(pool.spawn(square, 1).unwrap());
    assert_eq!(pool.apply(square, 2).unwrap(), 4);
}

fn shared_objects_in_tasks() {
    let pool = Pool::new(2).unwrap();
    let total = Value::new(0u64).unwrap();
    pool.map(
        (0..200).map(|n| (n, total.clone())),
        |(n, total): (u64, Value<u64>)| {
            total.fetch_add(n);
        },
    )
    .unwrap();
    assert_eq!(total.get(), (0..200).sum());
    // Nobody but the worker holds this one.
    let error = pool
        .apply(|()| Queue::<u8>::new().unwrap(), ())
        .unwrap_err();
    assert!(error.is_gone(), "{error}");
}

fn join_waits_for_all() {
    let pool = Pool::new(2).unwrap();
    let total = Value::new(0u64).unwrap();
    for n in 0..500u64 {
        drop(pool.spawn(
            |(n, total): (u64, Value<u64>)| total.fetch_add(n),
            (n, total.clone()),
        ));
    }
    let ids = pool.worker_ids();
    let other = pool.clone();
    pool.join().unwrap();
    assert_eq!(total.get(), (0..500).sum());
    assert!(ids.iter().all(|&pid| !runs(pid)));
    assert!(other.apply(square, 1).unwrap_err().is_closed());
}

fn a_dropped_pool_leaves_nothing() {
    let pool = Pool::new(3).unwrap();
    let ids = pool.worker_ids();
    let task = pool.spawn(|()| common::sleep_for_ever(), ()).unwrap();
    drop(pool);
    assert!(runs(ids[0]), "the task still holds the pool");
    drop(task);
    assert!(ids.iter().all(|&pid| !runs(pid)));
}

fn workers_die_with_their_parent() {
    let ids = Queue::<Vec<u32>>::new().unwrap();
    let parent: Process<()> = Process::spawn(
        |ids: Queue<Vec<u32>>| {
            let pool = Pool::new(2).unwrap();
            ids.put(pool.worker_ids()).unwrap();
            pool.map(0..4, |_: u8| common::sleep_for_ever()).unwrap();
        },
        ids.clone(),
    )
    .unwrap();
    let ids = ids.get().unwrap();
    assert!(ids.iter().all(|&pid| runs(pid)));
    parent.kill().unwrap();
    until(|| !ids.iter().any(|&pid| runs(pid)));
    assert!(parent.join().is_err());
}

fn what_cannot_be_sent_is_refused() {
    #[derive(serde::Serialize, serde::Deserialize, Clone)]
    #[serde(untagged)]
    enum Any {
        Number(u8),
    }
    let pool = Pool::new(1).unwrap();
    let error = pool
        .apply(|any: Any| matches!(any, Any::Number(1)), Any::Number(1))
        .unwrap_err();
    assert!(error.is_unsupported(), "{error}");
    let error = pool.apply(|()| Any::Number(1), ()).err().unwrap();
    assert!(error.is_unsupported(), "{error}");
    assert_eq!(pool.apply(square, 2).unwrap(), 4);
}

fn pools_in_workers() {
    let pool = Pool::new(1).unwrap();
    let sum = pool.apply(
        |n: u64| {
            Pool::new(2)
                .unwrap()
                .map(0..n, square)
                .unwrap()
                .iter()
                .sum::<u64>()
        },
        10,
    );
    assert_eq!(sum.unwrap(), 285);
}

fn throughput() {
    let pool = Pool::new(2).unwrap();
    pool.apply(square, 1).unwrap();
    let begin = std::time::Instant::now();
    let results = pool.map(0..50_000, square).unwrap();
    println!(
        "  {:.0} tasks a second",
        50_000.0 / begin.elapsed().as_secs_f64()
    );
    assert_eq!(results[49_999], 49_999 * 49_999);
}

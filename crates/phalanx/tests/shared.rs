//! What processes share and wait for: mutexes, values, arrays, semaphores, events, conditions,
//! barriers.

mod common;

use std::sync::TryLockError;
use std::time::{Duration, Instant};

use common::{sleep_for_ever, until};
use phalanx::{
    Array, Barrier, Condition, Event, Lock, Mutex, Process, Queue, RLock, Semaphore, Value,
};

common::tests![
    mutex_smoke,
    a_mutex_excludes,
    a_mutex_is_poisoned_by_death_and_by_panic,
    holders_killed_at_any_time,
    a_structure_under_a_mutex,
    value_smoke,
    values_are_added_to_without_loss,
    array_smoke,
    a_semaphore_lets_so_many_in,
    permits_of_the_dead_come_back,
    an_event_lets_all_go,
    a_condition_hands_over,
    a_killed_waiter_takes_no_notification,
    a_barrier_meets_in_rounds,
    a_barrier_breaks_when_a_party_dies,
    an_rlock_is_taken_again,
];

const MOMENT: Duration = Duration::from_millis(20);

fn mutex_smoke() {
    let mutex = Mutex::new(5u8).unwrap();
    let guard = mutex.lock().unwrap();
    assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
    let begin = Instant::now();
    assert!(matches!(
        mutex.lock_timeout(MOMENT),
        Err(TryLockError::WouldBlock)
    ));
    assert!(begin.elapsed() >= MOMENT);
    assert!(format!("{mutex:?}").contains("locked"));
    drop(guard);
    *mutex.try_lock().unwrap() += 1;
    assert!(format!("{mutex:?}").contains('6'));
    let lock = Lock::new(()).unwrap();
    drop(lock.lock().unwrap());
}

fn add(mutex: &Mutex<[u64; 2]>, n: u32) {
    for _ in 0..n {
        let mut both = mutex.lock().unwrap();
        both[0] += 1;
        both[1] = both[0];
    }
}

fn a_mutex_excludes() {
    let mutex = Mutex::new([0, 0]).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| Process::spawn(|m: Mutex<[u64; 2]>| add(&m, 5_000), mutex.clone()).unwrap())
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| add(&mutex, 1_000));
        scope.spawn(|| add(&mutex, 1_000));
    });
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!(*mutex.lock().unwrap(), [22_000; 2]);
}

fn a_mutex_is_poisoned_by_death_and_by_panic() {
    let (mutex, held) = (Mutex::new(1i64).unwrap(), Event::new().unwrap());
    let child = Process::spawn(
        |(mutex, held): (Mutex<i64>, Event)| {
            let mut guard = mutex.lock().unwrap();
            *guard = -1;
            held.set();
            sleep_for_ever();
        },
        (mutex.clone(), held.clone()),
    )
    .unwrap();
    held.wait();
    assert!(mutex.try_lock().is_err() && !mutex.is_poisoned());
    child.kill().unwrap();
    let mut guard = mutex.lock().unwrap_err().into_inner();
    assert_eq!(*guard, -1);
    *guard = 0;
    mutex.clear_poison();
    drop(guard);
    assert_eq!(*mutex.lock().unwrap(), 0);
    assert!(child.join().unwrap_err().is_peer_death());

    let child = Process::spawn(
        |mutex: Mutex<i64>| {
            let _guard = mutex.lock().unwrap();
            panic!("while it is held");
        },
        mutex.clone(),
    );
    let child: Process<()> = child.unwrap();
    assert!(child.join().unwrap_err().is_panic());
    assert!(mutex.is_poisoned() && mutex.lock().is_err());
}

fn holders_killed_at_any_time() {
    let mutex = Mutex::new([0u64; 2]).unwrap();
    let mut last = 0;
    let mut poisoned = 0;
    for i in 0..40u64 {
        let child: Process<()> = Process::spawn(
            |mutex: Mutex<[u64; 2]>| {
                loop {
                    let mut both = mutex.lock().unwrap();
                    both[0] += 1;
                    both[1] += 1;
                }
            },
            mutex.clone(),
        )
        .unwrap();
        std::thread::sleep(Duration::from_micros(900 + i * 30));
        child.kill().unwrap();
        let mut both = mutex.lock().unwrap_or_else(|error| {
            poisoned += 1;
            mutex.clear_poison();
            error.into_inner()
        });
        assert!(both[0] - both[1] <= 1 && both[0] >= last);
        both[1] = both[0];
        last = both[0];
        drop(both);
        assert!(child.join().unwrap_err().is_peer_death());
    }
    println!("  {poisoned} of 40 died with the lock");
}

phalanx::plain! {
    /// What several processes change together.
    #[derive(Debug, PartialEq)]
    struct Account {
        balance: i64,
        moves: u8,
        history: [f32; 4],
    }
}

fn a_structure_under_a_mutex() {
    let start = Account {
        balance: 10,
        moves: 0,
        history: [0.0; 4],
    };
    let account = Mutex::new(start).unwrap();
    let child = Process::spawn(
        |account: Mutex<Account>| {
            let mut account = account.lock().unwrap();
            account.balance -= 3;
            let moves = account.moves;
            account.history[usize::from(moves)] = -3.0;
            account.moves += 1;
        },
        account.clone(),
    );
    child.unwrap().join().unwrap();
    let expected = Account {
        balance: 7,
        moves: 1,
        history: [-3.0, 0.0, 0.0, 0.0],
    };
    assert_eq!(*account.lock().unwrap(), expected);
}

fn value_smoke() {
    let value = Value::new(-5i8).unwrap();
    assert_eq!(
        (value.get(), value.fetch_sub(124), value.get()),
        (-5, -5, 127)
    );
    assert_eq!(value.compare_exchange(1, 2), Err(127));
    assert_eq!(value.compare_exchange(127, -128), Ok(127));
    assert_eq!((value.swap(3), value.get()), (-128, 3));
    let float = Value::new(1.5f64).unwrap();
    float.fetch_add(-0.25);
    assert_eq!(
        (float.get(), float.fetch_update(|v| v * 2.0), float.get()),
        (1.25, 1.25, 2.5)
    );
    let (flag, letter) = (Value::new(true).unwrap(), Value::new('ß').unwrap());
    flag.set(!flag.get());
    assert_eq!((flag.get(), letter.get()), (false, 'ß'));
    assert_eq!(format!("{flag:?}"), "Value(false)");
}

fn values_are_added_to_without_loss() {
    let (count, sum) = (Value::new(0u32).unwrap(), Value::new(0.0f64).unwrap());
    let children: Vec<_> = (0..4)
        .map(|_| {
            Process::spawn(
                |(count, sum): (Value<u32>, Value<f64>)| {
                    for _ in 0..10_000 {
                        count.fetch_add(1);
                        sum.fetch_add(0.5);
                    }
                },
                (count.clone(), sum.clone()),
            )
            .unwrap()
        })
        .collect();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!((count.get(), sum.get()), (40_000, 20_000.0));
}

fn array_smoke() {
    let row = Array::<i16>::new(12).unwrap();
    assert!(row.len() == 12 && !row.is_empty() && row.read(0..12) == [0; 12]);
    let children: Vec<_> = (0..3usize)
        .map(|i| {
            Process::spawn(
                |(row, i): (Array<i16>, usize)| row.write(i * 4, &[i as i16; 4]),
                (row.clone(), i),
            )
            .unwrap()
        })
        .collect();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!(row.read(2..10), [0, 0, 1, 1, 1, 1, 2, 2]);
    assert!(std::panic::catch_unwind(|| row.get(12)).is_err());
}

fn a_semaphore_lets_so_many_in() {
    let (seats, inside) = (Semaphore::new(2).unwrap(), Value::new(0u8).unwrap());
    let children: Vec<_> = (0..4)
        .map(|_| {
            Process::spawn(
                |(seats, inside): (Semaphore, Value<u8>)| {
                    let mut most = 0;
                    for _ in 0..200 {
                        let _seat = seats.acquire();
                        most = most.max(inside.fetch_add(1) + 1);
                        inside.fetch_sub(1);
                    }
                    most
                },
                (seats.clone(), inside.clone()),
            )
            .unwrap()
        })
        .collect();
    for child in children {
        assert!((1..=2).contains(&child.join().unwrap()));
    }
    let (one, two) = (seats.acquire(), seats.acquire());
    assert!(seats.try_acquire().is_none());
    assert!(seats.acquire_timeout(MOMENT).is_none());
    drop((one, two));
    assert_eq!(seats.available(), 2);
    assert!(Semaphore::new(u32::MAX).unwrap_err().is_invalid());
}

fn permits_of_the_dead_come_back() {
    let (seats, held) = (Semaphore::new(1).unwrap(), Event::new().unwrap());
    let child: Process<()> = Process::spawn(
        |(seats, held): (Semaphore, Event)| {
            let _seat = seats.acquire();
            held.set();
            sleep_for_ever();
        },
        (seats.clone(), held.clone()),
    )
    .unwrap();
    held.wait();
    assert!(seats.try_acquire().is_none());
    child.kill().unwrap();
    drop(seats.acquire());
    assert!(child.join().is_err());
}

fn an_event_lets_all_go() {
    let (go, gone) = (Event::new().unwrap(), Value::new(0u8).unwrap());
    assert!(!go.is_set() && !go.wait_timeout(MOMENT));
    let children: Vec<_> = (0..3)
        .map(|_| {
            Process::spawn(
                |(go, gone): (Event, Value<u8>)| {
                    go.wait();
                    gone.fetch_add(1);
                },
                (go.clone(), gone.clone()),
            )
            .unwrap()
        })
        .collect();
    assert_eq!(gone.get(), 0);
    go.set();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert!(gone.get() == 3 && go.wait_timeout(Duration::ZERO));
    go.clear();
    assert!(!go.is_set());
}

fn a_condition_hands_over() {
    let (turn, changed) = (Mutex::new(0u32).unwrap(), Condition::new().unwrap());
    let play = |(turn, changed, me): (Mutex<u32>, Condition, u32)| {
        for _ in 0..200 {
            let guard = turn.lock().unwrap();
            let mut guard = changed.wait_while(guard, |turn| *turn % 2 != me).unwrap();
            *guard += 1;
            changed.notify_one(&guard);
        }
    };
    let child = Process::spawn(play, (turn.clone(), changed.clone(), 1)).unwrap();
    play((turn.clone(), changed.clone(), 0));
    child.join().unwrap();
    assert_eq!(*turn.lock().unwrap(), 400);
    let (guard, notified) = changed.wait_timeout(turn.lock().unwrap(), MOMENT).unwrap();
    assert!(!notified && *guard == 400);
    assert_eq!(changed.notify(&guard, 5), 0);
}

fn a_killed_waiter_takes_no_notification() {
    let (mutex, changed) = (Mutex::new(0u32).unwrap(), Condition::new().unwrap());
    let woken = Queue::<u8>::new().unwrap();
    let wait = |(mutex, changed, woken): (Mutex<u32>, Condition, Queue<u8>)| {
        let guard = mutex.lock().unwrap();
        drop(changed.wait(guard).unwrap());
        woken.put(1).unwrap();
    };
    let argument = || (mutex.clone(), changed.clone(), woken.clone());
    let first = Process::spawn(wait, argument()).unwrap();
    until(|| format!("{changed:?}").contains("(1 waiting)"));
    let second = Process::spawn(wait, argument()).unwrap();
    until(|| format!("{changed:?}").contains("(2 waiting)"));
    first.kill().unwrap();
    assert!(first.join().is_err());
    changed.notify_one(&mutex.lock().unwrap());
    assert_eq!(woken.get().unwrap(), 1);
    second.join().unwrap();
}

fn a_barrier_meets_in_rounds() {
    let barrier = Barrier::new(3).unwrap();
    let rounds = |barrier: Barrier| (0..50).map(|_| barrier.wait().unwrap()).sum::<u32>();
    let children = [(); 2].map(|()| Process::spawn(rounds, barrier.clone()).unwrap());
    let mut sum = rounds(barrier.clone());
    for child in children {
        sum += child.join().unwrap();
    }
    // In each round one is the first, one the second and one the third.
    assert_eq!(sum, 50 * (1 + 2));
    assert!(barrier.wait_timeout(MOMENT).unwrap_err().is_broken() && barrier.is_broken());
    barrier.reset();
    assert_eq!(
        (barrier.parties(), barrier.waiting(), barrier.is_broken()),
        (3, 0, false)
    );
    barrier.abort();
    assert!(barrier.wait().unwrap_err().is_broken());
    assert!(Barrier::new(0).unwrap_err().is_invalid());
}

fn a_barrier_breaks_when_a_party_dies() {
    let barrier = Barrier::new(3).unwrap();
    let meet = |barrier: Barrier| barrier.wait().unwrap_err().is_broken();
    let victim = Process::spawn(meet, barrier.clone()).unwrap();
    let other = Process::spawn(meet, barrier.clone()).unwrap();
    until(|| barrier.waiting() == 2);
    victim.kill().unwrap();
    assert!(other.join().unwrap());
    assert!(victim.join().is_err());
}

fn an_rlock_is_taken_again() {
    let lock = RLock::new().unwrap();
    let (first, second) = (lock.lock().unwrap(), lock.try_lock().unwrap());
    let try_it = |lock: RLock| lock.lock_timeout(Duration::from_millis(10)).is_ok();
    let tried = || {
        Process::spawn(try_it, lock.clone())
            .unwrap()
            .join()
            .unwrap()
    };
    assert!(!tried());
    drop(first);
    assert!(!tried());
    drop(second);
    assert!(tried());
    let child: Process<()> = Process::spawn(
        |lock: RLock| {
            let _guard = lock.lock().unwrap();
            std::process::exit(0);
        },
        lock.clone(),
    )
    .unwrap();
    assert!(child.join().unwrap_err().is_peer_death());
    drop(lock.lock().unwrap_err().into_inner());
    assert!(lock.lock().is_ok());
}

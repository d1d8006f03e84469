//! Processes: results, and all the ways to have none.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::{runs, sleep_for_ever, until};
use phalanx::{Pool, Process, Queue};

/// Makes a child of this program end before `init`.
const SKIP_INIT: &str = "PHALANX_TEST_SKIP_INIT";
/// Makes this program start a child without `init`.
const FORGET_INIT: &str = "PHALANX_TEST_FORGET_INIT";

fn main() -> ExitCode {
    if std::env::var_os(SKIP_INIT).is_some() {
        return ExitCode::from(9);
    }
    if std::env::var_os(FORGET_INIT).is_some() {
        let error = Process::spawn(|()| (), ()).unwrap_err();
        println!("{error}");
        return ExitCode::from(if error.is_invalid() { 17 } else { 1 });
    }
    common::run(common::named![
        smoke,
        arguments_and_results_of_all_kinds,
        a_panic_comes_back_with_its_words,
        an_exit_is_no_result,
        a_killed_child_is_told_from_others,
        killed_at_any_time,
        a_timeout_leaves_it_running,
        a_result_is_given_once,
        environment_directory_and_name,
        a_child_has_children,
        a_child_dies_with_its_parent,
        a_tree_is_ended,
        the_parent_may_drop_what_it_handed_over,
        a_dropped_process_goes_on_and_is_reaped,
        main_that_forgets_init_is_told_so,
        a_child_that_does_not_reach_init_is_told_so,
        a_pool_whose_workers_do_not_start_says_so,
        what_cannot_be_sent_is_refused,
        many_at_once,
        the_ended_leave_nothing_in_the_arena,
    ])
}

fn double(n: u64) -> u64 {
    n * 2
}

fn smoke() {
    let child = Process::spawn(double, 21).unwrap();
    assert_ne!(child.id(), std::process::id());
    assert!(child.name().starts_with("Process-"));
    assert_eq!(child.join().unwrap(), 42);
}

fn arguments_and_results_of_all_kinds() {
    let child = Process::spawn(
        |(a, b): (String, Vec<f64>)| (b.len(), Some(a)),
        ("x".into(), vec![0.5; 3]),
    );
    assert_eq!(child.unwrap().join().unwrap(), (3, Some("x".to_owned())));
    let long = vec![7u8; 3_000_000];
    let child = Process::spawn(
        |mut long: Vec<u8>| {
            long.push(1);
            long
        },
        long.clone(),
    );
    let back = child.unwrap().join().unwrap();
    assert_eq!((back.len(), &back[..3_000_000]), (3_000_001, &long[..]));
    let failing = Process::spawn(
        |text: String| text.parse::<i32>().map_err(|e| e.to_string()),
        "x1".into(),
    );
    assert!(
        failing
            .unwrap()
            .join()
            .unwrap()
            .unwrap_err()
            .contains("invalid digit")
    );
}

fn a_panic_comes_back_with_its_words() {
    let child = Process::spawn(|n: i32| -> i32 { panic!("no luck with {n}") }, 13).unwrap();
    let error = child.join().unwrap_err();
    assert!(
        error.is_panic() && error.to_string().contains("no luck with 13"),
        "{error}"
    );
    assert_eq!(error.exit_status().unwrap().code(), Some(101));
}

fn an_exit_is_no_result() {
    let child = Process::spawn(|code: i32| -> u8 { std::process::exit(code) }, 3).unwrap();
    let error = child.join().unwrap_err();
    assert!(error.is_peer_death(), "{error}");
    assert_eq!(error.exit_status().unwrap().code(), Some(3));
}

fn a_killed_child_is_told_from_others() {
    let child = Process::spawn(|()| sleep_for_ever(), ()).unwrap();
    assert!(child.is_alive() && child.exit_status().is_none());
    child.kill().unwrap();
    let pid = child.id();
    let error = child.join().unwrap_err();
    assert!(error.is_peer_death(), "{error}");
    assert_eq!(error.exit_status().unwrap().signal(), Some(9));
    assert!(!runs(pid));
    let child = Process::spawn(|()| sleep_for_ever(), ()).unwrap();
    child.terminate().unwrap();
    assert_eq!(
        child.join().unwrap_err().exit_status().unwrap().signal(),
        Some(15)
    );
}

fn killed_at_any_time() {
    let queue = Queue::new().unwrap();
    let mut completed = 0;
    for i in 0..60u32 {
        let child = Process::spawn(
            |(queue, i): (Queue<u32>, u32)| {
                for _ in 0..3_000 {
                    queue.put(i).unwrap();
                }
                i
            },
            (queue.clone(), i),
        )
        .unwrap();
        // From before it is born until after it has ended.
        std::thread::sleep(Duration::from_micros(u64::from(i) * 60));
        child.kill().unwrap();
        match child.join() {
            Ok(result) => {
                assert_eq!(result, i);
                completed += 1;
            }
            Err(error) => assert!(error.is_peer_death(), "{error}"),
        }
        let mut seen = 0;
        while let Some(item) = queue.try_get().unwrap() {
            assert_eq!(item, i);
            seen += 1;
        }
        assert!(seen <= 3_000);
    }
    println!("  {completed} of 60 were too quick to be killed");
    assert_eq!(Process::spawn(double, 4).unwrap().join().unwrap(), 8);
}

fn a_timeout_leaves_it_running() {
    let (go, result) = (Queue::<u8>::new().unwrap(), Duration::from_millis(20));
    let mut child = Process::spawn(|go: Queue<u8>| go.get().unwrap(), go.clone()).unwrap();
    assert!(child.try_join().unwrap().is_none());
    assert!(child.join_timeout(result).unwrap_err().is_timeout());
    assert!(child.is_alive());
    go.put(5).unwrap();
    assert_eq!(child.join().unwrap(), 5);
}

fn a_result_is_given_once() {
    let mut child = Process::spawn(double, 2).unwrap();
    let mut result = None;
    until(|| {
        result = child.try_join().unwrap();
        result.is_some()
    });
    assert_eq!(result, Some(4));
    assert!(child.exit_status().unwrap().success() && !child.is_alive());
    assert!(child.kill().is_ok(), "nothing happens to who has ended");
    assert!(child.join().unwrap_err().is_invalid());
}

fn environment_directory_and_name() {
    // SAFETY: no other thread of this program touches the environment.
    unsafe { std::env::set_var("PHALANX_TEST_A", "1") };
    let look = |()| {
        let var = |name| std::env::var(name).ok();
        let directory = std::env::current_dir().unwrap();
        let thread = std::fs::read_to_string("/proc/self/comm").unwrap();
        (
            var("PHALANX_TEST_A"),
            var("PHALANX_TEST_B"),
            directory,
            phalanx::process_name().to_owned(),
            thread,
        )
    };
    let plain = Process::spawn(look, ()).unwrap().join().unwrap();
    assert_eq!((plain.0.as_deref(), plain.1.as_deref()), (Some("1"), None));
    assert_eq!(plain.2, std::env::current_dir().unwrap());
    let child = Process::builder()
        .name("reader")
        .env("PHALANX_TEST_B", "2")
        .env_remove("PHALANX_TEST_A")
        .current_dir("/")
        .spawn(look, ())
        .unwrap();
    assert_eq!(child.name(), "reader");
    let changed = child.join().unwrap();
    assert_eq!(
        (changed.0.as_deref(), changed.1.as_deref()),
        (None, Some("2"))
    );
    assert_eq!(
        (changed.2.to_str(), changed.3.as_str(), changed.4.trim()),
        (Some("/"), "reader", "reader")
    );
    assert_eq!(phalanx::process_name(), "MainProcess");
    let count = |()| std::env::vars_os().count();
    let bare = Process::builder()
        .env_clear()
        .env("X", "y")
        .spawn(count, ())
        .unwrap();
    assert_eq!(bare.join().unwrap(), 2, "X, and what makes it a child");
    let error = Process::builder()
        .env("X", "a\0b")
        .spawn(double, 1)
        .unwrap_err();
    assert!(error.is_invalid(), "{error}");
    let error = Process::builder()
        .current_dir("/no/such/place")
        .spawn(double, 1)
        .unwrap_err();
    assert!(error.os_error().is_some(), "{error}");
}

fn a_child_has_children() {
    fn sum(depth: u32) -> (u32, String) {
        if depth == 0 {
            return (1, phalanx::process_name().to_owned());
        }
        let child = Process::spawn(sum, depth - 1).unwrap();
        let (n, name) = child.join().unwrap();
        (n + 1, name)
    }
    let (n, name) = Process::builder()
        .name("A")
        .spawn(sum, 3)
        .unwrap()
        .join()
        .unwrap();
    assert_eq!((n, name.as_str()), (4, "A:1:1:1"));
}

fn a_child_dies_with_its_parent() {
    let pids = Queue::<u32>::new().unwrap();
    let parent = Process::spawn(
        |pids: Queue<u32>| {
            let child = Process::builder()
                .die_with_parent(true)
                .spawn(
                    |pids: Queue<u32>| {
                        pids.put(std::process::id()).unwrap();
                        sleep_for_ever()
                    },
                    pids,
                )
                .unwrap();
            let () = child.join().unwrap();
        },
        pids.clone(),
    )
    .unwrap();
    let grandchild = pids.get().unwrap();
    assert!(runs(grandchild));
    parent.kill().unwrap();
    until(|| !runs(grandchild));
    assert!(parent.join().unwrap_err().is_peer_death());
}

fn a_tree_is_ended() {
    let pids = Queue::<u32>::new().unwrap();
    let parent = Process::spawn(
        |pids: Queue<u32>| {
            let work = |pids: Queue<u32>| {
                pids.put(std::process::id()).unwrap();
                sleep_for_ever()
            };
            let _left: Vec<Process<()>> = (0..3)
                .map(|_| Process::spawn(work, pids.clone()).unwrap())
                .collect();
            sleep_for_ever()
        },
        pids.clone(),
    )
    .unwrap();
    let grandchildren: Vec<u32> = (0..3).map(|_| pids.get().unwrap()).collect();
    parent.terminate_tree().unwrap();
    let result: phalanx::Result<()> = parent.join();
    assert_eq!(
        result.unwrap_err().exit_status().unwrap().signal(),
        Some(15)
    );
    until(|| !grandchildren.iter().any(|&pid| runs(pid)));
}

fn the_parent_may_drop_what_it_handed_over() {
    let back = Queue::<String>::new().unwrap();
    let handed = Queue::<String>::new().unwrap();
    handed.put("from the parent".into()).unwrap();
    let child = Process::spawn(
        |(handed, back): (Queue<String>, Queue<String>)| back.put(handed.get().unwrap()).unwrap(),
        (handed, back.clone()),
    )
    .unwrap();
    child.join().unwrap();
    assert_eq!(back.get().unwrap(), "from the parent");
}

fn a_dropped_process_goes_on_and_is_reaped() {
    let go = Queue::<u8>::new().unwrap();
    let done = Queue::<u32>::new().unwrap();
    drop(
        Process::spawn(
            |(go, done): (Queue<u8>, Queue<u32>)| {
                go.get().unwrap();
                done.put(std::process::id()).unwrap();
            },
            (go.clone(), done.clone()),
        )
        .unwrap(),
    );
    go.put(1).unwrap();
    let pid = done.get().unwrap();
    until(|| !runs(pid));
    assert!(std::fs::exists(format!("/proc/{pid}")).unwrap(), "a zombie");
    Process::spawn(double, 1).unwrap().join().unwrap();
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap(), "reaped");
}

fn main_that_forgets_init_is_told_so() {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program)
        .env(FORGET_INIT, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(17), "{said}");
    assert!(
        said.contains("call phalanx::init() first in main"),
        "{said}"
    );
}

fn a_child_that_does_not_reach_init_is_told_so() {
    let child = Process::builder()
        .env(SKIP_INIT, "1")
        .spawn(double, 1)
        .unwrap();
    let error = child.join().unwrap_err();
    assert!(
        error.is_invalid() && error.to_string().contains("never came to phalanx::init()"),
        "{error}"
    );
    assert_eq!(error.exit_status().unwrap().code(), Some(9));
}

fn a_pool_whose_workers_do_not_start_says_so() {
    // SAFETY: no other thread of this program touches the environment.
    unsafe { std::env::set_var(SKIP_INIT, "1") };
    let pool = Pool::new(2).unwrap();
    let error = pool.apply(double, 1).unwrap_err();
    assert!(
        error.is_peer_death() && error.to_string().contains("no workers"),
        "{error}"
    );
    let each = pool.map_each(0..3, double);
    assert!(each.iter().all(Result::is_err));
    // SAFETY: as above.
    unsafe { std::env::remove_var(SKIP_INIT) };
}

fn what_cannot_be_sent_is_refused() {
    struct Failing;
    impl serde::Serialize for Failing {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    impl<'de> serde::Deserialize<'de> for Failing {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("not today"))
        }
    }
    let error = Process::spawn(|_: Failing| (), Failing).unwrap_err();
    assert!(
        error.is_invalid() && error.to_string().contains("Failing"),
        "{error}"
    );
    let error = Process::spawn(|()| Failing, ())
        .unwrap()
        .join()
        .err()
        .unwrap();
    assert!(
        error.is_invalid() && error.to_string().contains("Failing"),
        "{error}"
    );
    // A shared object that only the child held.
    let error = Process::spawn(|()| Queue::<u8>::new().unwrap(), ())
        .unwrap()
        .join()
        .unwrap_err();
    assert!(error.is_gone(), "{error}");
}

fn many_at_once() {
    let children: Vec<_> = (0..40)
        .map(|n| Process::spawn(double, n).unwrap())
        .collect();
    let results: Vec<u64> = children
        .into_iter()
        .map(|child| child.join().unwrap())
        .collect();
    assert_eq!(results, (0..40).map(|n| n * 2).collect::<Vec<_>>());
}

fn the_ended_leave_nothing_in_the_arena() {
    let blocks = || phalanx::arena::Arena::get().unwrap().usage().blocks();
    let round = |kill: bool| {
        let queue = Queue::new().unwrap();
        let child = Process::spawn(
            |queue: Queue<Vec<u8>>| {
                for n in 0..100 {
                    let _own = Queue::<u8>::new().unwrap();
                    queue.put(vec![n; 10_000 * usize::from(n % 9)]).unwrap();
                }
            },
            queue.clone(),
        )
        .unwrap();
        if kill {
            queue.get().unwrap();
            child.kill().unwrap();
        }
        let _ = child.join();
    };
    round(false);
    let before = blocks();
    (0..20).for_each(|_| round(false));
    assert_eq!(blocks(), before);
    (0..40).for_each(|_| round(true));
    // A kill in the middle of an allocation may cost the block in hand.
    let lost = blocks() - before;
    println!("  40 kills cost {lost} blocks");
    assert!(lost <= 40);
}

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::{Arena, Buffer, Handle, Shared, fork, kind, layout};
use crate::sync::owner::Members;
use crate::testing::{Counter, in_child};

#[test]
fn smoke() {
    let counter = Shared::create(Counter(AtomicU64::new(5))).unwrap();
    let again = Shared::<Counter>::attach(counter.family(), counter.handle()).unwrap();
    again.0.fetch_add(1, Relaxed);
    assert_eq!(counter.0.load(Relaxed), 6);
    let handle = counter.handle();
    drop((counter, again));
    let error = Shared::<Counter>::attach(Arena::get().unwrap().family(), handle).unwrap_err();
    assert!(error.is_gone(), "{error}");
}

#[test]
fn handles_are_checked() {
    let arena = Arena::get().unwrap();
    let counter = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let foreign = Shared::<Counter>::attach(arena.family() ^ 2, counter.handle()).unwrap_err();
    assert!(foreign.is_foreign(), "{foreign}");
    for bits in [
        0,
        1,
        u64::MAX,
        counter.handle().bits() + (1 << 24),
        counter.handle().bits() ^ 1,
    ] {
        let error = Shared::<Counter>::attach(arena.family(), Handle::from_bits(bits)).unwrap_err();
        assert!(error.is_gone(), "{bits:#x}: {error}");
    }
}

#[test]
fn a_forked_child_has_references_of_its_own() {
    let counter = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let arena = counter.arena();
    let handle = counter.handle();
    let seen = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let go = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let child = in_child(|| {
        while go.0.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        // The parent has dropped it by now.
        counter.0.fetch_add(7, Relaxed);
        seen.0.store(counter.0.load(Relaxed), Relaxed);
    });
    drop(counter);
    go.0.store(1, Relaxed);
    child.wait();
    assert_eq!(seen.0.load(Relaxed), 7);
    arena.reap_all();
    let error = Shared::<Counter>::attach(arena.family(), handle).unwrap_err();
    assert!(
        error.is_gone(),
        "the dead child's reference was given back: {error}"
    );
}

#[test]
fn a_killed_member_is_seen_and_reaped() {
    let arena = Arena::get().unwrap();
    let mailbox = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let child = in_child(|| {
        let own = Shared::create(Counter(AtomicU64::new(1))).unwrap();
        let _buffer = Buffer::copy(own.arena(), &[1; 100_000]).unwrap();
        mailbox.0.store(own.handle().bits(), Relaxed);
        loop {
            std::thread::park();
        }
    });
    while mailbox.0.load(Relaxed) == 0 {
        std::thread::yield_now();
    }
    let handle = Handle::from_bits(mailbox.0.load(Relaxed));
    assert!(Shared::<Counter>::attach(arena.family(), handle).is_ok());
    let pid = child.pid();
    child.kill();
    assert!(arena.reap_pid(pid), "the parent reaps at once");
    assert!(!arena.reap_pid(pid), "and once only");
    assert!(
        Shared::<Counter>::attach(arena.family(), handle)
            .unwrap_err()
            .is_gone()
    );
}

#[test]
fn a_received_buffer_is_private_after_a_fork() {
    let arena = Arena::get().unwrap();
    let sent = Buffer::copy(arena, &[7; 200_000]).unwrap().send().unwrap();
    let mut buffer = Buffer::receive(arena, sent).unwrap();
    let seen = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let go = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let address = buffer.as_mut_ptr() as usize;
    let child = in_child(|| {
        while go.0.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        // SAFETY: the child's own view of the buffer.
        let mine = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, 200_000) };
        let before = u64::from(mine[0]) + u64::from(mine[199_999]);
        mine[5] = 99;
        seen.0.store(before, Relaxed);
    });
    buffer[0] = 1;
    go.0.store(1, Relaxed);
    child.wait();
    assert_eq!(
        seen.0.load(Relaxed),
        14,
        "the child saw the bytes of the moment of the fork"
    );
    assert_eq!((buffer[0], buffer[5]), (1, 7), "and its writes are its own");
    drop(buffer);
    arena.reap_all();
}

#[test]
fn fork_books_and_cancels() {
    let arena = Arena::get().unwrap();
    let counter = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let child = arena.reserve_child().unwrap();
    counter.book_for(child).unwrap();
    let handle = counter.handle();
    drop(counter);
    assert!(
        Shared::<Counter>::attach(arena.family(), handle).is_ok(),
        "booked for the child"
    );
    assert!(arena.cancel(child));
    assert!(
        Shared::<Counter>::attach(arena.family(), handle)
            .unwrap_err()
            .is_gone()
    );
    // A fork that fails: prepared, and then only the parent goes on.
    fork::prepare();
    fork::parent();
    let unborn = fork::last_child().unwrap();
    assert!(arena.cancel(unborn));
    assert!(arena.is_alive(arena.me()));
}

#[test]
fn blocks_are_used_again() {
    let arena = Arena::get().unwrap();
    let first = arena.alloc(kind::PART, 3000).unwrap();
    arena.free(first, kind::PART);
    arena.free(first, kind::PART);
    let blocks: Vec<_> = (0..100)
        .map(|_| arena.alloc(kind::PART, 3000).unwrap())
        .collect();
    let mut distinct = blocks.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(
        distinct.len(),
        100,
        "a double free gives nothing away twice"
    );
    for b in blocks {
        arena.free(b, kind::PART);
    }
}

#[test]
fn stale_memory_is_given_back() {
    let arena = Arena::get().unwrap();
    arena.trim();
    let len = 3 << 20;
    let block = arena.alloc(kind::PART, len).unwrap();
    // SAFETY: the block is this test's alone.
    unsafe { arena.payload(block).unwrap().write_bytes(1, len as usize) };
    arena.free(block, kind::PART);
    let warm = || arena.header().warm.load(Relaxed);
    let freed = arena.block(block).unwrap().freed.load(Relaxed);
    assert!(warm() >= len);
    arena.sweep(freed + 9);
    assert!(warm() >= len, "it may be used again soon");
    arena.sweep(freed + 100);
    assert_eq!(warm(), 0);
    assert_eq!(arena.alloc(kind::PART, len).unwrap(), block);
    // SAFETY: as above.
    unsafe { assert_eq!(*arena.payload(block).unwrap(), 0, "fresh pages") };
    arena.free(block, kind::PART);
    assert!(warm() >= len);
    // Only once a second, whoever asks; and tests that follow sweep by the clock again.
    arena.sweep(freed + 100);
    assert!(warm() >= len);
    arena.header().swept.store(0, Relaxed);
}

#[test]
fn nobody_waits_for_a_block_that_is_given_back() {
    let arena = Arena::get().unwrap();
    let len = 11 << 20;
    let block = arena.alloc(kind::PART, len).unwrap();
    let class = layout::class_for(len).unwrap();
    arena.free(block, kind::PART);
    let before = arena.header().warm.load(Relaxed);
    let taken = arena.take_warm(class, u64::MAX, u64::MAX);
    assert_eq!(taken, [block]);
    // As if the system were taking the pages now, and it took a while.
    let others = in_child(|| {
        let other = arena.alloc(kind::PART, len).unwrap();
        assert_ne!(other, block);
        arena.free(other, kind::PART);
    });
    others.wait();
    let other = arena.alloc(kind::PART, len).unwrap();
    arena.put_last(class, &taken);
    assert_eq!(arena.alloc(kind::PART, len).unwrap(), block);
    arena.free(block, kind::PART);
    arena.free(other, kind::PART);
    assert!(arena.header().warm.load(Relaxed) >= before);
    arena.trim();
    assert!(arena.take_warm(class, u64::MAX, u64::MAX).is_empty());
}

#[test]
fn a_block_outlives_who_was_giving_it_back() {
    let arena = Arena::get().unwrap();
    let len = 13 << 20;
    let block = arena.alloc(kind::PART, len).unwrap();
    let class = layout::class_for(len).unwrap();
    arena.free(block, kind::PART);
    let warm = arena.header().warm.load(Relaxed);
    in_child(|| assert_eq!(arena.take_warm(class, u64::MAX, u64::MAX), [block])).wait();
    arena.reap_all();
    assert_eq!(arena.header().warm.load(Relaxed), warm);
    assert_eq!(arena.alloc(kind::PART, len).unwrap(), block);
    arena.free(block, kind::PART);
}

#[test]
fn damage_is_an_error() {
    let arena = Arena::get().unwrap();
    for offset in [0, 1, 64, 4096, 1 << 20, u64::MAX - 63, 1 << 50] {
        assert!(arena.check(offset, kind::PART).is_err(), "{offset:#x}");
    }
    assert!(
        arena
            .alloc(kind::PART, u64::MAX)
            .unwrap_err()
            .is_arena_full()
    );
    let full = arena.alloc(kind::BUFFER, 1 << 41).unwrap_err();
    assert!(
        full.is_arena_full() && full.to_string().contains("PHALANX_ARENA_LIMIT"),
        "{full}"
    );
}

#[test]
fn a_child_of_a_member_moves_to_the_place_that_was_reserved() {
    let kept = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let sent = Shared::create(Counter(AtomicU64::new(0))).unwrap();
    let arena = kept.arena();
    let place = arena.reserve_child().unwrap();
    sent.book_for(place).unwrap();
    kept.book_for(place).unwrap();
    let handle = sent.handle();
    let child = in_child(|| {
        let fd = arena.fd().try_clone_to_owned().unwrap();
        Arena::adopt(fd, place).unwrap();
        assert_eq!(arena.me(), place);
        let sent = Shared::<Counter>::attach(arena.family(), handle).unwrap();
        arena.drop_unclaimed();
        kept.0.fetch_add(1, Relaxed);
        sent.0.fetch_add(1, Relaxed);
    });
    child.wait();
    assert_eq!((kept.0.load(Relaxed), sent.0.load(Relaxed)), (1, 1));
    arena.reap_all();
    for object in [kept, sent] {
        let handle = object.handle();
        drop(object);
        // What another test has forked meanwhile holds it, too, until it has ended.
        let error = loop {
            arena.reap_all();
            match Shared::<Counter>::attach(arena.family(), handle) {
                Ok(held) => drop(held),
                Err(error) => break error,
            }
            std::thread::yield_now();
        };
        assert!(
            error.is_gone(),
            "the child's references came back once: {error}"
        );
    }
}

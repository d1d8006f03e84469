//! A pool of four workers: map, single calls, results as they come, and what goes wrong.

use phalanx::Pool;

fn square(n: u64) -> u64 {
    n * n
}

/// The remainder of n! by a prime: work that takes a while and is easily checked.
fn factorial(n: u64) -> u64 {
    (1..=n).fold(1, |product, k| product * k % 1_000_000_007)
}

fn careful(n: u32) -> u32 {
    assert_ne!(n, 3, "three is too much");
    n
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let pool = Pool::new(4)?;
    println!("squares: {:?}", pool.map(0..10, square)?);
    let many = pool.map(0..100_000, square)?;
    assert!(many.iter().zip(0..).all(|(&result, n)| result == n * n));
    println!("and 100,000 more, in order");

    // Begun now, waited for later.
    let call = pool.spawn(
        |(a, b): (String, String)| a + &b,
        ("to".into(), "gether".into()),
    )?;
    assert_eq!(call.join()?, "together");

    let inputs = [100_000, 200_000, 300_000, 400_000, 500_000];
    let mut results = pool
        .imap_unordered(inputs, |n| (n, factorial(n)))
        .collect::<phalanx::Result<Vec<_>>>()?;
    results.sort_unstable();
    println!("factorials: {results:?}");
    assert!(results.iter().all(|&(n, result)| result == factorial(n)));

    // A panic costs its task, and no other.
    let results = pool.map_each(0..6, careful);
    let failed = results[3].as_ref().unwrap_err();
    println!("one of six failed: {failed}");
    assert!(failed.is_panic() && failed.to_string().contains("three is too much"));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);

    // So does the death of a worker.
    let error = pool
        .apply(|()| std::process::abort(), ())
        .map(|(): ()| ())
        .unwrap_err();
    println!("{error}");
    assert!(error.is_peer_death());
    assert_eq!(pool.apply(square, 9)?, 81);
    pool.join()
}

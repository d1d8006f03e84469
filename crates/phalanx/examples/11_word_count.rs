//! Counts the words of many files in a pool.
//!
//! Usage: cargo run --example 11_word_count FILE...

use std::collections::HashMap;
use std::process::ExitCode;

use phalanx::Pool;

type Counts = HashMap<String, u64>;

fn count_words(path: String) -> Result<Counts, String> {
    let bytes = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let text = String::from_utf8_lossy(&bytes).to_lowercase();
    let mut counts = Counts::new();
    for word in text.split(|c: char| !c.is_ascii_lowercase()) {
        if !word.is_empty() {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
    }
    Ok(counts)
}

fn merge(total: &mut Counts, counts: Counts) {
    for (word, count) in counts {
        *total.entry(word).or_default() += count;
    }
}

fn count(paths: &[String]) -> phalanx::Result<()> {
    let pool = Pool::new(std::thread::available_parallelism().map_or(2, usize::from))?;
    let mut total = Counts::new();
    for counts in pool.imap_unordered(paths.to_vec(), count_words) {
        match counts? {
            Ok(counts) => merge(&mut total, counts),
            Err(unread) => eprintln!("{unread}"),
        }
    }
    pool.join()?;

    let words: u64 = total.values().sum();
    println!(
        "{words} words, {} different ones, in {} files",
        total.len(),
        paths.len()
    );
    let mut common: Vec<(&String, &u64)> = total.iter().collect();
    common.sort_by_key(|&(word, count)| (std::cmp::Reverse(count), word));
    for (word, count) in common.iter().take(10) {
        println!("{count:8} {word}");
    }

    // The same by this process alone.
    let mut alone = Counts::new();
    for counts in paths.iter().cloned().map(count_words) {
        merge(&mut alone, counts.unwrap_or_default());
    }
    assert_eq!(total, alone);
    Ok(())
}

fn main() -> ExitCode {
    phalanx::init();
    let paths: Vec<String> = std::env::args().skip(1).collect();
    if paths.is_empty() {
        eprintln!("usage: 11_word_count FILE...");
        return ExitCode::FAILURE;
    }
    match count(&paths) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

//! Many items of a queue at a time: small ones travel as runs, for one lock and one wake-up.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::queue::{Queue, Undelivered};
use super::{codec, deadline, retry};
use crate::channel::Run;
use crate::error::{Error, Kind, Result};

impl<T: Serialize> Queue<T> {
    /// Puts many items, in order; waits for room in a bounded queue, for ever if nobody takes.
    ///
    /// Small items (up to a kilobyte each) share locks and wake-ups and so cost less than by
    /// [`put`](Self::put). They are not one thing for that: items of other producers may come
    /// between, and if this process is killed, a part of them is in the queue, without a gap.
    ///
    /// ```
    /// # fn main() -> phalanx::Result<()> {
    /// let queue = phalanx::Queue::bounded(3)?;
    /// let full = queue.try_put_many(vec![1, 2, 3, 4]).unwrap_err();
    /// assert!(full.is_full());
    /// assert_eq!(full.into_inner(), [4]);
    /// let items: phalanx::Result<Vec<i32>> = queue.get_many(10)?.into_iter().collect();
    /// assert_eq!(items?, [1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Undelivered`], with the items that were not put, those from the one on that failed: as
    /// [`put`](Self::put).
    pub fn put_many(&self, items: Vec<T>) -> Result<(), Undelivered<Vec<T>>> {
        self.put_many_until(items, None)
    }

    /// Puts as many of the items as there is room for. Never blocks.
    ///
    /// # Errors
    /// `is_full`; else as [`put_many`](Self::put_many).
    pub fn try_put_many(&self, items: Vec<T>) -> Result<(), Undelivered<Vec<T>>> {
        self.put_many_until(items, Some(Instant::now()))
    }

    /// Puts many items; waits for room for `timeout` at most, for all of them together.
    ///
    /// # Errors
    /// `is_full`; else as [`put_many`](Self::put_many).
    pub fn put_many_timeout(
        &self,
        items: Vec<T>,
        timeout: Duration,
    ) -> Result<(), Undelivered<Vec<T>>> {
        self.put_many_until(items, deadline(timeout))
    }

    fn put_many_until(
        &self,
        mut items: Vec<T>,
        deadline: Option<Instant>,
    ) -> Result<(), Undelivered<Vec<T>>> {
        let mut put = 0;
        self.put_all(&items, &mut put, deadline).map_err(|error| {
            items.drain(..put);
            Undelivered::new(error, items)
        })
    }

    /// Puts the items, and counts them in `put`.
    fn put_all(&self, items: &[T], put: &mut usize, deadline: Option<Instant>) -> Result<()> {
        let mut run = Run::new();
        for item in items {
            let done = codec::with_encoded(item, |bytes| {
                if bytes.len() <= Run::SMALL && run.add(bytes, 0) {
                    return Ok(());
                }
                self.put_run(&mut run, put, deadline)?;
                let parts = [bytes];
                let mut letter = self.raw.letter(&parts, 0, Vec::new())?;
                retry(|| self.raw.put(&mut letter, deadline))?;
                *put += 1;
                Ok(())
            });
            if done.is_err() || run.is_full() {
                self.put_run(&mut run, put, deadline)?;
            }
            done?;
        }
        self.put_run(&mut run, put, deadline)
    }

    /// Puts the items of `run`, which is empty then, and counts them in `put`.
    fn put_run(&self, run: &mut Run, put: &mut usize, deadline: Option<Instant>) -> Result<()> {
        let before = run.len();
        let done = retry(|| self.raw.put_run(run, deadline));
        *put += before - run.len();
        run.clear();
        done
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes up to `most` items that are there: at least one, for which it waits, for ever if nobody
    /// puts and the queue stays open.
    ///
    /// Each has a result of its own, so that one that cannot be read (a shared object in it
    /// `is_gone`) costs no other. If this process is killed meanwhile, what it has taken is lost
    /// with it.
    ///
    /// # Errors
    /// `is_closed` once a closed queue is empty; `is_invalid` if `most` is 0; `is_corrupt`.
    pub fn get_many(&self, most: usize) -> Result<Vec<Result<T>>> {
        self.get_many_until(most, None)
    }

    /// Takes up to `most` items that are there, which may be none. Never blocks.
    ///
    /// # Errors
    /// As [`get_many`](Self::get_many).
    pub fn try_get_many(&self, most: usize) -> Result<Vec<Result<T>>> {
        match self.get_many_until(most, Some(Instant::now())) {
            Err(error) if error.is_empty() => Ok(Vec::new()),
            done => done,
        }
    }

    /// As [`get_many`](Self::get_many), waiting for the first item for `timeout` at most.
    ///
    /// # Errors
    /// `is_empty` when the time is over; else as [`get_many`](Self::get_many).
    pub fn get_many_timeout(&self, most: usize, timeout: Duration) -> Result<Vec<Result<T>>> {
        self.get_many_until(most, deadline(timeout))
    }

    fn get_many_until(&self, most: usize, deadline: Option<Instant>) -> Result<Vec<Result<T>>> {
        if most == 0 {
            let what = "of a queue's items at least 1 must be asked for, not 0";
            return Err(Error::new(Kind::Invalid, what));
        }
        let mut items = Vec::new();
        loop {
            self.take_many(&mut items, most);
            if !items.is_empty() {
                return Ok(items);
            }
            retry(|| self.raw.wait_for_item(deadline))?;
        }
    }

    /// Takes items that are there now, until there are `most`, or one fails that does not come in a
    /// run: the queue itself may be what fails.
    fn take_many(&self, items: &mut Vec<Result<T>>, most: usize) {
        let mut run = Run::new();
        while items.len() < most {
            run.clear();
            let some = (most - items.len()).min(Run::MOST);
            let taken = self
                .raw
                .try_get_run(&mut run, some, Run::MOST_BYTES, |_tag| true);
            let item = match taken {
                Ok(0) => self.take().transpose(),
                Ok(_) => {
                    items.extend(run.iter().map(|(_, bytes)| codec::decode(bytes)));
                    continue;
                }
                Err(error) => Some(Err(error)),
            };
            let is_last = !matches!(item, Some(Ok(_)));
            items.extend(item);
            if is_last {
                return;
            }
        }
    }
}

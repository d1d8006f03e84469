//! What the parent remembers of the tasks it has submitted: whose they are, and which are due.

use std::collections::VecDeque;

/// Whose a task is. The numbers are the front's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The call that it belongs to; any number but `u64::MAX`.
    pub job: u64,
    /// Its place in that call.
    pub index: u64,
}

/// In the place of a task that was delivered or lost already.
const DONE: Ticket = Ticket {
    job: u64::MAX,
    index: 0,
};

/// Tickets of the tasks that are due, by task number.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The number of the first entry.
    first: u64,
    entries: VecDeque<Ticket>,
    due: usize,
}

impl Ledger {
    pub(super) fn add(&mut self, number: u64, ticket: Ticket) {
        if self.entries.is_empty() {
            self.first = number;
        }
        while self.first + (self.entries.len() as u64) < number {
            self.entries.push_back(DONE);
        }
        self.entries.push_back(ticket);
        self.due += 1;
    }

    /// Strikes a task off; `None` if it is not due (any more).
    pub(super) fn take(&mut self, number: u64) -> Option<Ticket> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(place)?;
        let ticket = std::mem::replace(entry, DONE);
        if ticket == DONE {
            return None;
        }
        self.due -= 1;
        while self.entries.front() == Some(&DONE) {
            self.entries.pop_front();
            self.first += 1;
        }
        Some(ticket)
    }

    pub(super) fn due(&self) -> usize {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_struck_off_once() {
        let mut ledger = Ledger::default();
        let ticket = |n| Ticket { job: n, index: n };
        (5..100).for_each(|n| ledger.add(n, ticket(n)));
        assert_eq!(ledger.due(), 95);
        for n in (5..100).rev() {
            assert_eq!(ledger.take(n), Some(ticket(n)));
            assert_eq!(ledger.take(n), None);
        }
        assert_eq!(
            (ledger.due(), ledger.take(4), ledger.take(100)),
            (0, None, None)
        );
        ledger.add(100, ticket(1));
        assert_eq!(ledger.take(100), Some(ticket(1)));
    }
}

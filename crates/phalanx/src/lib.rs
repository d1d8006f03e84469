//! Processes, queues, locks and pools over one shared arena.

//! Queues, pipes and connections: messages between processes. `README.md` beside this file tells how
//! they travel and what happens if somebody dies on the way.

pub(crate) mod bell;
pub mod log;
pub mod message;
pub mod pipe;
pub mod queue;
mod run;
mod segment;
pub(crate) mod tally;
#[cfg(test)]
mod tests;
mod watch;
pub mod wire;
pub(crate) mod work;

pub use log::{Log, Patience, Pushed};
pub use message::{Letter, Message, Taken};
pub use queue::Queue;
pub use run::Run;

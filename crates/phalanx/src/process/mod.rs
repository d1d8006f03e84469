//! Processes: starting them, waiting for their end, ending them with their parent.
//!
//! | how | by | sentinel |
//! | --- | --- | --- |
//! | exec of a program | [`spawn`] | pidfd |
//! | a copy of the zygote | [`zygote`] | its connection |
//! | fork | the caller | pidfd |

pub mod spawn;
mod status;
mod tree;
pub mod watch;
pub mod zygote;

pub use status::ExitStatus;
pub use tree::signal_descendants;

//! Channels: messages from process to process.

pub mod wire;

//! Hypha's CNI shim, and the protocol that it speaks with the agent.
//!
//! - [`protocol`]: the messages, one JSON object a line;
//! - [`wire`]: how they travel over the agent's Unix socket, file descriptors included;
//!
//! The agent depends on this crate for those modules only, so nothing here may pull in more than serde.

pub mod protocol;
pub mod wire;

//! Hypha's CNI shim, and the protocol that it speaks with the agent.
//!
//! - [`protocol`]: the messages, one JSON object a line;
//! - [`wire`]: how they travel over the agent's Unix socket, file descriptors included;
//! - [`queue`]: deletes that wait in files while no agent runs;
//! - [`shim`]: the plugin itself.
//!
//! The plugin starts anew for every interface of every pod, so nothing heavy may come in here: no async runtime,
//! no argument parser, no logger.

pub mod protocol;
pub mod queue;
pub mod shim;
pub mod wire;

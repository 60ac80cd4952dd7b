//! The pure core: what the node should look like, computed from what is known. No tokio, aya or netlink in here.

pub mod desired;
pub mod facts;
pub mod ipam;
pub mod nodes;

pub use desired::Desired;

//! The pure core: what the node should look like, computed from what is known. No tokio, aya or netlink in here.

pub mod choice;
pub mod desired;
pub mod duration;
pub mod exempt;
pub mod facts;
pub mod host_ports;
pub mod index;
pub mod ipam;
pub mod masq_config;
pub mod nodes;
pub mod objects;
pub mod pods;
pub mod table;
pub mod timeouts;

pub use desired::Desired;

//! The lab: networks of namespaces on this machine, with real agents, pods made by the real `hypha-cni`, and traffic.
//!
//! ```no_run
//! use hypha_lab::{Lab, Routing, Station};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::two_nodes(Routing::Native)?;
//! let a = lab.node(0).add_pod("a")?;
//! let b = lab.node(1).add_pod("b")?;
//! a.ping(b.v4())?;
//! # Ok(())
//! # }
//! ```
//!
//! Labs are independent of each other: names carry a random tag, files and pins live in directories of their own, and
//! everything goes when the lab is dropped, or when the next lab finds that its owner was killed. Root is needed.

mod agent;
pub mod annex;
pub mod beyond;
pub mod binaries;
pub mod cluster;
pub mod cni;
pub mod demo;
mod diagnosis;
pub mod family;
pub mod lab;
pub mod maps;
pub mod netns;
pub mod node;
pub mod pod;
pub mod poll;
pub mod programs;
pub mod registry;
pub mod shell;
pub mod station;
pub mod topology;
pub mod traffic;

pub use annex::Annex;
pub use beyond::Beyond;
pub use family::{Family, Protocol, Routing};
pub use lab::{Lab, LabSpec};
pub use node::Node;
pub use pod::{PlainPod, Pod};
pub use station::Station;

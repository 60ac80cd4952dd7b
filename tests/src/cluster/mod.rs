//! Real Kubernetes on this machine: its programs, a control plane, nodes.
//!
//! Two levels. [`ControlPlane`] is etcd and kube-apiserver, seconds to start, in a namespace that the caller gives: the
//! API-server tests put one beside the lab's agents. A whole cluster adds controllers, and nodes with containerd and
//! kubelet in namespaces of their own.
//!
//! ```no_run
//! use hypha_lab::{LabSpec, Routing, cluster::ControlPlaneSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = LabSpec::nodes(2, Routing::Native).build_without_starting()?;
//! let kubernetes = ControlPlaneSpec::default().start_in_lab(&lab)?;
//! kubernetes.apply(&lab.node(0).object().to_string())?;
//! print!("{}", kubernetes.kubectl(&["get", "nodes", "-o", "wide"])?);
//! # Ok(())
//! # }
//! ```

pub mod audit;
pub mod control_plane;
pub mod etcd;
pub mod go;
pub mod kubeconfig;
pub mod pki;
pub mod process;
pub mod programs;
pub mod progress;

pub use audit::Request;
pub use control_plane::{ControlPlane, ControlPlaneSpec, Site};
pub use programs::{Program, Programs};

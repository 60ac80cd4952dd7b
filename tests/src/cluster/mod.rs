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

pub mod assembly;
pub mod audit;
pub(crate) mod cgroups;
pub mod control_plane;
pub mod etcd;
pub mod go;
pub mod image;
pub mod install;
pub mod kept;
pub mod kubeconfig;
pub mod node;
pub mod pki;
pub mod pod;
pub mod process;
pub mod programs;
pub mod progress;
pub mod reference;
pub mod space;
pub mod watch;

pub use assembly::{Cluster, ClusterSpec};
pub use audit::Request;
pub use control_plane::{ControlPlane, ControlPlaneSpec, Site};
pub use node::Machine;
pub use pod::RunningPod;
pub use programs::{Program, Programs};

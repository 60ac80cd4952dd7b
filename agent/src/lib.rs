//! Hypha's node agent and operator's CLI.
//!
//! State flows one way: [`source`] (Kubernetes objects) and [`server`] (CNI calls) feed the pure [`core`], which compiles
//! the desired state; [`daemon`] brings [`netlink`] and [`datapath`] to it and keeps them there. [`store`] is what
//! survives a restart of the agent, [`cli`] what an operator types.

mod causes;
pub mod cli;
pub mod core;
pub mod daemon;
pub mod datapath;
pub mod netlink;
pub mod server;
pub mod source;
pub mod store;

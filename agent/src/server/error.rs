//! Why a call failed, and how the CNI specification calls that.

use std::net::IpAddr;

use hypha_cni::protocol::{ErrorReply, code};
use nix::errno::Errno;

use crate::{
    causes::with_causes,
    core::{host_ports::HostPortError, ipam::IpamError},
    daemon::WorkerGone,
    datapath::DatapathError,
    netlink::{NetlinkError, PodMismatch},
    store::{LedgerError, StoreError},
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent cannot add pods at the moment.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// The answer to STATUS.
    #[error("the agent is not ready: {0}")]
    Unavailable(String),
    /// ADD or CHECK without a namespace.
    #[error("the request carries no network namespace: the shim must send an open one")]
    NoNamespace,
    /// What was sent is no network namespace.
    #[error("cannot look at the network namespace that was sent: {0}")]
    Namespace(#[source] Errno),
    /// It took too long and was undone.
    #[error("not done within {0} s: undone; the kernel or the machine is overloaded")]
    Deadline(u64),
    /// CHECK of an interface that nobody added.
    #[error("no such endpoint: it was never added, or deleted")]
    Unknown,
    /// CHECK found other addresses than the runtime expects.
    #[error("the endpoint has {held:?}, not {expected:?}")]
    Addresses {
        /// What is recorded.
        held: Vec<IpAddr>,
        /// What the runtime's earlier result says.
        expected: Vec<IpAddr>,
    },
    /// CHECK found other wiring than ADD made.
    #[error(transparent)]
    Mismatch(#[from] PodMismatch),
    /// No address.
    #[error(transparent)]
    Ipam(IpamError),
    /// Host ports that cannot be.
    #[error(transparent)]
    HostPort(HostPortError),
    /// CHECK found other host ports than the runtime expects.
    #[error("the endpoint has host ports {held}, not {expected}")]
    HostPorts {
        /// What is recorded.
        held: String,
        /// What the runtime says.
        expected: String,
    },
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Maps and programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The thread behind them.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

impl From<LedgerError> for CallError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Ipam(error) => Self::Ipam(error),
            LedgerError::HostPort(error) => Self::HostPort(error),
            LedgerError::Store(error) => Self::Store(error),
        }
    }
}

impl CallError {
    /// The specification's number.
    pub fn code(&self) -> u32 {
        match self {
            Self::NotReady(_) | Self::Deadline(_) | Self::Worker(_) => code::TRY_AGAIN_LATER,
            // Addresses come back when other pods go.
            Self::Ipam(IpamError::NoPool | IpamError::Exhausted { .. } | IpamError::InUse { .. }) => {
                code::TRY_AGAIN_LATER
            }
            Self::Ipam(IpamError::Differs { .. }) => code::INVALID_CONFIG,
            // So do ports.
            Self::HostPort(HostPortError::Taken { .. }) => code::TRY_AGAIN_LATER,
            Self::HostPort(HostPortError::Sctp(_)) => code::UNSUPPORTED_FIELD,
            Self::HostPort(_) => code::INVALID_CONFIG,
            Self::Unavailable(_) => code::NOT_AVAILABLE,
            Self::NoNamespace | Self::Namespace(_) => code::INVALID_ENVIRONMENT,
            Self::Unknown => code::UNKNOWN_CONTAINER,
            Self::Addresses { .. } | Self::HostPorts { .. } | Self::Mismatch(_) => code::CHECK_FAILED,
            Self::Store(_) => code::IO_FAILURE,
            Self::Netlink(_) | Self::Datapath(_) => code::INTERNAL,
        }
    }

    /// As the shim passes it on; `call` is the verb that failed.
    pub fn reply(&self, call: &str) -> ErrorReply {
        ErrorReply { code: self.code(), msg: format!("{call} failed"), details: with_causes(self) }
    }
}

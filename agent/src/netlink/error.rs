//! Why the kernel refused, with what was asked of it.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// Why the kernel could not be asked or refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No rtnetlink socket could be had.
    #[error("cannot open an rtnetlink socket: {0}")]
    Open(#[source] io::Error),

    /// The socket failed under a request.
    #[error("{what}: the rtnetlink socket failed: {source}")]
    Socket {
        /// What was asked.
        what: String,
        /// What the socket said.
        #[source]
        source: io::Error,
    },

    /// The kernel refused a request.
    #[error("{what}: {}{}", .errno.desc(), explained(.explanation))]
    Refused {
        /// What was asked, on what.
        what: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words, where it has any.
        explanation: Option<String>,
    },

    /// The table changed under every attempt to read it.
    #[error("{what}: the table kept changing while it was read; try again")]
    Inconsistent {
        /// What was read.
        what: String,
    },

    /// The kernel's answer was not what the request asks for.
    #[error("{what}: the kernel's answer lacks {lacks}")]
    Answer {
        /// What was asked.
        what: String,
        /// What the answer lacks.
        lacks: &'static str,
    },

    /// The pod already has an interface of this name that is not ours.
    #[error(
        "the pod's network namespace already has an interface {ifname}, which is not Hypha's: remove it first"
    )]
    InterfaceExists {
        /// The container end's name.
        ifname: String,
    },

    /// A device that was named does not exist.
    #[error("there is no network device {name}: check --device")]
    NoSuchDevice {
        /// The device's name.
        name: String,
    },

    /// No device leads to other nodes or to the world.
    #[error(
        "no uplink: no device holds one of the node's addresses or a default route; name one with --device"
    )]
    NoUplink,

    /// An IPv6 address was asked for on a kernel without IPv6.
    #[error("cannot give {ifname} an IPv6 address: IPv6 is switched off in this kernel")]
    NoIpv6 {
        /// The device.
        ifname: String,
    },

    /// A sysctl could not be read or written.
    #[error("sysctl {}: cannot set {value}: {source}", .path.display())]
    Sysctl {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// The value that was to be set.
        value: String,
        /// What the file system said.
        #[source]
        source: io::Error,
    },

    /// A network namespace could not be opened or entered.
    #[error("cannot {action} network namespace{}: {source}", named(.path))]
    Netns {
        /// What was tried: "open" or "enter".
        action: &'static str,
        /// The namespace's file, where one was named.
        path: Option<PathBuf>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },

    /// The thread that did the work could not be started or died.
    #[error("the thread for {what} could not be started or died")]
    Thread {
        /// What it was to do.
        what: &'static str,
    },
}

impl NetlinkError {
    /// The kernel's error number when it refused the request.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the kernel said that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH))
    }
}

fn explained(explanation: &Option<String>) -> String {
    explanation.as_ref().map_or_else(String::new, |text| format!(" ({text})"))
}

fn named(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| format!(" {}", path.display()))
}

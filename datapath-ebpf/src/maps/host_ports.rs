//! The map about ports of the node that lead to pods: `host_ports`.

use super::pod;
use crate::{Ip, Port};

/// How many host ports one node can have; one for all of the node's addresses counts once per family.
pub const HOST_PORTS_MAX: usize = 16_384;

/// `host_ports`: a port of the node that is a pod's.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPortKey {
    /// The node's address, or the family's unspecified one (`0.0.0.0` mapped, or `::`) for all of its addresses.
    pub address: Ip,
    /// The port there.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: u8,
}
pod!(HostPortKey);

/// `host_ports`: where packets to a port of the node go.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The pod's address, of the key's family.
    pub address: Ip,
    /// The agent's number for the endpoint.
    pub endpoint: u32,
    /// The pod's port.
    pub port: Port,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: [u8; 2],
}
pod!(HostPort);

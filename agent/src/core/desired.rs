//! The desired state of the maps.

use std::collections::BTreeMap;

use datapath_ebpf::{
    Ip,
    maps::{Endpoint, Node, Route, Uplink},
};
use ipnet::IpNet;

/// What the maps should hold, by map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// `endpoints`: the pods of this node and the node's own addresses.
    pub endpoints: BTreeMap<Ip, Endpoint>,
    /// `routes`: prefixes that are not endpoints, of both families.
    pub routes: BTreeMap<IpNet, Route>,
    /// `uplinks`: by ifindex.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// `node`: the single entry.
    pub node: Node,
}

//! What the model knows about the node: who is where, and which way leads there.

use std::{collections::BTreeSet, net::IpAddr};

use datapath_ebpf::{Ip, maps::RouteKind};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    frames::Mac,
    node::Node,
    topology::{Family, NEIGHBOUR_MAC, POD_MAC},
};

/// One of the node's two pods.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Pod {
    A,
    B,
}

impl Pod {
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The MAC of the pod's own interface.
    pub fn mac(self) -> Mac {
        match self {
            Self::A => POD_MAC,
            Self::B => NEIGHBOUR_MAC,
        }
    }
}

/// Who an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    Node,
    Pod(Pod),
}

/// A socket of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    pub protocol: u8,
    pub port: u16,
    /// The one remote end it talks to, if it is connected.
    pub remote: Option<(Ip, u16)>,
}

/// The node.
#[derive(Clone, Debug)]
pub struct World {
    pub v4: bool,
    pub node: Ip,
    pub pods: [Ip; 2],
    /// Pods that are there.
    pub present: BTreeSet<Pod>,
    /// Pods whose flows are still to be ended.
    pub leaving: BTreeSet<Pod>,
    /// The uplink, which all ways to the world lead through.
    pub uplink: u32,
    pub sockets: Vec<Socket>,
    routes: Vec<(IpNet, u8)>,
}

impl World {
    pub fn new(node: &Node, sockets: Vec<Socket>) -> Self {
        Self {
            v4: node.family == Family::V4,
            node: node.at.node.into(),
            pods: [node.at.pod.into(), node.at.neighbour.into()],
            present: Pod::ALL.into(),
            leaving: BTreeSet::new(),
            uplink: node.devices.uplink,
            sockets,
            routes: node.desired.routes.iter().map(|(prefix, route)| (*prefix, route.kind)).collect(),
        }
    }

    pub fn address(&self, pod: Pod) -> Ip {
        self.pods[pod as usize]
    }

    pub fn find(&self, address: Ip) -> Option<Endpoint> {
        if address == self.node {
            return Some(Endpoint::Node);
        }
        let pod = self.present.iter().find(|pod| self.address(**pod) == address)?;
        Some(Endpoint::Pod(*pod))
    }

    /// The way to an address by the longest prefix; `None` is the world.
    pub fn way(&self, address: Ip) -> Option<u8> {
        let address = IpAddr::from(address);
        let matching = self.routes.iter().filter(|(prefix, _)| prefix.contains(&address));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, kind)| *kind)
    }

    /// Whether what goes there takes the node's address.
    pub fn is_outside(&self, address: Ip) -> bool {
        self.find(address).is_none() && self.way(address).is_none_or(|kind| kind == RouteKind::Local as u8)
    }

    /// Whether a socket of the host would get what `remote` sends to this port of the node.
    pub fn has_socket(&self, protocol: u8, port: u16, remote: (Ip, u16)) -> bool {
        let is_it = |socket: &Socket| {
            (socket.protocol, socket.port) == (protocol, port)
                && socket.remote.is_none_or(|end| end == remote)
        };
        self.sockets.iter().any(is_it)
    }
}

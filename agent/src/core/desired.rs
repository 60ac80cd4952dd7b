//! The desired state: what the maps and the kernel's routing table should hold, compiled from what is known.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use datapath_ebpf::{
    Ip, Mac,
    maps::{Endpoint, HostPort, HostPortKey, LAYOUT, Node, OVERLAY_VNI, Prefix, Route, RouteKind, Uplink},
};
use ipnet::IpNet;

use super::{
    exempt,
    facts::{Facts, KernelRoute, PodFacts, RouteTarget, Routing, UplinkInfo},
    host_ports,
    nodes::{NodeModel, Nodes},
};

/// What VXLAN takes from the MTU over IPv4: outer IPv4, UDP and VXLAN headers and the inner Ethernet header.
pub const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
pub const OVERHEAD_V6: u32 = 70;
/// The MTU when no uplink tells one.
const DEFAULT_MTU: u32 = 1500;
/// The priority of the unreachable routes: any other route to the same prefix wins.
const UNREACHABLE_METRIC: u32 = 4096;

/// What the maps should hold, by map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// `endpoints`: the pods of this node and the node's own addresses.
    pub endpoints: BTreeMap<Ip, Endpoint>,
    /// `routes`: prefixes that are not endpoints, of both families.
    pub routes: BTreeMap<IpNet, Route>,
    /// `host_ports`: the node's ports that lead to pods.
    pub host_ports: BTreeMap<HostPortKey, HostPort>,
    /// `uplinks`: by ifindex.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// `node`: the single entry.
    pub node: Node,
}

/// The outcome of [`compile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// For the maps.
    pub desired: Desired,
    /// For the kernel's routing table.
    pub kernel_routes: BTreeSet<KernelRoute>,
    /// What could not be expressed; for the log.
    pub problems: BTreeSet<Problem>,
}

/// A contradiction or a gap in what is known. The rest of the state is compiled without it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// This node's own object is missing.
    #[error("no Node object named {0}: no pod can get an address until there is one with spec.podCIDRs")]
    NoOwnNode(String),
    /// The kernel cannot reach a node.
    #[error("node {node} is unreachable: the kernel has no route to {address}; its pods get no packets")]
    Unreachable {
        /// The other node.
        node: String,
        /// Its address.
        address: IpAddr,
    },
    /// A node has pods of a family without an address of that family.
    #[error(
        "node {node} has no address to send {cidr} to: it needs an InternalIP that this node shares a family with"
    )]
    NoAddress {
        /// The other node.
        node: String,
        /// Its pod CIDR.
        cidr: IpNet,
    },
    /// Two nodes claim a prefix.
    #[error("node {node} claims {prefix}, which {owner} has already: ignored")]
    Overlap {
        /// Who came second in the order of the names.
        node: String,
        /// What both claim.
        prefix: IpNet,
        /// Who keeps it.
        owner: String,
    },
    /// Two pods have one host port.
    #[error("endpoint {id} has host port {port}, which endpoint {owner} has already: that one keeps it")]
    HostPort {
        /// The endpoint that does without.
        id: u32,
        /// The port.
        port: u16,
        /// Who has it.
        owner: u32,
    },
    /// A pod holds an address of the node itself.
    #[error("endpoint {id} holds {address}, which is the node's own address: the node keeps it")]
    HoldsNodeAddress {
        /// The endpoint.
        id: u32,
        /// The address.
        address: IpAddr,
    },
}

/// The MTU of pods on this node in bytes: the smallest uplink's, less what encapsulation takes.
pub fn pod_mtu(facts: &Facts, nodes: &Nodes) -> u32 {
    facts.mtu.unwrap_or_else(|| {
        let over_v4 = nodes
            .get(&facts.node_name)
            .is_none_or(|own| own.address(true).is_some() || own.addresses.is_empty());
        let overhead = match facts.routing {
            Routing::Native => 0,
            Routing::Tunnel => overhead(over_v4),
        };
        smallest_mtu(&facts.uplinks).saturating_sub(overhead)
    })
}

fn smallest_mtu(uplinks: &[UplinkInfo]) -> u32 {
    uplinks.iter().map(|uplink| uplink.mtu).min().unwrap_or(DEFAULT_MTU)
}

fn overhead(over_v4: bool) -> u32 {
    if over_v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

/// The node's own address of one family: what its object says, else what it would masquerade with. Objects and devices
/// change one after the other: an address that is not there, or not yet, is no source.
pub fn node_address(facts: &Facts, nodes: &Nodes, v4: bool) -> Option<IpAddr> {
    let masquerade = |uplink: &UplinkInfo| if v4 { uplink.masquerade_v4 } else { uplink.masquerade_v6 };
    let usable = |address: &IpAddr| facts.local.usable.contains(address);
    let own = nodes.get(&facts.node_name).and_then(|own| own.address(v4));
    own.filter(usable).or_else(|| facts.uplinks.iter().filter_map(masquerade).find(usable))
}

/// The smallest prefix that holds every node's pods of one family. One that is much wider than a cluster says nothing: none then.
fn pod_range(nodes: &Nodes, v4: bool) -> Prefix {
    let shortest = if v4 { 8 } else { 16 };
    let cidrs = nodes.iter().flat_map(|node| &node.pod_cidrs).filter(|cidr| cidr.addr().is_ipv4() == v4);
    let cover = cidrs.copied().reduce(|cover, cidr| {
        let mut cover = cover;
        while !cover.contains(&cidr) {
            match cover.supernet() {
                Some(wider) => cover = wider,
                None => break,
            }
        }
        cover
    });
    cover.filter(|cover| cover.prefix_len() >= shortest).map_or(Prefix::NONE, |cover| Prefix {
        address: cover.network().into(),
        mask: cover.netmask().into(),
    })
}

/// The desired state of everything.
pub fn compile(nodes: &Nodes, facts: &Facts) -> Compiled {
    let mut compiler = Compiler::new(nodes, facts);
    compiler.own_node();
    for node in nodes.iter().filter(|node| node.name != facts.node_name) {
        compiler.other_node(node);
    }
    compiler.exempt();
    compiler.host_ports();
    compiler.local_addresses();
    for pod in &facts.pods {
        compiler.pod(pod);
    }
    compiler.uplinks();
    compiler.out
}

struct Compiler<'a> {
    nodes: &'a Nodes,
    facts: &'a Facts,
    /// Who a prefix in `routes` came from.
    owners: BTreeMap<IpNet, &'a str>,
    out: Compiled,
}

impl<'a> Compiler<'a> {
    fn new(nodes: &'a Nodes, facts: &'a Facts) -> Self {
        let address = |v4| node_address(facts, nodes, v4).map_or(Ip::UNSPECIFIED, Ip::from);
        let node = Node {
            address_v4: address(true),
            address_v6: address(false),
            pods_v4: pod_range(nodes, true),
            pods_v6: pod_range(nodes, false),
            overlay_ifindex: facts.overlay_ifindex.unwrap_or(0),
            layout: LAYOUT,
        };
        let desired = Desired {
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            node,
        };
        let out = Compiled { desired, kernel_routes: BTreeSet::new(), problems: BTreeSet::new() };
        Self { nodes, facts, owners: BTreeMap::new(), out }
    }

    fn own_node(&mut self) {
        let Some(own) = self.nodes.get(&self.facts.node_name) else {
            self.out.problems.insert(Problem::NoOwnNode(self.facts.node_name.clone()));
            return;
        };
        for cidr in &own.pod_cidrs {
            self.claim(&own.name, *cidr, route(RouteKind::Local, Ip::UNSPECIFIED, 0, u32::MAX));
            self.kernel_route(*cidr, RouteTarget::Unreachable, None, Some(UNREACHABLE_METRIC));
        }
    }

    fn other_node(&mut self, node: &'a NodeModel) {
        let addresses = node.addresses.iter().filter(|address| !self.facts.local.all.contains(address));
        for prefix in node.pod_cidrs.iter().copied().chain(addresses.map(|address| IpNet::from(*address))) {
            match self.facts.routing {
                Routing::Native => self.native(node, prefix),
                Routing::Tunnel => self.tunnel(node, prefix),
            }
        }
    }

    fn native(&mut self, node: &'a NodeModel, prefix: IpNet) {
        let address = if node.pod_cidrs.contains(&prefix) {
            node.address(prefix.addr().is_ipv4())
        } else {
            Some(prefix.addr())
        };
        let Some(address) = address else {
            self.out.problems.insert(Problem::NoAddress { node: node.name.clone(), cidr: prefix });
            return;
        };
        let Some(hop) = self.facts.next_hops.get(&address) else {
            self.out.problems.insert(Problem::Unreachable { node: node.name.clone(), address });
            return;
        };
        let gateway = hop.gateway.unwrap_or(address);
        let mtu = self.limit(hop.mtu);
        let claimed =
            self.claim(&node.name, prefix, route(RouteKind::Native, gateway.into(), hop.ifindex, mtu));
        // The kernel's own route to a node's address is where the next hop came from.
        if claimed && prefix.addr() != address {
            let source = node_address(self.facts, self.nodes, prefix.addr().is_ipv4());
            self.kernel_route(prefix, RouteTarget::Gateway { ifindex: hop.ifindex, gateway }, source, None);
        }
    }

    fn tunnel(&mut self, node: &'a NodeModel, prefix: IpNet) {
        let Some(overlay) = self.facts.overlay_ifindex else { return };
        let Some(remote) = self.underlay(node) else {
            self.out.problems.insert(Problem::NoAddress { node: node.name.clone(), cidr: prefix });
            return;
        };
        let hop = self.facts.next_hops.get(&remote);
        if hop.is_none() {
            self.out.problems.insert(Problem::Unreachable { node: node.name.clone(), address: remote });
        }
        let underlay_mtu = hop.map_or_else(|| smallest_mtu(&self.facts.uplinks), |hop| hop.mtu);
        let mtu = self.limit(underlay_mtu.saturating_sub(overhead(remote.is_ipv4())));
        let through_device = route(RouteKind::Tunnel, remote.into(), overlay, mtu);
        let is_pods = node.pod_cidrs.contains(&prefix);
        let through_device = Route { flags: if is_pods { 0 } else { Route::NODE }, ..through_device };
        let route = hop.map_or(through_device, |hop| Route {
            underlay_next_hop: hop.gateway.unwrap_or(remote).into(),
            underlay_ifindex: hop.ifindex,
            ..through_device
        });
        let claimed = self.claim(&node.name, prefix, route);
        if claimed && is_pods {
            let source = node_address(self.facts, self.nodes, prefix.addr().is_ipv4());
            let target = RouteTarget::Tunnel { ifindex: overlay, id: OVERLAY_VNI, remote };
            self.kernel_route(prefix, target, source, None);
        }
    }

    /// The address to tunnel to: IPv4 when both ends have it, for its smaller header.
    fn underlay(&self, node: &NodeModel) -> Option<IpAddr> {
        let shared = |v4: &bool| node_address(self.facts, self.nodes, *v4).is_some();
        [true, false].iter().filter(|v4| shared(v4)).find_map(|v4| node.address(*v4))
    }

    /// An operator who sets the MTU knows of a path that is narrower than it looks from here.
    fn limit(&self, mtu: u32) -> u32 {
        self.facts.mtu.map_or(mtu, |limit| mtu.min(limit))
    }

    fn claim(&mut self, node: &'a str, prefix: IpNet, route: Route) -> bool {
        if let Some(owner) = self.owners.get(&prefix) {
            let (node, owner) = (node.to_owned(), (*owner).to_owned());
            self.out.problems.insert(Problem::Overlap { node, prefix, owner });
            return false;
        }
        self.owners.insert(prefix, node);
        self.out.desired.routes.insert(prefix, route);
        true
    }

    /// An exempt prefix inside a node's is left out: the longest match would hide the way to that node.
    fn exempt(&mut self) {
        for cidr in self.facts.exempt_cidrs.iter().copied().flat_map(exempt::pieces) {
            if !self.owners.keys().any(|prefix| prefix.contains(&cidr)) {
                let exempt = route(RouteKind::Exempt, Ip::UNSPECIFIED, 0, u32::MAX);
                self.out.desired.routes.insert(cidr, exempt);
            }
        }
    }

    fn host_ports(&mut self) {
        for pod in &self.facts.pods {
            for (key, to) in host_ports::entries(pod) {
                // The ledger refuses what is taken: this is about records that somebody else has written.
                match self.out.desired.host_ports.entry(key) {
                    Entry::Vacant(free) => drop(free.insert(to)),
                    Entry::Occupied(taken) if taken.get().endpoint == pod.id => {}
                    Entry::Occupied(taken) => {
                        let (port, owner) = (key.port.get(), taken.get().endpoint);
                        self.out.problems.insert(Problem::HostPort { id: pod.id, port, owner });
                    }
                }
            }
        }
    }

    fn local_addresses(&mut self) {
        let host = Endpoint { ifindex: 0, mac: Mac { bytes: [0; 6] }, flags: Endpoint::HOST, id: 0 };
        for address in &self.facts.local.all {
            let address = Ip::from(*address);
            let has_host_ports =
                self.out.desired.host_ports.keys().any(|key| host_ports::is_at(key, &address));
            let flags = host.flags | if has_host_ports { Endpoint::HOST_PORTS } else { 0 };
            self.out.desired.endpoints.insert(address, Endpoint { flags, ..host });
        }
    }

    fn pod(&mut self, pod: &PodFacts) {
        for address in &pod.addresses {
            if self.facts.local.all.contains(address) {
                self.out.problems.insert(Problem::HoldsNodeAddress { id: pod.id, address: *address });
                continue;
            }
            self.out.desired.endpoints.insert((*address).into(), pod_endpoint(pod));
            let source = node_address(self.facts, self.nodes, address.is_ipv4());
            self.kernel_route((*address).into(), RouteTarget::Link { ifindex: pod.ifindex }, source, None);
        }
    }

    fn uplinks(&mut self) {
        let address = |address: Option<IpAddr>| address.map_or(Ip::UNSPECIFIED, Ip::from);
        for uplink in &self.facts.uplinks {
            let entry = Uplink {
                masquerade_v4: address(uplink.masquerade_v4),
                masquerade_v6: address(uplink.masquerade_v6),
                mtu: uplink.mtu,
                flags: if self.facts.masquerade { Uplink::MASQUERADE } else { 0 },
            };
            self.out.desired.uplinks.insert(uplink.ifindex, entry);
        }
    }

    fn kernel_route(
        &mut self,
        prefix: IpNet,
        target: RouteTarget,
        source: Option<IpAddr>,
        metric: Option<u32>,
    ) {
        self.out.kernel_routes.insert(KernelRoute { prefix, target, source, metric });
    }
}

/// A pod's value in `endpoints`.
pub fn pod_endpoint(pod: &PodFacts) -> Endpoint {
    let flags = if pod.host_ports.is_empty() { 0 } else { Endpoint::HOST_PORTS };
    Endpoint { ifindex: pod.ifindex, mac: pod.mac, flags, id: pod.id }
}

/// `mtu` beyond what the field holds means: no limit from this route.
fn route(kind: RouteKind, next_hop: Ip, ifindex: u32, mtu: u32) -> Route {
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    Route {
        next_hop,
        underlay_next_hop: Ip::UNSPECIFIED,
        ifindex,
        underlay_ifindex: 0,
        mtu,
        kind: kind as u8,
        flags: 0,
    }
}

#[cfg(test)]
pub(super) mod tests;

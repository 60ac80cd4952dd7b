//! The paths that are measured, and which of them are compared with each other.
//!
//! All paths between nodes use the same wire (node, bridge, node) and all pods the same kind of veth, so that a ratio
//! within a group is the price of the path alone.

use std::net::IpAddr;

use anyhow::Context as _;
use hypha_lab::netns::Netns;
use hypha_lab::{Family, Lab, LabSpec, Pod, Routing, Station};
use serde::Serialize;

use super::plain::Plain;

/// Paths that are compared with each other; the first of a group is the measure of the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Two pods of one node.
    SameNode,
    /// Pods of two nodes, packets as they are.
    Native,
    /// Pods of two nodes, packets wrapped in VXLAN.
    Tunnel,
    /// A pod and a host outside.
    World,
}

impl Group {
    /// All, in the order of the report.
    pub const ALL: [Self; 4] = [Self::SameNode, Self::Native, Self::Tunnel, Self::World];
}

/// One path from a client to a server.
pub struct Route<'a> {
    /// What it is compared with.
    pub group: Group,
    /// What carries the packets.
    pub name: &'static str,
    /// Where the client runs.
    pub client: &'a Netns,
    /// Where the server runs.
    pub server: &'a Netns,
    /// What the client connects to.
    pub address: IpAddr,
}

impl<'a> Route<'a> {
    /// The path from `client` to the address by which others reach `server`.
    pub fn new(
        group: Group,
        name: &'static str,
        client: &'a dyn Station,
        server: &'a dyn Station,
        family: Family,
    ) -> Self {
        Self { group, name, client: client.netns(), server: server.netns(), address: server.address(family) }
    }
}

/// Every network of a run; all go when it is dropped.
pub struct Networks {
    plain: Plain,
    native: Option<Hypha>,
    tunnel: Option<Hypha>,
}

impl Networks {
    /// Builds what the groups need, `with_hypha` or only what it is measured against.
    pub fn build(groups: &[Group], with_hypha: bool) -> anyhow::Result<Self> {
        let hypha = |routing, users: &[Group]| {
            let used = with_hypha && users.iter().any(|user| groups.contains(user));
            used.then(|| Hypha::build(routing)).transpose()
        };
        Ok(Self {
            plain: Plain::build().context("building the networks of plain Linux")?,
            native: hypha(Routing::Native, &[Group::SameNode, Group::Native, Group::World])?,
            tunnel: hypha(Routing::Tunnel, &[Group::Tunnel])?,
        })
    }

    /// The paths of the groups; within a group the first is the measure of the others.
    pub fn routes(&self, groups: &[Group], family: Family) -> Vec<Route<'_>> {
        let mut routes = self.plain.routes(family);
        if let Some(native) = &self.native {
            routes.push(Route::new(Group::SameNode, "hypha", &native.here, &native.neighbour, family));
            routes.push(Route::new(Group::Native, "hypha", &native.here, &native.there, family));
            routes.push(Route::new(
                Group::World,
                "hypha masquerade",
                &native.here,
                native.lab.gateway(),
                family,
            ));
        }
        if let Some(tunnel) = &self.tunnel {
            routes.push(Route::new(Group::Tunnel, "hypha", &tunnel.here, &tunnel.there, family));
        }
        routes.retain(|route| groups.contains(&route.group));
        // Stable: the measure of a group stays its first.
        routes.sort_by_key(|route| route.group);
        routes
    }
}

/// Two nodes with agents and three pods. Pods before the lab: they go first.
pub struct Hypha {
    /// On the first node.
    pub here: Pod,
    /// On the first node too.
    pub neighbour: Pod,
    /// On the second node.
    pub there: Pod,
    /// The nodes and what is around them.
    pub lab: Lab,
}

impl Hypha {
    /// Whether packets between the nodes are wrapped.
    pub fn has_overlay(&self) -> bool {
        self.lab.routing() == Routing::Tunnel
    }

    /// Builds it and waits until it serves.
    pub fn build(routing: Routing) -> anyhow::Result<Self> {
        let build = || {
            let lab = LabSpec::nodes(2, routing).prefix("bench").build()?;
            for node in lab.nodes() {
                // As on the nodes of plain Linux: the check costs a route lookup per packet.
                node.netns().sysctl("ipv4/conf/eth0/rp_filter", "0")?;
            }
            Ok(Self {
                here: lab.node(0).add_pod("here")?,
                neighbour: lab.node(0).add_pod("neighbour")?,
                there: lab.node(1).add_pod("there")?,
                lab,
            })
        };
        let built: anyhow::Result<Self> = build();
        built.with_context(|| format!("building the network of Hypha ({routing})"))
    }
}

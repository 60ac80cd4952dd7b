//! What the desired state needs to know about this machine, asked of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use datapath_ebpf::Mac;
use tokio::time::Instant;

use super::agent::Agent;
use crate::{
    core::{
        desired::pod_mtu,
        facts::{Facts, Routing},
        nodes::Nodes,
    },
    datapath::Role,
    netlink::{NetlinkError, PodLinkInfo},
};

/// Facts, and what they were gathered for.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// When.
    pub at: Instant,
    /// Everything but the pods and the exempt prefixes, which are not the kernel's.
    pub facts: Facts,
    /// The addresses of this node as its object told.
    own: Vec<IpAddr>,
}

/// Asks the kernel for everything. Makes or repairs the tunnel device on the way, because its number is among the facts.
pub async fn gather(agent: &Agent) -> Result<Gathered, NetlinkError> {
    let Agent { netlink, config, .. } = agent;
    let at = Instant::now();
    let (own, others) = addresses(&agent.index().nodes, &config.node_name);
    let uplinks = netlink.uplinks(&config.devices, &own).await?;
    netlink.prepare_node(&uplinks).await?;
    let next_hops = netlink.routes_to(others).await?;
    let mut facts = Facts {
        node_name: config.node_name.clone(),
        routing: config.routing,
        masquerade: config.masquerade,
        exempt_cidrs: Vec::new(),
        mtu: config.mtu,
        uplinks,
        overlay_ifindex: None,
        next_hops,
        local: netlink.local_addresses().await?,
        pods: Vec::new(),
    };
    match config.routing {
        Routing::Tunnel => {
            let mtu = pod_mtu(&facts, &agent.index().nodes);
            facts.overlay_ifindex = Some(netlink.ensure_overlay(mtu).await?);
        }
        Routing::Native => {
            netlink.delete_overlay().await?;
        }
    }
    Ok(Gathered { at, facts, own })
}

impl Gathered {
    /// Nodes have changed: asks for the ways to those addresses only that are new. Tells whether that is enough; it is not
    /// when this node's own addresses are others, because then everything may be.
    pub async fn follow_nodes(&mut self, agent: &Agent) -> Result<bool, NetlinkError> {
        let (own, others) = addresses(&agent.index().nodes, &agent.config.node_name);
        if own != self.own {
            return Ok(false);
        }
        let others: BTreeSet<IpAddr> = others.into_iter().collect();
        let hops = &mut self.facts.next_hops;
        hops.retain(|address, _| others.contains(address));
        let unknown = others.iter().filter(|address| !hops.contains_key(address)).copied().collect();
        hops.extend(agent.netlink.routes_to(unknown).await?);
        Ok(true)
    }
}

/// The addresses of this node, and those of all others, as their objects tell.
fn addresses(nodes: &Nodes, name: &str) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let own = nodes.get(name).map(|own| own.addresses.clone()).unwrap_or_default();
    let others = nodes.iter().filter(|node| node.name != name);
    (own, others.flat_map(|node| node.addresses.iter().copied()).collect())
}

/// The programs every device should carry. Host ends that no endpoint owns get theirs, too: without an entry in the maps
/// the programs let nothing through.
pub fn attachments(facts: &Facts, links: &[PodLinkInfo]) -> BTreeMap<u32, Role> {
    let uplinks = facts.uplinks.iter().map(|uplink| (uplink.ifindex, Role::Uplink));
    let overlay = facts.overlay_ifindex.map(|ifindex| (ifindex, Role::Overlay));
    let pods = links.iter().map(|link| (link.ifindex, Role::Pod));
    uplinks.chain(overlay).chain(pods).collect()
}

/// The permanent neighbour entries that the node's own packets to its pods need.
pub fn neighbours(facts: &Facts) -> BTreeMap<(u32, IpAddr), Mac> {
    let mut neighbours = BTreeMap::new();
    for pod in &facts.pods {
        neighbours.extend(pod.addresses.iter().map(|address| ((pod.ifindex, *address), pod.mac)));
    }
    neighbours
}

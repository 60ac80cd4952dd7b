//! A look into the first node's maps, in words.

use std::net::IpAddr;

use anyhow::Result;
use datapath_ebpf::maps::{Route, RouteKind};

use crate::{
    maps::{Counted, Maps},
    node::Node,
};

/// What the maps of a node hold.
#[derive(Debug)]
pub struct MapsReport {
    /// Local addresses and where they lead.
    pub endpoints: Vec<(IpAddr, String)>,
    /// Prefixes and where they lead.
    pub routes: Vec<(String, String)>,
    /// Flows that are tracked.
    pub conntrack: usize,
    /// Ways back of masqueraded flows.
    pub nat: usize,
    /// What became of packets: program, outcome, packets, bytes.
    pub counters: Vec<Counted>,
}

impl MapsReport {
    /// Reads the pinned maps of a node.
    pub fn read(node: &Node) -> Result<Self> {
        let maps = Maps::of(node.bpf_dir());
        let mut endpoints: Vec<_> = maps.endpoints()?;
        endpoints.sort_by_key(|(ip, _)| *ip);
        let endpoints = endpoints.into_iter().map(|(ip, endpoint)| {
            let place = match endpoint.ifindex {
                0 => "this node".to_owned(),
                index => format!("pod behind device {index}, MAC {}", endpoint.mac),
            };
            (ip.into(), place)
        });
        let mut routes = maps.routes()?;
        routes.sort_by_key(|(ip, len, _)| (*ip, *len));
        let routes = routes.into_iter().map(|(ip, len, route)| (format!("{ip}/{len}"), describe(&route)));
        Ok(Self {
            endpoints: endpoints.collect(),
            routes: routes.collect(),
            conntrack: maps.conntrack()?.len(),
            nat: maps.nat()?.len(),
            counters: maps.counters()?,
        })
    }
}

fn describe(route: &Route) -> String {
    let (next_hop, ifindex, mtu) = (route.next_hop, route.ifindex, route.mtu);
    match route.kind {
        kind if kind == RouteKind::Local as u8 => "pods of this node".to_owned(),
        kind if kind == RouteKind::Native as u8 => format!("via {next_hop}, device {ifindex}, MTU {mtu}"),
        kind if kind == RouteKind::Tunnel as u8 => format!("through the tunnel to {next_hop}, MTU {mtu}"),
        kind if kind == RouteKind::Exempt as u8 => "outside, not masqueraded".to_owned(),
        kind => format!("unknown kind {kind}"),
    }
}

//! Ports: which one a new flow may get, and what ends flows.

use datapath_ebpf::{DropReason, maps::FlowKey};

use super::{
    flow::Flow,
    packet::{ICMP, ICMPV6, Packet, SCTP},
    time::Span,
    translation::{Back, Model, Step, Stop, way_back},
    world::Pod,
};

/// First port of those that masquerade gives away.
const FIRST: u16 = 32_768;

impl Model {
    /// Makes a new flow of the node's address, with the port it keeps or, where it cannot, with the one the program has chosen.
    pub(super) fn open(
        &mut self,
        step: &Step<'_>,
        packet: &Packet,
        key: &FlowKey,
        host: bool,
    ) -> Result<(), Stop> {
        let own = key.src_port.get();
        let port = if self.may_keep(key, host) {
            own
        } else if packet.header.protocol == SCTP {
            return Err(DropReason::PortsExhausted.into());
        } else {
            self.check_choice(key, (step.chosen)(key), host)?
        };
        let nat = (self.world.node, port);
        let back = Back { address: key.src, port: own, host, created: step.now };
        self.nat.insert(way_back(key, nat), back);
        let flow = Flow {
            created: step.now,
            nat: Some(nat),
            ifindex: self.world.uplink,
            host,
            sent: Default::default(),
            received: Default::default(),
        };
        self.conntrack.insert(*key, flow);
        Ok(())
    }

    fn may_keep(&self, key: &FlowKey, host: bool) -> bool {
        let port = key.src_port.get();
        let any = matches!(key.protocol, ICMP | ICMPV6 | SCTP);
        (any || port >= FIRST) && self.is_free(key, port, host)
    }

    /// Nobody has it: neither a flow, nor a socket other than the one that sends this.
    fn is_free(&self, key: &FlowKey, port: u16, host: bool) -> bool {
        let own = host && port == key.src_port.get();
        let socket = self.rules.spares_sockets
            && self.world.has_socket(key.protocol, port, (key.dst, key.dst_port.get()));
        (own || !socket) && !self.nat.contains_key(&way_back(key, (self.world.node, port)))
    }

    fn check_choice(&self, key: &FlowKey, chosen: Option<u16>, host: bool) -> Result<u16, Stop> {
        let illegal = |why: &str| Err(Stop::Illegal(format!("port {chosen:?} for {key:?}: {why}")));
        match chosen {
            None => illegal("there are free ones"),
            Some(port) if port < FIRST => illegal("out of range"),
            Some(port) if !self.is_free(key, port, host) => illegal("taken"),
            Some(port) => Ok(port),
        }
    }

    /// Ends every flow that has been idle for too long, and those of pods that have left. `is_there` says whether the program has
    /// kept a flow: right at a timeout, it may or may not.
    pub fn collect(&mut self, now: Span, is_there: impl Fn(&FlowKey) -> bool) {
        let left: Vec<_> = self.world.leaving.iter().map(|pod| self.world.address(*pod)).collect();
        let ended = |key: &FlowKey, flow: &Flow| {
            let limit = self.rules.timeouts[flow.state(key.protocol) as usize];
            let idle = flow.last_seen().is_older_than(limit, now).unwrap_or_else(|| !is_there(key));
            idle || left.contains(&key.src)
        };
        let ended: Vec<_> =
            self.conntrack.iter().filter(|(key, flow)| ended(key, flow)).map(|(key, _)| *key).collect();
        for key in ended {
            if let Some(nat) = self.conntrack.remove(&key).and_then(|flow| flow.nat) {
                self.nat.remove(&way_back(&key, nat));
            }
        }
        self.world.leaving.clear();
        // Nor do the fragments that a next pod of the address sends or gets belong to theirs.
        let world = &self.world;
        self.datagrams.keep_of(|owner| world.find(owner).is_some());
    }

    /// A pod goes: nothing reaches it any more; its flows end with the next collection.
    pub fn remove(&mut self, pod: Pod) {
        self.world.present.remove(&pod);
        self.world.leaving.insert(pod);
    }

    /// A pod comes, and inherits nothing.
    pub fn add(&mut self, pod: Pod, now: Span, is_there: impl Fn(&FlowKey) -> bool) {
        if self.world.leaving.contains(&pod) {
            self.collect(now, is_there);
        }
        self.world.present.insert(pod);
    }

    /// What an owner's port has become towards a remote end, if it was translated.
    pub fn translated(&self, key: &FlowKey) -> Option<u16> {
        self.conntrack.get(key).and_then(|flow| flow.nat).map(|(_, port)| port)
    }
}

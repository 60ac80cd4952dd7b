//! The model: a node's whole translation in plain maps. Each hook takes a frame and says what must become of it.

use std::collections::BTreeMap;

use datapath_ebpf::{
    DropReason, Forward, Ip, Port,
    maps::{FlowKey, RouteKind},
};

use super::{
    datagrams::{Datagrams, Part},
    errors,
    flow::{ACK, End, Flow, SYN, State},
    link,
    packet::{self, Kind, Packet, TCP},
    rewrite::{self, Side},
    rules::Rules,
    time::Span,
    world::{Endpoint, Pod, World},
};
use crate::frames::ETHERNET;

/// The way back of a translated flow.
#[derive(Clone, Debug)]
pub struct Back {
    pub address: Ip,
    pub port: u16,
    pub host: bool,
    pub created: Span,
}

/// A packet, and what the model has to be told about its run.
pub struct Step<'a> {
    pub frame: &'a [u8],
    pub now: Span,
    /// The port that the program has given to a flow of this owner's: it may choose, within the rules.
    pub chosen: &'a dyn Fn(&FlowKey) -> Option<u16>,
}

/// Why a packet does not go on.
#[derive(Debug)]
pub enum Stop {
    Drop(DropReason),
    /// The program has done something that no rule allows.
    Illegal(String),
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// The way a packet goes, and its frame.
pub type Verdict = Result<(Forward, Vec<u8>), Stop>;

pub struct Model {
    pub rules: Rules,
    pub world: World,
    pub conntrack: BTreeMap<FlowKey, Flow>,
    pub nat: BTreeMap<FlowKey, Back>,
    pub datagrams: Datagrams,
}

/// A flow's key from one end's view.
pub fn key(src: Ip, dst: Ip, (src_port, dst_port): (u16, u16), protocol: u8) -> FlowKey {
    let (src_port, dst_port) = (Port::new(src_port), Port::new(dst_port));
    FlowKey { src, dst, src_port, dst_port, protocol, reserved: [0; 3] }
}

/// The flow of a packet as its sender sees it.
pub fn key_of(packet: &Packet) -> FlowKey {
    key(packet.header.src, packet.header.dst, packet.ports, packet.header.protocol)
}

impl Model {
    pub fn new(rules: Rules, world: World) -> Self {
        let datagrams = Datagrams::default();
        Self { rules, world, conntrack: BTreeMap::new(), nat: BTreeMap::new(), datagrams }
    }

    /// What a pod sends.
    pub fn pod_sends(&mut self, pod: Pod, step: &Step<'_>) -> Verdict {
        if !link::is_ip(step.frame, self.world.v4) {
            return Err(DropReason::EtherType.into());
        }
        let header = packet::fixed(step.frame, self.world.v4, ETHERNET)?;
        link::check_source(&self.world, pod, step.frame, &header)?;
        match self.world.find(header.dst) {
            Some(Endpoint::Node) => return Ok((Forward::Stack, step.frame.to_vec())),
            Some(Endpoint::Pod(to)) => return self.deliver(step.frame, to, Forward::Pod),
            None if link::is_local(header.dst) => return Err(DropReason::LinkLocal.into()),
            None => {}
        }
        let way = self.world.way(header.dst);
        if way == Some(RouteKind::Local as u8) {
            return Err(DropReason::NoEndpoint.into());
        }
        if header.hops <= 1 {
            return self.time_exceeded(step.frame);
        }
        let (forward, mut frame) = match way {
            None => match self.masquerade(step) {
                // Kept until the first fragment comes.
                Err(Stop::Drop(DropReason::FragmentUnknown)) => {
                    return Ok((Forward::Held, step.frame.to_vec()));
                }
                verdict => verdict?,
            },
            Some(kind) if kind == RouteKind::Native as u8 => (Forward::Node, step.frame.to_vec()),
            // Wrapped by the VXLAN device: the bench's tunnel has no underlay of its own.
            Some(kind) if kind == RouteKind::Tunnel as u8 => (Forward::Overlay, step.frame.to_vec()),
            Some(_) => (Forward::World, step.frame.to_vec()),
        };
        rewrite::hop(&mut frame, &header);
        Ok((forward, frame))
    }

    /// What the host's stack sends out of the uplink.
    pub fn stack_sends(&mut self, step: &Step<'_>) -> Verdict {
        let untouched = Ok((Forward::Stack, step.frame.to_vec()));
        if !link::is_ip(step.frame, self.world.v4) {
            return untouched;
        }
        let Ok(header) = packet::fixed(step.frame, self.world.v4, ETHERNET) else { return untouched };
        match self.world.find(header.src) {
            Some(Endpoint::Node) => self.host_sends(step),
            Some(Endpoint::Pod(_)) if self.world.is_outside(header.dst) => self.masquerade(step),
            _ => untouched,
        }
    }

    /// What comes in by the uplink.
    pub fn world_sends(&mut self, step: &Step<'_>) -> Verdict {
        let untouched = Ok((Forward::Stack, step.frame.to_vec()));
        if !link::is_ip(step.frame, self.world.v4) || link::is_for_another(step.frame) {
            return untouched;
        }
        let Ok(header) = packet::fixed(step.frame, self.world.v4, ETHERNET) else { return untouched };
        if link::is_mapped(&header) || link::is_overlay(step.frame, &header) {
            return untouched;
        }
        if let Some(Endpoint::Pod(pod)) = self.world.find(header.dst) {
            self.follow_inbound(step);
            return self.deliver(step.frame, pod, Forward::Pod);
        }
        let Ok(packet) = packet::read(&self.rules, step.frame, self.world.v4) else { return untouched };
        match packet.kind {
            Kind::Ports | Kind::EchoReply => self.reply(step, &packet),
            Kind::Error => errors::inbound(self, step.frame, &packet),
            Kind::LaterFragment => {
                let Ok(Some(part)) = Part::of(&packet, false) else { return untouched };
                let Some(owner) = self.pass(&part, step)? else { return untouched };
                self.to_owner(step.frame, owner, Forward::Unmasquerade, |frame| {
                    rewrite::address(frame, &packet.header, Side::Destination, owner);
                })
            }
            Kind::EchoRequest | Kind::Other => untouched,
        }
    }

    /// A pod's packet to the world.
    fn masquerade(&mut self, step: &Step<'_>) -> Verdict {
        let packet = packet::read(&self.rules, step.frame, self.world.v4)?;
        let mut frame = step.frame.to_vec();
        let part = Part::of(&packet, true)?;
        if let Some(part) = part.as_ref().filter(|_| packet.has_ports()) {
            self.pass(part, step)?;
        }
        match packet.kind {
            Kind::Ports | Kind::EchoRequest => self.translate(step, &packet, false),
            Kind::EchoReply => {
                self.begin(&packet, packet.header.src, step);
                Ok((Forward::World, frame))
            }
            Kind::Error => errors::outbound(self, step.frame, &packet),
            Kind::LaterFragment => {
                let part = part.ok_or(DropReason::FragmentUnknown)?;
                let known = self.pass(&part, step)?.ok_or(DropReason::FragmentUnknown)?;
                if known == packet.header.src {
                    return Ok((Forward::World, frame));
                }
                rewrite::address(&mut frame, &packet.header, Side::Source, known);
                Ok((Forward::Masquerade, frame))
            }
            Kind::Other => Err(DropReason::UnknownProtocol.into()),
        }
    }

    /// The host's own packet: only where a pod may have taken what it uses.
    fn host_sends(&mut self, step: &Step<'_>) -> Verdict {
        let untouched = Ok((Forward::Stack, step.frame.to_vec()));
        let Ok(packet) = packet::read(&self.rules, step.frame, self.world.v4) else { return untouched };
        let key = key_of(&packet);
        let opens = packet.segment.is_none_or(|segment| segment.flags & SYN != 0);
        match packet.kind {
            Kind::EchoRequest => self.translate(step, &packet, true),
            Kind::Error => errors::hosts(self, step.frame, &packet),
            Kind::Ports
                if self.conntrack.contains_key(&key) || opens && self.nat.contains_key(&key.reversed()) =>
            {
                self.translate(step, &packet, true)
            }
            _ => untouched,
        }
    }

    fn translate(&mut self, step: &Step<'_>, packet: &Packet, host: bool) -> Verdict {
        let key = key_of(packet);
        if !self.conntrack.contains_key(&key) {
            self.open(step, packet, &key, host)?;
        }
        let flow = self.conntrack.get_mut(&key).expect("found or opened");
        flow.note(&self.rules, End::Owner, step.frame.len(), step.now, packet.segment);
        let nat = flow.nat;
        let mut frame = step.frame.to_vec();
        let Some((address, port)) = nat else {
            self.begin(packet, key.src, step);
            return Ok((Forward::World, frame));
        };
        if host && port == key.src_port.get() {
            return Ok((Forward::Stack, frame));
        }
        if !host {
            self.begin(packet, address, step);
        }
        rewrite::end(&self.rules, &mut frame, &packet.header, Side::Source, address, port);
        Ok((Forward::Masquerade, frame))
    }

    /// A packet from the world that may answer a flow.
    fn reply(&mut self, step: &Step<'_>, packet: &Packet) -> Verdict {
        let key = key_of(packet);
        let untouched = Ok((Forward::Stack, step.frame.to_vec()));
        match Part::of(packet, false) {
            Ok(Some(part)) => drop(self.pass(&part, step)?),
            Ok(None) => {}
            Err(_) => return untouched,
        }
        let Some(back) = self.nat.get(&key) else { return untouched };
        let (owner, port) = (back.address, back.port);
        let flow_key = owners_key(&key, owner, port);
        let flow = self.conntrack.get_mut(&flow_key).expect("halves live and die together");
        if is_for_listener(&self.world, flow, packet, &key) {
            return untouched;
        }
        flow.note(&self.rules, End::Remote, step.frame.len(), step.now, packet.segment);
        if let (Some(Endpoint::Pod(_)), Ok(Some(part))) = (self.world.find(owner), Part::of(packet, false)) {
            self.datagrams.begin(&part, owner, step.now);
        }
        let rules = self.rules.clone();
        self.to_owner(step.frame, owner, Forward::Unmasquerade, |frame| {
            rewrite::end(&rules, frame, &packet.header, Side::Destination, owner, port);
        })
    }

    /// What the world sends to a pod's own address.
    fn follow_inbound(&mut self, step: &Step<'_>) {
        let Ok(packet) = packet::read(&self.rules, step.frame, self.world.v4) else { return };
        if !self.rules.follows_inbound || packet.kind != Kind::Ports {
            return;
        }
        let key = key_of(&packet).reversed();
        let opens = packet.segment.is_none_or(|segment| segment.flags & (SYN | ACK) == SYN);
        if !self.conntrack.contains_key(&key) && opens && self.world.way(key.dst).is_none() {
            let flow = Flow {
                created: step.now,
                nat: None,
                ifindex: 0,
                host: false,
                sent: Default::default(),
                received: Default::default(),
            };
            self.conntrack.insert(key, flow);
        }
        if let Some(flow) = self.conntrack.get_mut(&key).filter(|flow| flow.inbound()) {
            flow.note(&self.rules, End::Remote, step.frame.len(), step.now, packet.segment);
        }
    }

    /// Whether a part of a datagram under way may pass, and what its address is replaced with.
    fn pass(&mut self, part: &Part, step: &Step<'_>) -> Result<Option<Ip>, DropReason> {
        let world = &self.world;
        let is_gone = |owner| part.is_for_pod() && !matches!(world.find(owner), Some(Endpoint::Pod(_)));
        self.datagrams.pass(part, step.now, is_gone)
    }

    /// Lets the fragments that follow a pod's first one find the address that it was given.
    fn begin(&mut self, packet: &Packet, address: Ip, step: &Step<'_>) {
        if let Ok(Some(part)) = Part::of(packet, true) {
            self.datagrams.begin(&part, address, step.now);
        }
    }

    /// Translated back and brought to the flow's owner.
    pub fn to_owner(
        &self,
        frame: &[u8],
        owner: Ip,
        forward: Forward,
        translate: impl FnOnce(&mut Vec<u8>),
    ) -> Verdict {
        let header = packet::fixed(frame, self.world.v4, ETHERNET)?;
        let mut translated = frame.to_vec();
        match self.world.find(owner).ok_or(DropReason::NoEndpoint)? {
            Endpoint::Pod(_) if header.hops <= 1 => self.time_exceeded(frame),
            Endpoint::Pod(pod) => {
                translate(&mut translated);
                self.deliver(&translated, pod, forward)
            }
            Endpoint::Node => {
                translate(&mut translated);
                Ok((Forward::Stack, translated))
            }
        }
    }

    fn deliver(&self, frame: &[u8], pod: Pod, forward: Forward) -> Verdict {
        let header = packet::fixed(frame, self.world.v4, ETHERNET)?;
        if header.hops <= 1 {
            return self.time_exceeded(frame);
        }
        let mut frame = frame.to_vec();
        rewrite::hop(&mut frame, &header);
        rewrite::macs(&mut frame, pod.mac());
        Ok((forward, frame))
    }

    fn time_exceeded(&self, frame: &[u8]) -> Verdict {
        let answer = errors::time_exceeded(&self.rules, self.world.node, self.world.v4, frame);
        Ok((Forward::TimeExceeded, answer.ok_or(DropReason::Ttl)?))
    }
}

/// The key of the flow that a way back belongs to.
pub fn owners_key(back: &FlowKey, owner: Ip, port: u16) -> FlowKey {
    let port = Port::new(port);
    let echo = matches!(back.protocol, packet::ICMP | packet::ICMPV6);
    FlowKey {
        src: owner,
        src_port: port,
        dst_port: if echo { port } else { back.src_port },
        ..back.reversed()
    }
}

/// The key of a flow's way back.
pub fn way_back(key: &FlowKey, (address, port): (Ip, u16)) -> FlowKey {
    let port = Port::new(port);
    let echo = matches!(key.protocol, packet::ICMP | packet::ICMPV6);
    FlowKey {
        dst: address,
        dst_port: port,
        src_port: if echo { port } else { key.dst_port },
        ..key.reversed()
    }
}

/// A stranger's connection to a service of the host, where a pod's old flow used the same ports.
fn is_for_listener(world: &World, flow: &Flow, packet: &Packet, key: &FlowKey) -> bool {
    let opens = packet.segment.is_some_and(|segment| segment.flags & (SYN | ACK) == SYN);
    opens
        && !flow.host
        && flow.state(TCP) != State::TcpOpening
        && world.has_socket(TCP, key.dst_port.get(), (key.src, key.src_port.get()))
}

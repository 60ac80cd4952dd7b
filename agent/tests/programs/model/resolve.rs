//! From a shot to a frame: the ends get their addresses, and the ports that the world knows them by at this moment.

use datapath_ebpf::{Ip, Program, maps::FlowKey};

use super::{
    build::{self, Place, Plan},
    event::{Content, OWNER_PORTS, Owner, Quirk, REMOTE_PORTS, Shot, Way},
    packet::{ICMP, ICMPV6, SCTP, TCP, UDP},
    translation::{Model, key},
    world::Pod,
};
use crate::topology::{GATEWAY_MAC, ROUTER_MAC, UPLINK_MAC};

/// Where a frame meets a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    FromPod(Pod),
    ToUplink,
    FromUplink,
}

impl Hook {
    pub fn program(self) -> Program {
        match self {
            Self::FromPod(_) => Program::FromPod,
            Self::ToUplink => Program::ToUplink,
            Self::FromUplink => Program::FromUplink,
        }
    }
}

/// A frame at its hook.
pub struct Resolved {
    pub hook: Hook,
    pub frame: Vec<u8>,
    /// The flow that the shot names, as its sender sees it on this side of the node.
    pub key: FlowKey,
}

/// The ends of a shot's flow.
struct Ends {
    owner: Place,
    /// What the world knows the owner by.
    known: Place,
    remote: Place,
    router: Place,
}

impl Resolved {
    pub fn new(shot: &Shot, model: &Model, remotes: &[Ip]) -> Self {
        let ends = ends(shot, model, remotes);
        let out = matches!(shot.way, Way::Out | Way::OutByStack);
        let (src, dst) = match shot.way {
            Way::Out | Way::OutByStack => (ends.owner, ends.remote),
            Way::Back => (ends.remote, ends.known),
            Way::In => (ends.remote, ends.owner),
        };
        let plan = plan(model, (src, dst), out, &shot.content, &shot.quirks);
        let ip = match &shot.content {
            Content::Error { about, quoted, by_router, inside, .. } => {
                // The quoted packet went the other way.
                let inner = self::plan(model, (dst, src), !out, about, inside);
                let quote = build::quote(&inner, *quoted);
                let src = if *by_router && !out { ends.router } else { src };
                build::packet(&Plan { quote, src, ..plan })
            }
            _ => build::packet(&plan),
        };
        let (hook, macs) = hook(shot);
        let ether_type: [u8; 2] = if model.world.v4 { [8, 0] } else { [0x86, 0xdd] };
        let mut frame = [&macs[..], &ether_type, &ip].concat();
        build::flip(&mut frame, model.world.v4, &shot.quirks);
        let protocol = protocol(model.world.v4, &shot.content);
        let ports = if protocol == ICMP || protocol == ICMPV6 {
            let id = if out { src.1 } else { dst.1 };
            (id, id)
        } else {
            (src.1, dst.1)
        };
        Self { hook, frame, key: key(src.0, dst.0, ports, protocol) }
    }
}

fn plan<'a>(
    model: &Model,
    (src, dst): (Place, Place),
    from_owner: bool,
    content: &'a Content,
    quirks: &'a [Quirk],
) -> Plan<'a> {
    Plan { v4: model.world.v4, src, dst, from_owner, content, quirks, quote: Vec::new() }
}

fn ends(shot: &Shot, model: &Model, remotes: &[Ip]) -> Ends {
    let world = &model.world;
    let owner = match shot.owner {
        Owner::A => world.address(Pod::A),
        Owner::B => world.address(Pod::B),
        Owner::Host => world.node,
    };
    let (port, remote_port) = (OWNER_PORTS[shot.port], REMOTE_PORTS[shot.remote_port]);
    let remote = remotes[shot.remote];
    let protocol = protocol(world.v4, &shot.content);
    let echo = matches!(protocol, ICMP | ICMPV6);
    let ports = (port, if echo { port } else { remote_port });
    let known = model.translated(&key(owner, remote, ports, protocol)).unwrap_or(port);
    let router = if world.v4 {
        Ip::from_v4([198, 51, 100, 7])
    } else {
        Ip::from_v6([0x20, 1, 0xd, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7])
    };
    Ends {
        owner: (owner, port),
        known: (world.node, known),
        remote: (remote, remote_port),
        router: (router, 0),
    }
}

/// The protocol of the flow; an error's is that of the flow it is about.
fn protocol(v4: bool, content: &Content) -> u8 {
    match content {
        Content::Tcp { .. } => TCP,
        Content::Udp { .. } => UDP,
        Content::Sctp => SCTP,
        Content::Echo { .. } => {
            if v4 {
                ICMP
            } else {
                ICMPV6
            }
        }
        Content::Error { about, .. } => protocol(v4, about),
        Content::Other => 47,
    }
}

/// The hook, and destination and source MAC.
fn hook(shot: &Shot) -> (Hook, [u8; 12]) {
    let macs = |dst: [u8; 6], src: [u8; 6]| {
        let mut both = [0; 12];
        both[..6].copy_from_slice(&dst);
        both[6..].copy_from_slice(&src);
        both
    };
    match (shot.way, shot.owner) {
        (Way::Out, Owner::A) => (Hook::FromPod(Pod::A), macs(GATEWAY_MAC, Pod::A.mac())),
        (Way::Out, Owner::B) => (Hook::FromPod(Pod::B), macs(GATEWAY_MAC, Pod::B.mac())),
        (Way::Out, Owner::Host) | (Way::OutByStack, _) => (Hook::ToUplink, macs(ROUTER_MAC, UPLINK_MAC)),
        (Way::Back | Way::In, _) => (Hook::FromUplink, macs(UPLINK_MAC, ROUTER_MAC)),
    }
}

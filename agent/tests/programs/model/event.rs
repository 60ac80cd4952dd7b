//! What can happen on the node, in small numbers: few ends, few ports, few sequence numbers, so that everything meets everything.
//!
//! Events name flows by their owners' ports; what the world knows them by is looked up when an event happens. Thus a sequence
//! means the same whatever ports the program chooses, and whatever is left out of it.

use serde::{Deserialize, Serialize};

use super::world::Pod;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Event {
    Packet(Shot),
    /// So many seconds pass.
    Wait(f64),
    /// The agent collects what has ended.
    Collect,
    /// A pod is deleted.
    Remove(Pod),
    /// It is made again, with the same address.
    Add(Pod),
    /// The host starts to listen on a TCP port, or stops.
    Listen(bool),
}

/// The owner's end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Owner {
    A,
    B,
    Host,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Way {
    /// From the owner; a pod's by `from_pod`, the host's by `to_uplink`.
    Out,
    /// From a pod by the host's stack, and `to_uplink`.
    OutByStack,
    /// From the remote end to what it knows the owner by.
    Back,
    /// From the remote end to the owner's own address and port.
    In,
}

/// A packet of a flow.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Shot {
    pub way: Way,
    pub owner: Owner,
    /// Index into [`OWNER_PORTS`]; an echo's identifier is the same number.
    pub port: usize,
    /// Index into the bench's remote addresses.
    pub remote: usize,
    /// Index into [`REMOTE_PORTS`].
    pub remote_port: usize,
    pub content: Content,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<Quirk>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// Sequence number and acknowledgement count from each end's own start.
    Tcp {
        flags: u8,
        seq: u8,
        ack: u8,
        length: u8,
    },
    Udp {
        checksum: bool,
        length: u8,
    },
    Sctp,
    Echo {
        reply: bool,
        length: u8,
    },
    /// An ICMP error about the packet that came the other way, of which so many bytes follow the IP header.
    Error {
        kind: usize,
        about: Box<Content>,
        quoted: usize,
        by_router: bool,
        inside: Vec<Quirk>,
    },
    /// Something that has no ports.
    Other,
}

/// What is unusual about a packet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Quirk {
    /// The last hop.
    LastHop,
    /// Bytes of IPv4 options (by fours), or so many IPv6 extension headers.
    Extensions(u8),
    /// A part of its datagram: identification, first and last eighth of the IP payload; more than there are is the end.
    Part { id: u8, from: u8, to: u8 },
    /// The IPv4 header's checksum is wrong.
    HeaderSum,
    /// The transport checksum is wrong.
    TransportSum,
    /// The IP header's length is off by this.
    Length(i8),
    /// TCP's data offset, in words.
    DataOffset(u8),
    /// UDP's length is off by this.
    UdpLength(i8),
    /// The frame ends so many bytes early.
    Cut(u8),
    /// So many bytes follow the packet.
    Padding(u8),
    /// One bit of the frame is the other way round; `repaired`: and the IPv4 header's checksum right for it.
    Flip { bit: u16, repaired: bool },
}

/// Below the masquerade range, within, and, within, those that sockets of the host have: see [`super::bench`].
pub const OWNER_PORTS: [u16; 5] = [1000, 40_000, LISTENED, BOUND, CONNECTED];
pub const REMOTE_PORTS: [u16; 2] = [53, 80];
/// Nobody listens here at first.
pub const MAY_LISTEN: u16 = 40_000;
/// A TCP socket of the host listens here.
pub const LISTENED: u16 = 40_001;
/// A UDP socket of the host is bound to this.
pub const BOUND: u16 = 40_002;
/// A UDP socket of the host is connected from here to the first remote address and port.
pub const CONNECTED: u16 = 40_003;

/// Type and code of ICMP errors by family.
pub const ERRORS: [[(u8, u8); 2]; 6] = [
    [(3, 3), (1, 4)],
    [(3, 4), (2, 0)],
    [(11, 0), (3, 0)],
    [(12, 0), (4, 0)],
    [(3, 1), (1, 0)],
    [(5, 1), (100, 0)],
];

impl Event {
    /// The same with less in it, the simplest first.
    pub fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Packet(shot) => shot.simpler().into_iter().map(Self::Packet).collect(),
            Self::Wait(seconds) => {
                [35.5, 61.5, 200.5].into_iter().filter(|shorter| shorter < seconds).map(Self::Wait).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Shot {
    fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for at in 0..self.quirks.len() {
            let mut quirks = self.quirks.clone();
            quirks.remove(at);
            all.push(Self { quirks, ..self.clone() });
        }
        all.extend(self.content.simpler().into_iter().map(|content| Self { content, ..self.clone() }));
        if self.owner != Owner::A && self.way != Way::OutByStack {
            all.push(Self { owner: Owner::A, ..self.clone() });
        }
        if self.way == Way::OutByStack {
            all.push(Self { way: Way::Out, ..self.clone() });
        }
        for (port, remote, remote_port) in [(1, 0, 0), (self.port, 0, self.remote_port)] {
            all.push(Self { port, remote, remote_port, ..self.clone() });
        }
        all.retain(|other| other != self);
        all
    }
}

impl Content {
    fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Tcp { flags, seq, ack, length } => {
                let with = |flags, seq, ack, length| Self::Tcp { flags, seq, ack, length };
                let bits = (0..8).filter(|bit| flags & (1 << bit) != 0).map(|bit| flags & !(1 << bit));
                let mut all = vec![with(2, 0, 0, 0), with(*flags, 0, 0, 0)];
                all.extend(bits.map(|flags| with(flags, *seq, *ack, *length)));
                all.extend([
                    with(*flags, *seq, 0, 0),
                    with(*flags, *seq, *ack, 0),
                    with(*flags, 0, *ack, *length),
                ]);
                all
            }
            Self::Udp { checksum, length } => {
                vec![
                    Self::Udp { checksum: true, length: *length },
                    Self::Udp { checksum: *checksum, length: 0 },
                ]
            }
            Self::Echo { reply, .. } => vec![Self::Echo { reply: *reply, length: 0 }],
            Self::Error { kind, about, quoted, by_router, inside } => {
                let with = |kind, about: &Content, quoted, inside: &[Quirk]| Self::Error {
                    kind,
                    about: Box::new(about.clone()),
                    quoted,
                    by_router: *by_router,
                    inside: inside.to_vec(),
                };
                let mut all = vec![with(0, about, *quoted, inside), with(*kind, about, 8, &[])];
                all.push(with(*kind, about, *quoted, &[]));
                all.extend(about.simpler().iter().map(|about| with(*kind, about, *quoted, inside)));
                all
            }
            Self::Sctp | Self::Other => Vec::new(),
        }
    }
}

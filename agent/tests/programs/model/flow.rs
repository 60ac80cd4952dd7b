//! A flow as the model keeps it: what each packet leaves behind, and how long the flow may then be idle.

use datapath_ebpf::Ip;

use super::{rules::Rules, time::Span};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// What a TCP header says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// Bytes of payload.
    pub length: u32,
}

/// Which end a packet is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Owner,
    Remote,
}

#[derive(Clone, Default, Debug)]
pub struct Direction {
    pub packets: u64,
    pub bytes: u64,
    pub last_seen: Option<Span>,
    pub tcp_flags: u8,
    pub end: u32,
    pub ack: u32,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub created: Span,
    /// What the owner's packets get as their source; `None` for a flow that the world opened.
    pub nat: Option<(Ip, u16)>,
    pub ifindex: u32,
    pub host: bool,
    pub sent: Direction,
    pub received: Direction,
}

/// How far a flow has come, with its place among the timeouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    TcpOpening,
    TcpEstablished,
    TcpClosing,
    UdpNew,
    UdpStream,
    Echo,
    Other,
}

impl Flow {
    pub fn inbound(&self) -> bool {
        self.nat.is_none()
    }

    pub fn state(&self, protocol: u8) -> State {
        let answered = self.sent.packets > 0 && self.received.packets > 0;
        match protocol {
            6 => self.tcp_state(),
            17 if answered => State::UdpStream,
            17 => State::UdpNew,
            1 | 58 => State::Echo,
            _ => State::Other,
        }
    }

    fn tcp_state(&self) -> State {
        let (sent, received) = (self.sent.tcp_flags, self.received.tcp_flags);
        let reset = (sent | received) & RST != 0;
        let both_closed = sent & FIN != 0 && received & FIN != 0;
        let (opener, other) =
            if self.inbound() { (&self.received, &self.sent) } else { (&self.sent, &self.received) };
        match () {
            () if reset || both_closed => State::TcpClosing,
            () if opener.tcp_flags & ACK != 0 && other.packets > 0 => State::TcpEstablished,
            () => State::TcpOpening,
        }
    }

    /// The latest packet of either end.
    pub fn last_seen(&self) -> Span {
        let spans = [self.sent.last_seen, self.received.last_seen];
        spans.into_iter().flatten().max_by_key(|span| span.to).unwrap_or(self.created)
    }

    /// Takes note of a packet of `bytes` bytes, Ethernet header included.
    pub fn note(&mut self, rules: &Rules, end: End, bytes: usize, now: Span, segment: Option<Segment>) {
        if let Some(segment) = segment {
            let from_opener = (end == End::Remote) == self.inbound();
            let opens = segment.flags & (SYN | ACK) == SYN;
            if rules.reopens && opens && from_opener && self.tcp_state() == State::TcpClosing {
                for direction in [&mut self.sent, &mut self.received] {
                    (direction.tcp_flags, direction.end, direction.ack) = (0, 0, 0);
                }
            }
        }
        let (this, other) = match end {
            End::Owner => (&mut self.sent, &self.received),
            End::Remote => (&mut self.received, &self.sent),
        };
        this.packets += 1;
        this.bytes += bytes as u64;
        this.last_seen = Some(now);
        if let Some(segment) = segment {
            this.follow(rules, segment, other);
        }
    }
}

impl Direction {
    fn follow(&mut self, rules: &Rules, segment: Segment, other: &Self) {
        if segment.flags & RST != 0 {
            if !rules.rst_must_be_credible || self.may_reset(segment, other) {
                self.tcp_flags |= RST;
            }
            return;
        }
        let first = self.tcp_flags == 0;
        let acknowledged = self.tcp_flags & ACK != 0;
        let phantoms = (segment.flags & SYN).count_ones() + (segment.flags & FIN).count_ones();
        let end = segment.seq.wrapping_add(segment.length).wrapping_add(phantoms);
        self.tcp_flags = self.tcp_flags & !RST | segment.flags;
        if first || later(end, self.end) {
            self.end = end;
        }
        if segment.flags & ACK != 0 && (!acknowledged || later(segment.ack, self.ack)) {
            self.ack = segment.ack;
        }
    }

    /// An end that has sent before resets at its place, or at the one the other end has asked for; one that has not (RFC 9293,
    /// section 3.10.7.3) acknowledges what it refuses.
    fn may_reset(&self, segment: Segment, other: &Self) -> bool {
        if self.tcp_flags == 0 {
            return other.tcp_flags == 0 || segment.flags & ACK != 0 && segment.ack == other.end;
        }
        segment.seq == self.end || other.tcp_flags & ACK != 0 && segment.seq == other.ack
    }
}

fn later(a: u32, b: u32) -> bool {
    (1..1 << 31).contains(&a.wrapping_sub(b))
}

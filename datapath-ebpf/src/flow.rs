//! A flow's life: what its packets leave behind in its entry, and from that, how long it may be idle.
//!
//! Used by the programs, which note packets and end flows, and by user space, which shows them.

use crate::{
    maps::{Direction, Flow, FlowKey, MASQUERADE_PORT_FIRST, PoolKey},
    packet::{ICMP, ICMPV6, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP},
    {Ip, Port},
};

/// The kernel's monotonic clock in ticks of 2^20 ns (1.05 ms): fine enough for timeouts, and it wraps after 52 days, far
/// longer than any flow may be idle.
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> TICK_SHIFT) as u32
}

/// Binary logarithm of the nanoseconds in a tick.
pub const TICK_SHIFT: u32 = 20;

/// Seconds as ticks; what does not fit stays below the clock's wrap.
#[inline(always)]
pub const fn ticks_of_seconds(seconds: u32) -> u32 {
    let ticks = (seconds as u64 * 1_000_000_000) >> TICK_SHIFT;
    if ticks > i32::MAX as u64 { i32::MAX as u32 } else { ticks as u32 }
}

/// What kind of flow it is as far as its timeout goes; the index into `timeouts`.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// A TCP connection whose handshake is not complete.
    TcpOpening = 0,
    /// A TCP connection.
    TcpEstablished = 1,
    /// A TCP connection that both ends have closed, or one has reset.
    TcpClosing = 2,
    /// Datagrams that were never answered.
    UdpNew = 3,
    /// A UDP exchange.
    UdpStream = 4,
    /// Echo requests.
    IcmpEcho = 5,
    /// Any other protocol.
    Other = 6,
}

/// Entries of `timeouts`: a power of two, so that an index can be masked.
pub const TIMEOUTS: usize = 8;

impl Class {
    /// Every class, in the order of the numbers.
    pub const ALL: [Self; 7] = [
        Self::TcpOpening,
        Self::TcpEstablished,
        Self::TcpClosing,
        Self::UdpNew,
        Self::UdpStream,
        Self::IcmpEcho,
        Self::Other,
    ];

    /// The name that flags, metrics, tables and JSON use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpOpening => "tcp-opening",
            Self::TcpEstablished => "tcp-established",
            Self::TcpClosing => "tcp-closing",
            Self::UdpNew => "udp-new",
            Self::UdpStream => "udp-stream",
            Self::IcmpEcho => "icmp",
            Self::Other => "other",
        }
    }

    /// How long such a flow may be idle unless the operator says otherwise, in seconds. An established TCP connection may be
    /// silent for two hours and four minutes (RFC 5382, REQ-5).
    pub const fn default_timeout(self) -> u32 {
        match self {
            Self::TcpOpening => 60,
            Self::TcpEstablished => 2 * 3600 + 4 * 60,
            Self::TcpClosing | Self::UdpNew | Self::IcmpEcho => 30,
            Self::UdpStream => 180,
            Self::Other => 600,
        }
    }
}

impl Class {
    /// Whether both ends have shown that they want the flow: such a one is not evicted to make room for another.
    #[inline(always)]
    pub const fn is_assured(self) -> bool {
        matches!(self, Self::TcpEstablished | Self::UdpStream)
    }
}

/// What a TCP header says about its connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The sequence number, host order.
    pub seq: u32,
    /// The acknowledgement, host order; meaningless without ACK.
    pub ack: u32,
    /// Bytes of payload.
    pub length: u32,
    /// The flags byte.
    pub flags: u8,
}

/// Who sent a packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// The pod, or the host's socket.
    Owner,
    /// The other end.
    Remote,
}

impl Segment {
    /// Whether these flags ask for a new connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}

impl Flow {
    /// Which timeout applies.
    #[inline(always)]
    pub fn class(&self, protocol: u8) -> Class {
        match protocol {
            TCP => self.tcp_class(),
            UDP if self.sent.packets > 0 && self.received.packets > 0 => Class::UdpStream,
            UDP => Class::UdpNew,
            ICMP | ICMPV6 => Class::IcmpEcho,
            _ => Class::Other,
        }
    }

    #[inline(always)]
    fn tcp_class(&self) -> Class {
        let (sent, received) = (&self.sent, &self.received);
        if (sent.tcp_flags | received.tcp_flags) & TCP_RST != 0
            || sent.tcp_flags & received.tcp_flags & TCP_FIN != 0
        {
            return Class::TcpClosing;
        }
        let (opener, other) = if self.is_inbound() { (received, sent) } else { (sent, received) };
        // A SYN that was answered and then forgotten is no connection: the opener has to confirm.
        if opener.tcp_flags & TCP_ACK != 0 && other.packets > 0 {
            Class::TcpEstablished
        } else {
            Class::TcpOpening
        }
    }

    /// Whether the owner's packets leave with another source.
    #[inline(always)]
    pub const fn is_translated(&self) -> bool {
        !self.nat_address.is_unspecified()
    }

    /// Whether it came through a host port.
    #[inline(always)]
    pub const fn is_host_port(&self) -> bool {
        self.flags & Self::HOST_PORT != 0
    }

    /// Whether the remote end opened it.
    #[inline(always)]
    pub const fn is_inbound(&self) -> bool {
        self.flags & Self::INBOUND != 0
    }

    /// When a packet of either direction was last seen, in ticks.
    #[inline(always)]
    pub const fn last_seen(&self) -> u32 {
        let (sent, received) = (self.sent.last_seen, self.received.last_seen);
        // A direction without packets has no time.
        if self.received.packets == 0 || (self.sent.packets != 0 && is_after(sent, received)) {
            sent
        } else {
            received
        }
    }

    /// How long nothing was seen, in ticks.
    #[inline(always)]
    pub const fn idle(&self, now: u32) -> u32 {
        elapsed(self.last_seen(), now)
    }

    /// Leaves a packet's traces: `length` in bytes with the Ethernet header, `now` in ticks, the segment if it is TCP.
    #[inline(always)]
    pub fn note(&mut self, sender: Sender, length: u32, now: u32, segment: Option<&Segment>) {
        if let Some(segment) = segment {
            self.note_segment(sender, segment);
        }
        let direction = match sender {
            Sender::Owner => &mut self.sent,
            Sender::Remote => &mut self.received,
        };
        direction.packets = direction.packets.wrapping_add(1);
        direction.bytes = direction.bytes.wrapping_add(length as u64);
        direction.last_seen = now;
    }

    #[inline(always)]
    fn note_segment(&mut self, sender: Sender, segment: &Segment) {
        let opens = Segment::opens(segment.flags);
        let from_opener = matches!(sender, Sender::Remote) == self.is_inbound();
        if opens && from_opener && matches!(self.tcp_class(), Class::TcpClosing) {
            self.reopen();
        }
        match sender {
            Sender::Owner => self.sent.follow(segment, &self.received),
            Sender::Remote => self.received.follow(segment, &self.sent),
        }
    }

    /// The ports are used again before the entry of the last connection was gone: its end must not age the new one.
    #[inline(always)]
    fn reopen(&mut self) {
        for direction in [&mut self.sent, &mut self.received] {
            (direction.tcp_flags, direction.end, direction.ack) = (0, 0, 0);
        }
    }
}

impl Direction {
    /// What a segment of this direction tells about it.
    #[inline(always)]
    fn follow(&mut self, segment: &Segment, other: &Self) {
        if segment.flags & TCP_RST != 0 {
            if self.is_credible(segment, other) {
                self.tcp_flags |= TCP_RST;
            }
            return;
        }
        let has = |flag: u8| (segment.flags & flag != 0) as u32;
        let end =
            segment.seq.wrapping_add(segment.length).wrapping_add(has(TCP_SYN)).wrapping_add(has(TCP_FIN));
        if self.tcp_flags == 0 || is_after(end, self.end) {
            self.end = end;
        }
        if segment.flags & TCP_ACK != 0 && (self.tcp_flags & TCP_ACK == 0 || is_after(segment.ack, self.ack))
        {
            self.ack = segment.ack;
        }
        // Who goes on sending has not reset.
        self.tcp_flags = (self.tcp_flags & !TCP_RST) | segment.flags;
    }

    /// Whether an RST may end the connection: at the very place where this end stands, or where the other one expects it
    /// (RFC 5961, section 3.2); as the first answer, if it is about what the other end has sent (RFC 9293, section 3.10.7.3).
    /// Any other is forwarded, for its receiver to judge, but changes nothing here.
    #[inline(always)]
    fn is_credible(&self, segment: &Segment, other: &Self) -> bool {
        if self.tcp_flags == 0 {
            return other.tcp_flags == 0 || (segment.flags & TCP_ACK != 0 && segment.ack == other.end);
        }
        segment.seq == self.end || (other.tcp_flags & TCP_ACK != 0 && segment.seq == other.ack)
    }
}

/// How long ago something was, all in ticks. What seems to come from the future was seen by another CPU, or a finer clock, a moment
/// later: it is no time ago. (By [`is_after`] it would read better, and crash LLVM's BPF back end.)
#[inline(always)]
pub const fn elapsed(then: u32, now: u32) -> u32 {
    let elapsed = now.wrapping_sub(then);
    if elapsed > i32::MAX as u32 { 0 } else { elapsed }
}

/// Whether `a` comes after `b` in a number space that wraps.
#[inline(always)]
pub const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Whether both "ports" of the protocol are the one identifier of an echo.
#[inline(always)]
pub const fn is_echo(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMPV6)
}

/// The way back of a translated flow: the key in `nat`.
#[inline(always)]
pub const fn way_back(key: &FlowKey, nat_address: Ip, nat_port: Port) -> FlowKey {
    let src_port = if is_echo(key.protocol) { nat_port } else { key.dst_port };
    FlowKey { dst: nat_address, dst_port: nat_port, src_port, ..key.reversed() }
}

/// The flow that a way back belongs to: the key in `conntrack`.
#[inline(always)]
pub const fn flow_of(back: &FlowKey, owner: Ip, port: Port) -> FlowKey {
    let dst_port = if is_echo(back.protocol) { port } else { back.src_port };
    FlowKey { src: owner, src_port: port, dst_port, ..back.reversed() }
}

/// The pool that the port of a way back is from.
#[inline(always)]
pub const fn pool_of(back: &FlowKey) -> PoolKey {
    let remote_port = if is_echo(back.protocol) { Port::new(0) } else { back.src_port };
    PoolKey { nat_address: back.dst, remote: back.src, remote_port, protocol: back.protocol, reserved: 0 }
}

/// A port's number within the masquerade range; `None` outside.
#[inline(always)]
pub const fn index_in_pool(port: Port) -> Option<u32> {
    let number = port.get();
    if number < MASQUERADE_PORT_FIRST { None } else { Some((number - MASQUERADE_PORT_FIRST) as u32) }
}

#[cfg(test)]
mod tests;

//! Keys and values of every map. `docs/maps.md` describes them for operators.
//!
//! The layouts are an interface: pinned maps outlive the agent. A change shows up in the snapshot under
//! `tests/snapshots/` and changes [`LAYOUT`], and with it what the next agent does with the pins it finds.

use crate::{Ip, Mac, Port};

mod fragments;
mod host_ports;

pub use fragments::{
    FRAGMENT_WORDS, FRAGMENTS_MAX, Fragment, FragmentKey, HELD_BYTES, HELD_MAX, HELD_PER_SIDE, Held,
};
pub use host_ports::{HOST_PORTS_MAX, HostPort, HostPortKey};

/// Implements `aya::Pod` for types that zerocopy has proved to have no padding and no invalid bit pattern.
macro_rules! pod {
    ($t:ty) => {
        #[cfg(not(target_arch = "bpf"))]
        const _: () = {
            const fn proved<T: zerocopy::FromBytes + zerocopy::IntoBytes>() {}
            proved::<$t>();
        };
        #[cfg(not(target_arch = "bpf"))]
        // SAFETY: `Copy + 'static`, no padding (`IntoBytes`) and every bit pattern valid (`FromBytes`), proved just above.
        unsafe impl aya::Pod for $t {}
    };
}
pub(crate) use pod;

/// How many addresses (a dual-stack pod has two) one node can hold.
pub const ENDPOINTS_MAX: usize = 16_384;
/// Prefixes of all nodes, their addresses, and the prefixes exempt from masquerade.
pub const ROUTES_MAX: usize = 65_536;
/// Network devices that masquerade.
pub const UPLINKS_MAX: usize = 64;
/// Flows that are masqueraded, or that the world opened towards a pod, unless the agent is told another number.
pub const CONNTRACK_MAX: usize = 524_288;
/// Slots of the counters: [`crate::outcome::COUNTERS`].
pub const COUNTERS_MAX: usize = crate::outcome::COUNTERS;

/// `endpoints`: address -> where it is. Read by every program, written by the agent.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The host end of the pod's veth, as the node numbers it; 0 for the node itself.
    pub ifindex: u32,
    /// The pod's own MAC (its end of the veth).
    pub mac: Mac,
    /// [`Endpoint::HOST`], [`Endpoint::HOST_PORTS`].
    pub flags: u16,
    /// The agent's number for the endpoint, the same for all its addresses; 0 for the node.
    pub id: u32,
}
pod!(Endpoint);

impl Endpoint {
    /// The address is the node's own: packets to it go up the host's stack.
    pub const HOST: u16 = 1;
    /// Of a pod: it has host ports. Of an address of the node: there are host ports at it. Without it nobody looks into `host_ports`.
    pub const HOST_PORTS: u16 = 2;

    /// Whether it is an address of the node's own.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        self.flags & Self::HOST != 0
    }

    /// Whether [`Endpoint::HOST_PORTS`] is set.
    #[inline(always)]
    pub const fn has_host_ports(&self) -> bool {
        self.flags & Self::HOST_PORTS != 0
    }
}

/// `routes`: what [`Route::kind`] can be.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteKind {
    /// This node's own pod prefix: an address in it that is not in `endpoints` does not exist.
    Local = 1,
    /// Another node's pods or addresses, reached over the underlay: [`Route::next_hop`] through [`Route::ifindex`].
    Native = 2,
    /// Another node's pods or addresses, reached through the overlay: [`Route::next_hop`] is that node's underlay
    /// address, [`Route::ifindex`] the VXLAN device.
    Tunnel = 3,
    /// Outside, but never masqueraded; the kernel's routing table says where to.
    Exempt = 4,
}

/// `routes`: value of the longest-prefix match on a destination that is not an endpoint.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The next hop or the tunnel's far end; `::` where the kind has none.
    pub next_hop: Ip,
    /// Tunnel only: the neighbour on the way to the far end.
    pub underlay_next_hop: Ip,
    /// The device to send through; 0 where the kind has none.
    pub ifindex: u32,
    /// Tunnel only: the device on the way to the far end, for a packet that the program wraps itself; 0 leaves the
    /// wrapping to the VXLAN device.
    pub underlay_ifindex: u32,
    /// The largest inner IP packet that fits the path, in bytes.
    pub mtu: u16,
    /// A [`RouteKind`] as its number.
    pub kind: u8,
    /// [`Route::NODE`] or 0.
    pub flags: u8,
}
pod!(Route);

impl Route {
    /// The prefix is another node's own address, not its pods'.
    pub const NODE: u8 = 1;

    /// Whether [`Route::NODE`] is set.
    #[inline(always)]
    pub const fn is_node(&self) -> bool {
        self.flags & Self::NODE != 0
    }
}

/// `uplinks`: ifindex -> what to masquerade with. What leaves through a device that is not in this map takes the host's
/// stack and is never masqueraded.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// The IPv6 source address for masqueraded packets, or `::` for none.
    pub masquerade_v6: Ip,
    /// The IPv4 source address (mapped), or `::` for none.
    pub masquerade_v4: Ip,
    /// The device's MTU in bytes.
    pub mtu: u32,
    /// [`Uplink::MASQUERADE`] or 0.
    pub flags: u32,
}
pod!(Uplink);

impl Uplink {
    /// Pods' packets to the world take this device's address; without it they leave as they are.
    pub const MASQUERADE: u32 = 1;
}

/// A prefix that is quicker to ask than a trie.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address, bits beyond the prefix zero.
    pub address: Ip,
    /// Ones where the address matters; `::` means that nothing is in the prefix.
    pub mask: Ip,
}
pod!(Prefix);

impl Prefix {
    /// Holds nothing.
    pub const NONE: Self = Self { address: Ip::UNSPECIFIED, mask: Ip::UNSPECIFIED };

    /// Whether an address is in it. With `v4` only the last word is compared: the others are the same in all mapped addresses.
    #[inline(always)]
    pub const fn contains(&self, ip: &Ip, v4: bool) -> bool {
        let (address, mask, ip) = (self.address.words(), self.mask.words(), ip.words());
        if v4 {
            return mask[3] != 0 && (address[3] ^ ip[3]) & mask[3] == 0;
        }
        mask[0] != 0
            && (address[0] ^ ip[0]) & mask[0] == 0
            && (address[1] ^ ip[1]) & mask[1] == 0
            && (address[2] ^ ip[2]) & mask[2] == 0
            && (address[3] ^ ip[3]) & mask[3] == 0
    }
}

/// `node`: the single entry of facts about this node that may change while the programs are loaded.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The source of ICMP errors (IPv4, mapped), or `::` for none.
    pub address_v4: Ip,
    /// The source of ICMPv6 errors, or `::` for none.
    pub address_v6: Ip,
    /// A prefix that holds all nodes' IPv4 pods (mapped) and few others, and its mask; both `::` for none.
    pub pods_v4: Prefix,
    /// The same for IPv6.
    pub pods_v6: Prefix,
    /// The VXLAN device, 0 without overlay.
    pub overlay_ifindex: u32,
    /// [`LAYOUT`] of the agent that wrote this.
    pub layout: u32,
}
pod!(Node);

/// `conntrack` and `nat`: one direction of a flow. For ICMP echo both ports hold the identifier.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: [u8; 3],
}
pod!(FlowKey);

impl FlowKey {
    /// The same flow seen from the other end.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// One direction of a flow. Written only by packets of that direction, so two CPUs at once may lose a count, never more.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Direction {
    /// Packets (segments not yet split count once).
    pub packets: u64,
    /// Bytes as the device counts them.
    pub bytes: u64,
    /// When the last packet was seen, in [ticks](crate::flow::ticks).
    pub last_seen: u32,
    /// TCP: the sequence number after the furthest byte sent, host order.
    pub end: u32,
    /// TCP: the furthest acknowledgement sent, host order.
    pub ack: u32,
    /// TCP: flags seen, or-ed; RST only while it is believed ([`Flow::note`](Flow::note)).
    pub tcp_flags: u8,
    /// Keeps the size a multiple of eight without padding; always 0.
    pub reserved: [u8; 3],
}
pod!(Direction);

/// `conntrack`: a flow between its owner (a pod, or a socket of the host) and a remote end outside the cluster. The key has
/// the owner as source, whoever opened the flow. One entry holds both directions.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// `bpf_ktime_get_coarse_ns` when the entry was made.
    pub created: u64,
    /// The source address that the owner's packets are given, or `::` when the flow is not translated.
    pub nat_address: Ip,
    /// The uplink the flow is translated for; 0 when it is not.
    pub ifindex: u32,
    /// The source port that the owner's packets are given.
    pub nat_port: Port,
    /// [`Flow::INBOUND`], [`Flow::HOST`], [`Flow::HOST_PORT`].
    pub flags: u8,
    /// Keeps the size a multiple of eight without padding; always 0.
    pub reserved: u8,
    /// What the owner sent.
    pub sent: Direction,
    /// What the remote end sent.
    pub received: Direction,
}
pod!(Flow);

// A hash entry is 40 bytes of the kernel's, the key rounded up to 48, the value, and 8 bytes of the allocator's: just a
// 192-byte slab, three cache lines.
const _: () = assert!(40 + 48 + size_of::<Flow>() + 8 <= 192);

impl Flow {
    /// The remote end opened this flow. Unless it did so through a host port, nothing in it is translated.
    pub const INBOUND: u8 = 1;
    /// The owner is a socket of the host whose source port was taken by a pod and that was given another.
    pub const HOST: u8 = 2;
    /// The remote end opened it through a host port of the owner: the owner's packets are given the node's address and that port.
    pub const HOST_PORT: u8 = 4;
}

/// `nat`: the way back of a translated flow: key is (remote, masquerade address, ports), value the flow's owner.
/// Inserting it is the atomic claim of the masquerade port.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reverse {
    /// The address the reply is for: a pod's or the host's own.
    pub address: Ip,
    /// When the claim was made, in [ticks](crate::flow::ticks).
    pub created: u32,
    /// The port (identifier) the reply is for.
    pub port: Port,
    /// [`Flow::HOST`], [`Flow::HOST_PORT`] or 0.
    pub flags: u8,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: u8,
}
pod!(Reverse);

/// `ports`: a remote end towards which masquerade ports are scarce.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// The masquerade address whose ports they are.
    pub nat_address: Ip,
    /// The remote address.
    pub remote: Ip,
    /// The remote port; 0 for ICMP echo, where there is none.
    pub remote_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: u8,
}
pod!(PoolKey);

/// Words of [`Pool::taken`].
pub const POOL_WORDS: usize = MASQUERADE_PORTS as usize / 64;

/// `ports`: which masquerade ports are known to be taken. A hint that makes the search for a free one short: `nat` decides.
/// A bit is set before its port is tried and cleared after its claim was removed, so no free port is ever lost.
#[repr(C)]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy)]
pub struct Pool {
    /// When the pool was last searched, in [ticks](crate::flow::ticks).
    pub last_used: u32,
    /// Keeps the size a multiple of eight without padding; always 0.
    pub reserved: u32,
    /// One bit a port, counted from [`MASQUERADE_PORT_FIRST`].
    pub taken: [u64; POOL_WORDS],
}
pod!(Pool);

/// How many pools there can be: one needs about 11,000 flows before it is made, so a full `conntrack` makes fewer.
pub const POOLS_MAX: usize = 128;

/// Buckets of `claims`: a claim that took `n` tries is counted in bucket `ceil(log2(n))`.
pub const CLAIM_BUCKETS: usize = 16;

/// `counters`: one per (program, outcome), per CPU. Index: [`crate::outcome::counter_index`].
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets (segments not yet split count once).
    pub packets: u64,
    /// Bytes as the device counts them.
    pub bytes: u64,
}
pod!(Counter);

/// Version of the layouts above. Bumped together with the snapshot: an agent that finds pins of another version makes
/// new maps, fills them and only then swaps the programs over.
pub const LAYOUT: u32 = 3;

/// First port of the masquerade range; the range is a power of two so that a random port is a mask away.
pub const MASQUERADE_PORT_FIRST: u16 = 32_768;
/// How many ports the range has.
pub const MASQUERADE_PORTS: u32 = 32_768;

/// `skb->mark` of packets a program has already handled, so that the next hook lets them pass without looking: our
/// redirects and the VXLAN packets that wrap them. Only these bits are looked at.
pub const MARK_HANDLED: u32 = 0x4859_0000;
/// The bits of [`MARK_HANDLED`].
pub const MARK_MASK: u32 = 0xffff_0000;

/// The overlay's UDP port: Linux' own default and flannel's and Cilium's.
pub const OVERLAY_PORT: u16 = 8472;
/// The overlay's network identifier.
pub const OVERLAY_VNI: u32 = 1;

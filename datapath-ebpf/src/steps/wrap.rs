//! Wrapping a packet in VXLAN (RFC 7348) without the VXLAN device: that one would look up the route to the other node for
//! every packet and take it through the host's output path.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated as helpers,
};
use datapath_ebpf::{
    DropReason, Ip,
    addr::GATEWAY_MAC,
    maps::{OVERLAY_PORT, OVERLAY_VNI},
    packet::{self, ETHERNET_LEN, Family, Ipv4, Ipv6},
};

use super::{skb::Skb, tables::NODE};

/// What follows the outer IP header.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
struct Tail {
    src_port: u16,
    dst_port: u16,
    length: u16,
    /// None, in either family: the inner packet has its own.
    checksum: u16,
    vxlan_flags: [u8; 4],
    vni: [u8; 4],
    inner_dst: [u8; 6],
    inner_src: [u8; 6],
    inner_ether_type: [u8; 2],
}

#[repr(C, packed(2))]
struct Outer<Header> {
    ip: Header,
    tail: Tail,
}

type OuterV4 = Outer<Ipv4>;
type OuterV6 = Outer<Ipv6>;

const _: () = assert!(size_of::<OuterV4>() == 50);
const _: () = assert!(size_of::<OuterV6>() == 70);

/// Wraps the packet for the node at `remote`. False: not wrapped, and not changed.
#[inline(always)]
pub fn for_overlay<F: Family>(skb: Skb, header: &F::Header, remote: &Ip) -> Result<bool, DropReason> {
    let tos = outer_ecn(F::ecn(header));
    if remote.is_v4() {
        in_v4(skb, remote, tos, F::ETHER_TYPE)
    } else {
        in_v6(skb, remote, tos, F::ETHER_TYPE)
    }
}

/// Congestion that the inner packet has seen stays inside (RFC 6040, section 4.1, compatibility aside).
#[inline(always)]
const fn outer_ecn(inner: u8) -> u8 {
    const CONGESTION_EXPERIENCED: u8 = 3;
    const CAPABLE: u8 = 2;
    if inner == CONGESTION_EXPERIENCED { CAPABLE } else { inner }
}

#[inline(never)]
fn in_v4(skb: Skb, remote: &Ip, tos: u8, ether_type: u16) -> Result<bool, DropReason> {
    let Some(source) = NODE.get(0).map(|node| node.address_v4) else { return Ok(false) };
    if source.is_unspecified() || !make_room::<OuterV4>(skb, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64) {
        return Ok(false);
    }
    // SAFETY: no arguments.
    let id = unsafe { helpers::bpf_get_prandom_u32() } as u16;
    let payload = payload_length::<Ipv4>(skb);
    let ip = Ipv4::new(&source, remote, packet::UDP, payload, tos, id);
    skb.store(ETHERNET_LEN as u32, &Outer { ip, tail: tail(skb, payload, ether_type) }).map(|()| true)
}

#[inline(never)]
fn in_v6(skb: Skb, remote: &Ip, traffic_class: u8, ether_type: u16) -> Result<bool, DropReason> {
    let Some(source) = NODE.get(0).map(|node| node.address_v6) else { return Ok(false) };
    if source.is_unspecified() || !make_room::<OuterV6>(skb, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64) {
        return Ok(false);
    }
    let payload = payload_length::<Ipv6>(skb);
    let ip = Ipv6::new(&source, remote, packet::UDP, payload, traffic_class);
    skb.store(ETHERNET_LEN as u32, &Outer { ip, tail: tail(skb, payload, ether_type) }).map(|()| true)
}

/// Room for the outer headers between the Ethernet and the IP header. The pod's MTU leaves room for them in every segment
/// of a packet that is still to be split, so the segments stay as they are. The kernel refuses for a few kinds of
/// segmented packets; the VXLAN device takes those.
#[inline(always)]
fn make_room<Outer>(skb: Skb, l3: u64) -> bool {
    const INNER_ETHERNET: u64 = (ETHERNET_LEN as u64) << 56;
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
        | INNER_ETHERNET
        | l3;
    // SAFETY: the context is valid; the helper checks the rest.
    unsafe {
        helpers::bpf_skb_adjust_room(skb.raw(), size_of::<Outer>() as i32, BPF_ADJ_ROOM_MAC, flags) == 0
    }
}

/// Length of what follows the outer IP header. (A packet still to be split may be longer than the field; its segments get
/// their own.)
#[inline(always)]
fn payload_length<Header>(skb: Skb) -> u16 {
    skb.len().wrapping_sub((ETHERNET_LEN + size_of::<Header>()) as u32) as u16
}

#[inline(always)]
fn tail(skb: Skb, udp_length: u16, ether_type: u16) -> Tail {
    const VNI_IS_VALID: u8 = 0x08;
    /// The dynamic range (RFC 7348, section 5): the flow's hash spreads flows over paths and receive queues.
    const FIRST_SOURCE_PORT: u16 = 0xc000;
    // SAFETY: the context is valid.
    let hash = unsafe { helpers::bpf_get_hash_recalc(skb.raw()) };
    Tail {
        src_port: (FIRST_SOURCE_PORT | (hash as u16 & !FIRST_SOURCE_PORT)).to_be(),
        dst_port: OVERLAY_PORT.to_be(),
        length: udp_length.to_be(),
        checksum: 0,
        vxlan_flags: [VNI_IS_VALID, 0, 0, 0],
        vni: (OVERLAY_VNI << 8).to_be_bytes(),
        // The other node's programs go by the IP addresses and take the frame whatever its MACs are.
        inner_dst: GATEWAY_MAC.bytes,
        inner_src: GATEWAY_MAC.bytes,
        inner_ether_type: ether_type.to_be_bytes(),
    }
}

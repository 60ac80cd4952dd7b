//! The ways out of the node: over the underlay, through the overlay, to the world.

use aya_ebpf::{
    bindings::{
        BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup, bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::generated as helpers,
};
use datapath_ebpf::{
    DropReason, Forward, Ip,
    maps::{OVERLAY_VNI, Route, Uplink},
    packet::{self, ETHERNET_LEN, Family, V4, V6},
};

use super::{Verdict, icmp_error, masquerade, skb::Skb, source::Exit, tables::find_uplink, wrap};

/// Whether what goes out to the world may take the node's address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    Yes,
    No,
}

/// To another node's pods or addresses over the underlay.
#[inline(always)]
pub fn to_node<F: Family>(skb: Skb, header: &F::Header, route: &Route) -> Verdict {
    match check_hop::<F>(skb, header, route.mtu as u32)? {
        Hop::Done(forward) => return Ok(forward),
        Hop::Onward => skb.decrement_ttl::<F>(header)?,
    }
    send(skb, route.ifindex, &route.next_hop);
    Ok(Forward::Node)
}

/// To another node's pods or addresses through the overlay: wrapped here and sent to the neighbour like any packet, or,
/// where that cannot be, by the VXLAN device.
#[inline(never)]
pub fn to_tunnel<F: Family>(skb: Skb, header: &F::Header, route: &Route) -> Verdict {
    match check_hop::<F>(skb, header, route.mtu as u32)? {
        Hop::Done(forward) => return Ok(forward),
        Hop::Onward => skb.decrement_ttl::<F>(header)?,
    }
    if route.underlay_ifindex != 0 && wrap::for_overlay::<F>(skb, header, &route.next_hop)? {
        send(skb, route.underlay_ifindex, &route.underlay_next_hop);
        return Ok(Forward::Overlay);
    }
    set_tunnel_key(skb, &route.next_hop)?;
    skb.set_handled();
    skb.forget_queue();
    // SAFETY: no pointers involved.
    unsafe { helpers::bpf_redirect(route.ifindex, 0) };
    Ok(Forward::Overlay)
}

/// Out of the cluster: the kernel's routing table says through which device; if that is one of our uplinks the packet
/// leaves from here, else the stack takes it on.
#[inline(never)]
pub fn to_world<F: Family>(skb: Skb, header: &F::Header, masquerade: Masquerade) -> Verdict {
    let Some((ifindex, next_hop)) = find_way::<F>(skb, header) else { return Ok(Forward::Stack) };
    let Some(uplink) = find_uplink(ifindex) else { return Ok(Forward::Stack) };
    match check_hop::<F>(skb, header, uplink.mtu)? {
        Hop::Done(forward) => return Ok(forward),
        Hop::Onward => {}
    }
    let forward = if masquerade == Masquerade::No || uplink.flags & Uplink::MASQUERADE == 0 {
        Forward::World
    } else {
        masquerade::pod::<F>(skb, header, &Exit::new::<F>(ifindex, &uplink))?
    };
    if forward == Forward::Held {
        return Ok(forward);
    }
    skb.decrement_ttl::<F>(header)?;
    send(skb, ifindex, &next_hop);
    Ok(forward)
}

/// What [`check_hop`] found.
pub enum Hop {
    /// Small and young enough to go on.
    Onward,
    /// Taken care of: answered with an ICMP error, or left to the stack to be fragmented.
    Done(Forward),
}

/// TTL and size against the path.
#[inline(always)]
pub fn check_hop<F: Family>(skb: Skb, header: &F::Header, mtu: u32) -> Result<Hop, DropReason> {
    if F::ttl(header) <= 1 {
        return icmp_error::time_exceeded::<F>(skb, header).map(Hop::Done);
    }
    if skb.len() - ETHERNET_LEN as u32 <= mtu || segments_fit::<F>(skb, header, mtu) {
        return Ok(Hop::Onward);
    }
    if F::dont_fragment(header) {
        icmp_error::too_big::<F>(skb, header, mtu).map(Hop::Done)
    } else {
        Ok(Hop::Done(Forward::Stack))
    }
}

/// Whether the packet is one that will be split, into segments that fit. (IP options and extension headers are rare
/// enough in segmented traffic to be judged by the fixed header alone.)
#[inline(always)]
fn segments_fit<F: Family>(skb: Skb, header: &F::Header, mtu: u32) -> bool {
    const UDP_HEADER: u32 = 8;
    const TCP_DATA_OFFSET: u32 = 12;
    let payload = skb.gso_size();
    if payload == 0 {
        return false;
    }
    let fixed = size_of::<F::Header>() as u32;
    let transport = if F::protocol(header) == packet::TCP {
        let offset = ETHERNET_LEN as u32 + fixed + TCP_DATA_OFFSET;
        skb.load::<u8>(offset).map_or(0, |byte| (byte >> 4) as u32 * 4)
    } else {
        UDP_HEADER
    };
    fixed + transport + payload <= mtu
}

/// The device and next hop the kernel would send this packet to.
#[inline(never)]
pub fn find_way<F: Family>(skb: Skb, header: &F::Header) -> Option<(u32, Ip)> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.family = F::AF;
    params.ifindex = skb.ifindex();
    let (src, dst) = (F::src(header), F::dst(header));
    if F::V4 {
        params.__bindgen_anon_3.ipv4_src = src.words()[3];
        params.__bindgen_anon_4.ipv4_dst = dst.words()[3];
    } else {
        params.__bindgen_anon_3.ipv6_src = src.words();
        params.__bindgen_anon_4.ipv6_dst = dst.words();
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // The neighbour is `bpf_redirect_neigh`'s business: it resolves it when it is not known yet.
    let flags = BPF_FIB_LOOKUP_SKIP_NEIGH;
    // SAFETY: `params` is initialized and of the size given.
    let found = unsafe { helpers::bpf_fib_lookup(skb.raw().cast(), &raw mut params, size, flags) };
    // A way that is too narrow is a way: the caller judges by the uplink's MTU and answers.
    const FOUND: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
    const TOO_NARROW: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
    if found != FOUND && found != TOO_NARROW {
        return None;
    }
    // The lookup replaces the destination with the next hop, and says by `family` which kind that is.
    // SAFETY: both arms of the union are integers.
    let next_hop = unsafe {
        if params.family == V4::AF {
            Ip::from_v4_word(params.__bindgen_anon_4.ipv4_dst)
        } else {
            Ip::from_words(params.__bindgen_anon_4.ipv6_dst)
        }
    };
    Some((params.ifindex, next_hop))
}

/// Out of a device to a neighbour, which the kernel resolves.
#[inline(never)]
pub fn send(skb: Skb, ifindex: u32, next_hop: &Ip) {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut neighbour: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    if next_hop.is_v4() {
        neighbour.nh_family = V4::AF as u32;
        neighbour.__bindgen_anon_1.ipv4_nh = next_hop.words()[3];
    } else {
        neighbour.nh_family = V6::AF as u32;
        neighbour.__bindgen_anon_1.ipv6_nh = next_hop.words();
    }
    skb.set_handled();
    skb.forget_queue();
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: `neighbour` is initialized and of the size given.
    unsafe { helpers::bpf_redirect_neigh(ifindex, &raw mut neighbour, size, 0) };
}

/// Says to whom the VXLAN device sends this packet.
#[inline(never)]
pub fn set_tunnel_key(skb: Skb, remote: &Ip) -> Result<(), DropReason> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = OVERLAY_VNI;
    key.tunnel_ttl = packet::TTL;
    // The inner packet has its own checksum: none on the outer UDP header, in either family.
    let mut flags = BPF_F_ZERO_CSUM_TX as u64;
    if remote.is_v4() {
        // Host order, unlike everywhere else in this API.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(remote.v4());
    } else {
        key.__bindgen_anon_1.remote_ipv6 = remote.words();
        flags |= BPF_F_TUNINFO_IPV6 as u64;
    }
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is initialized and of the size given.
    match unsafe { helpers::bpf_skb_set_tunnel_key(skb.raw(), &raw mut key, size, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::TunnelKey),
    }
}

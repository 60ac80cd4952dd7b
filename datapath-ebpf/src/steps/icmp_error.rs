//! ICMP errors of the node's own: time exceeded, and fragmentation needed or packet too big.
//!
//! The packet in question is turned into the error: cut to what is quoted, moved back behind new headers, and sent out
//! of the device it came from, to the neighbour it came from. No state of the host's stack is involved.

use aya_ebpf::{
    bindings::{bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_tunnel_key},
    helpers::generated as helpers,
};
use datapath_ebpf::{
    DropReason, Forward, Ip, checksum,
    packet::{self, ETHERNET_LEN, Ethernet, Family, Ipv4, Ipv6},
};

use super::{
    Verdict, forward, scratch,
    skb::Skb,
    tables::NODE,
    transport::{self, Kind},
};

/// An ICMP error's header.
const ICMP_HEADER: usize = 8;

/// Type, code, and the four bytes after the checksum.
struct Message {
    kind: u8,
    code: u8,
    rest: [u8; 4],
    /// What it means for the packet when the error cannot be sent.
    otherwise: DropReason,
    sent: Forward,
}

/// Answers that the packet's TTL or hop limit has run out here.
#[inline(always)]
pub fn time_exceeded<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    let message = Message {
        kind: if F::V4 { 11 } else { 3 },
        code: 0,
        rest: [0; 4],
        otherwise: DropReason::Ttl,
        sent: Forward::TimeExceeded,
    };
    send::<F>(skb, header, &message)
}

/// Answers that the packet is larger than `mtu`, the largest IP packet the way on takes.
#[inline(always)]
pub fn too_big<F: Family>(skb: Skb, header: &F::Header, mtu: u32) -> Verdict {
    let message = Message {
        kind: if F::V4 { 3 } else { 2 },
        code: if F::V4 { 4 } else { 0 },
        rest: mtu.to_be_bytes(),
        otherwise: DropReason::MtuExceeded,
        sent: Forward::TooBig,
    };
    send::<F>(skb, header, &message)
}

#[inline(never)]
fn send<F: Family>(skb: Skb, header: &F::Header, message: &Message) -> Verdict {
    let source = node_address::<F>().ok_or(message.otherwise)?;
    if !may_be_answered::<F>(skb, header) {
        return Err(message.otherwise);
    }
    // A header whose checksum is still to be filled in cannot be cut through, so TCP's is quoted whole.
    const TCP_HEADER: usize = 20;
    const OTHER_HEADER: usize = 8;
    let sent = if F::protocol(header) == packet::TCP {
        turn_around::<F, TCP_HEADER>(skb, header, message, &source)
    } else {
        turn_around::<F, OTHER_HEADER>(skb, header, message, &source)
    };
    sent.map_err(|_| message.otherwise)?;
    Ok(message.sent)
}

/// No error about an error, nor about a later fragment, nor to something that is no host (RFC 1122, section 3.2.2).
#[inline(never)]
fn may_be_answered<F: Family>(skb: Skb, header: &F::Header) -> bool {
    if F::is_link_local(&F::src(header)) {
        return false;
    }
    let Some(scratch) = scratch::get() else { return false };
    let transport = &mut scratch.transport;
    transport::parse::<F>(skb, header, transport).is_ok()
        && !matches!(transport.kind, Kind::Error | Kind::LaterFragment)
}

#[inline(always)]
fn node_address<F: Family>() -> Option<Ip> {
    let node = NODE.get(0)?;
    let address = if F::V4 { node.address_v4 } else { node.address_v6 };
    if address.is_unspecified() { None } else { Some(address) }
}

/// Turns the packet into the error and sends it back. `QUOTED` bytes follow the quoted IP header.
#[inline(always)]
fn turn_around<F: Family, const QUOTED: usize>(
    skb: Skb,
    header: &F::Header,
    message: &Message,
    source: &Ip,
) -> Result<(), DropReason> {
    let quoted = size_of::<F::Header>() + QUOTED;
    let added = size_of::<F::Header>() + ICMP_HEADER;
    let (ethernet, _) = skb.headers::<F>()?;
    let length = (ETHERNET_LEN + quoted) as u32;
    if skb.len() < length {
        return Err(message.otherwise);
    }
    // SAFETY: the context is valid; the helpers check the lengths.
    let cut = unsafe {
        helpers::bpf_skb_change_tail(skb.raw(), length, 0) == 0
            && helpers::bpf_skb_adjust_room(skb.raw(), added as i32, BPF_ADJ_ROOM_MAC, 0) == 0
    };
    if !cut {
        return Err(DropReason::Rewrite);
    }
    let destination = F::src(header);
    write_ip::<F>(skb, source, &destination, (ICMP_HEADER + quoted) as u16)?;
    write_icmp::<F, QUOTED>(skb, message, source, &destination)?;
    send_back(skb, &ethernet)
}

#[inline(never)]
fn write_ip<F: Family>(skb: Skb, src: &Ip, dst: &Ip, payload: u16) -> Result<(), DropReason> {
    const DSCP_INTERNETWORK_CONTROL: u8 = 0xc0;
    if F::V4 {
        let header = Ipv4::new(src, dst, F::ICMP, payload, DSCP_INTERNETWORK_CONTROL, 0);
        skb.store(ETHERNET_LEN as u32, &header)
    } else {
        skb.store(ETHERNET_LEN as u32, &Ipv6::new(src, dst, F::ICMP, payload, 0))
    }
}

#[inline(never)]
fn write_icmp<F: Family, const QUOTED: usize>(
    skb: Skb,
    message: &Message,
    src: &Ip,
    dst: &Ip,
) -> Result<(), DropReason> {
    let offset = (ETHERNET_LEN + size_of::<F::Header>()) as u32;
    let quoted_at = offset + ICMP_HEADER as u32;
    let [a, b, c, d] = message.rest;
    let mut icmp = [message.kind, message.code, 0, 0, a, b, c, d];
    let mut sum = sum_of(&icmp, 0);
    let quoted = (size_of::<F::Header>() + QUOTED) as u32;
    // Four bytes at a time: a copy of the headers would not fit the stack.
    for word in 0..quoted / 4 {
        sum = sum_of(&skb.load::<u32>(quoted_at + word * 4)?, sum);
    }
    if !F::V4 {
        let length = ICMP_HEADER as u32 + quoted;
        sum = sum_of(&src.bytes, sum_of(&dst.bytes, sum));
        sum = sum_of(&[length.to_be(), (F::ICMP as u32).to_be()], sum);
    }
    let [high, low] = (!checksum::fold(sum)).to_ne_bytes();
    (icmp[2], icmp[3]) = (high, low);
    skb.store(offset, &icmp)
}

/// Adds a value's bytes to a one's-complement sum. Its size must be a multiple of four.
#[inline(always)]
fn sum_of<T>(value: &T, seed: u32) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4), "bpf_csum_diff sums words") };
    let bytes = core::ptr::from_ref(value).cast_mut().cast();
    // SAFETY: the helper reads exactly the value's bytes.
    unsafe { helpers::bpf_csum_diff(core::ptr::null_mut(), 0, bytes, size_of::<T>() as u32, seed) as u32 }
}

/// Out of the device the packet came in by, to the neighbour (or tunnel end) it came from.
#[inline(never)]
fn send_back(skb: Skb, came: &Ethernet) -> Result<(), DropReason> {
    skb.store(0, &Ethernet { dst: came.src, src: came.dst, ether_type: came.ether_type })?;
    let is_overlay = NODE.get(0).is_some_and(|node| node.overlay_ifindex == skb.ifindex());
    if is_overlay {
        forward::set_tunnel_key(skb, &tunnel_source(skb)?)?;
    }
    skb.set_handled();
    // SAFETY: no pointers involved.
    unsafe { helpers::bpf_redirect(skb.ifindex(), 0) };
    Ok(())
}

/// The tunnel end the packet came from.
#[inline(always)]
fn tunnel_source(skb: Skb) -> Result<Ip, DropReason> {
    use aya_ebpf::bindings::BPF_F_TUNINFO_IPV6;
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is of the size given. The helper refuses a key of the other family than the flag says.
    unsafe {
        if helpers::bpf_skb_get_tunnel_key(skb.raw(), &raw mut key, size, 0) == 0 {
            return Ok(Ip::from_v4(key.__bindgen_anon_1.remote_ipv4.to_be_bytes()));
        }
        match helpers::bpf_skb_get_tunnel_key(skb.raw(), &raw mut key, size, BPF_F_TUNINFO_IPV6 as u64) {
            0 => Ok(Ip::from_words(key.__bindgen_anon_1.remote_ipv6)),
            _ => Err(DropReason::TunnelKey),
        }
    }
}

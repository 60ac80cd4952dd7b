//! Whether the host has a socket for something: masquerade must not take packets away from it.

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated as helpers,
};
use datapath_ebpf::{maps::FlowKey, packet};

use super::skb::Skb;

/// Whether a socket of the host, connected or listening, would get a packet of this flow. The kernel can be asked for TCP and
/// UDP only.
#[inline(never)]
pub fn would_get(skb: Skb, key: &FlowKey, tuple: &mut bpf_sock_tuple) -> bool {
    let size = write(key, tuple);
    let ctx = skb.raw().cast();
    // SAFETY: the tuple is initialized and `size` is one of the two sizes the helpers take; a socket that is found is
    // released right after.
    unsafe {
        let socket: *mut bpf_sock = match key.protocol {
            packet::TCP => helpers::bpf_skc_lookup_tcp(ctx, tuple, size, THIS_NETNS, 0),
            packet::UDP => helpers::bpf_sk_lookup_udp(ctx, tuple, size, THIS_NETNS, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        helpers::bpf_sk_release(socket.cast());
        true
    }
}

/// Whether a UDP socket of the host that is connected to the flow's source would get a datagram of this flow.
#[inline(never)]
pub fn is_connected(skb: Skb, key: &FlowKey, tuple: &mut bpf_sock_tuple) -> bool {
    let size = write(key, tuple);
    // SAFETY: as above.
    unsafe {
        let socket = helpers::bpf_sk_lookup_udp(skb.raw().cast(), tuple, size, THIS_NETNS, 0);
        if socket.is_null() {
            return false;
        }
        let port = (&raw const (*socket).dst_port).read_volatile();
        helpers::bpf_sk_release(socket.cast());
        port != 0
    }
}

/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's device, which is the node's.
const THIS_NETNS: u64 = u64::MAX;

/// The flow as the helpers take it; returns its size.
#[inline(always)]
fn write(key: &FlowKey, tuple: &mut bpf_sock_tuple) -> u32 {
    let (src_port, dst_port) =
        (u16::from_ne_bytes(key.src_port.bytes), u16::from_ne_bytes(key.dst_port.bytes));
    if key.src.is_v4() {
        tuple.__bindgen_anon_1.ipv4 =
            Tuple4 { saddr: key.src.words()[3], daddr: key.dst.words()[3], sport: src_port, dport: dst_port };
        size_of::<Tuple4>() as u32
    } else {
        tuple.__bindgen_anon_1.ipv6 =
            Tuple6 { saddr: key.src.words(), daddr: key.dst.words(), sport: src_port, dport: dst_port };
        size_of::<Tuple6>() as u32
    }
}

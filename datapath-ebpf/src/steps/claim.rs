//! Claiming a masquerade port: inserting the way back, if nobody has, is the atomic claim.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated as helpers,
};
use datapath_ebpf::{
    DropReason, Ip, Port,
    maps::{FlowKey, MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, Reverse},
    packet::{self},
};

use super::{scratch::Scratch, skb::Skb, tables::NAT};

/// How many ports one packet may try. A packet that finds none is dropped; its retransmission starts somewhere else.
const MAX_TRIES: u32 = 1024;

const EEXIST: i32 = -17;

/// What the search carries from one try to the next, beside the scratch.
struct Search {
    skb: Skb,
    scratch: *mut Scratch,
    /// Where the search goes on after the flow's own port.
    start: u32,
    /// The map took no more entries.
    full: bool,
    found: bool,
}

/// Claims a port of `address` towards the remote end of `scratch.key`, and leaves it in `scratch.back`. The flow's own
/// port is tried first, so most flows keep theirs.
#[inline(always)]
pub fn port(skb: Skb, scratch: &mut Scratch, address: &Ip, flags: u8, now: u64) -> Result<Port, DropReason> {
    let flow = &scratch.key;
    scratch.reverse = Reverse {
        last_seen: now,
        packets: 0,
        bytes: 0,
        address: flow.src,
        port: flow.src_port,
        flags,
        tcp_flags: 0,
        reserved: [0; 4],
    };
    scratch.back = FlowKey { dst: *address, ..flow.reversed() };
    // SAFETY: no arguments.
    let start = unsafe { helpers::bpf_get_prandom_u32() };
    let mut search = Search { skb, scratch, start, full: false, found: false };
    let state = (&raw mut search).cast::<c_void>();
    // SAFETY: `attempt` has the signature `bpf_loop` calls, and `search` outlives the call.
    unsafe { helpers::bpf_loop(MAX_TRIES, attempt as *const () as *mut c_void, state, 0) };
    match (search.found, search.full) {
        (true, _) => Ok(scratch.back.dst_port),
        (false, true) => Err(DropReason::ConntrackFull),
        (false, false) => Err(DropReason::PortsExhausted),
    }
}

/// One try; 1 ends the search.
#[inline(never)]
extern "C" fn attempt(index: u64, state: *mut c_void) -> u64 {
    // SAFETY: `port` passes a `Search` that outlives the loop, and in it a scratch that nobody else uses meanwhile.
    let (search, scratch) = unsafe {
        let search = &mut *state.cast::<Search>();
        let scratch = &mut *search.scratch;
        (search, scratch)
    };
    if index > 0 && scratch.back.protocol == packet::SCTP {
        // Another port would need a new CRC over the whole packet.
        return 1;
    }
    if !choose_candidate(scratch, search.start, index as u32) || is_host_socket(search.skb, &scratch.back) {
        return 0;
    }
    // Constants are returned: the verifier would not believe a computed value to be 0 or 1.
    match NAT.insert(&scratch.back, &scratch.reverse, BPF_NOEXIST as u64) {
        // Ours already, left by a start that was cut short between its two halves.
        Err(EEXIST) if !is_own(scratch) => return 0,
        Ok(()) | Err(EEXIST) => search.found = true,
        Err(_) => search.full = true,
    }
    1
}

/// Puts the candidate of this round into the way back; false when the flow's own port is outside the range.
#[inline(always)]
fn choose_candidate(scratch: &mut Scratch, start: u32, index: u32) -> bool {
    let back = &mut scratch.back;
    let echo = matches!(back.protocol, packet::ICMP | packet::ICMPV6);
    if index == 0 {
        return echo || back.protocol == packet::SCTP || back.dst_port.get() >= MASQUERADE_PORT_FIRST;
    }
    let offset = start.wrapping_add(index) & (MASQUERADE_PORTS - 1);
    back.dst_port = Port::new(MASQUERADE_PORT_FIRST.wrapping_add(offset as u16));
    if echo {
        back.src_port = back.dst_port;
    }
    true
}

#[inline(always)]
fn is_own(scratch: &Scratch) -> bool {
    // SAFETY: compared at once.
    unsafe { NAT.get(&scratch.back) }
        .is_some_and(|other| other.address == scratch.reverse.address && other.port == scratch.reverse.port)
}

/// Whether a socket of the host, connected or listening, would get the replies to the candidate.
#[inline(always)]
fn is_host_socket(skb: Skb, key: &FlowKey) -> bool {
    let (src_port, dst_port) =
        (u16::from_ne_bytes(key.src_port.bytes), u16::from_ne_bytes(key.dst_port.bytes));
    // SAFETY: all-zero is a valid value of this plain C union.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    if key.src.is_v4() {
        tuple.__bindgen_anon_1.ipv4 =
            Tuple4 { saddr: key.src.words()[3], daddr: key.dst.words()[3], sport: src_port, dport: dst_port };
        has_socket(skb, key.protocol, &mut tuple, size_of::<Tuple4>() as u32)
    } else {
        tuple.__bindgen_anon_1.ipv6 =
            Tuple6 { saddr: key.src.words(), daddr: key.dst.words(), sport: src_port, dport: dst_port };
        has_socket(skb, key.protocol, &mut tuple, size_of::<Tuple6>() as u32)
    }
}

#[inline(always)]
fn has_socket(skb: Skb, protocol: u8, tuple: &mut bpf_sock_tuple, size: u32) -> bool {
    /// `BPF_F_CURRENT_NETNS`: the namespace of the packet's device, which is the node's.
    const THIS_NETNS: u64 = u64::MAX;
    let ctx = skb.raw().cast();
    // SAFETY: the tuple is initialized and `size` is one of the two sizes the helpers take; a socket that is found is
    // released right after.
    unsafe {
        let socket: *mut bpf_sock = match protocol {
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

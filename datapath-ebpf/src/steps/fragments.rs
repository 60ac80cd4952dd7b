//! Fragmented datagrams through masquerade: only the first fragment has the ports, the others follow its translation.

use datapath_ebpf::{
    Ip,
    maps::{Fragment, FragmentKey},
};

use super::{tables::FRAGMENTS, transport::Transport};

#[inline(always)]
fn key(transport: &Transport, src: &Ip, dst: &Ip) -> FragmentKey {
    FragmentKey {
        src: *src,
        dst: *dst,
        id: transport.fragment_id,
        protocol: transport.protocol,
        reserved: [0; 3],
    }
}

/// Keeps what a first fragment's address was replaced with. A full map evicts the oldest datagram; the later fragments
/// of that one are then dropped and counted.
#[inline(always)]
pub fn remember(transport: &Transport, src: &Ip, dst: &Ip, address: &Ip) {
    if transport.fragmented {
        insert(transport, src, dst, address);
    }
}

#[inline(never)]
fn insert(transport: &Transport, src: &Ip, dst: &Ip, address: &Ip) {
    let _ = FRAGMENTS.insert(&key(transport, src, dst), &Fragment { address: *address }, 0);
}

/// What the first fragment's address was replaced with.
#[inline(always)]
pub fn recall(transport: &Transport, src: &Ip, dst: &Ip) -> Option<Ip> {
    // SAFETY: copied at once.
    unsafe { FRAGMENTS.get(&key(transport, src, dst)) }.map(|fragment| fragment.address)
}

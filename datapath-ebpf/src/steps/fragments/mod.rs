//! Fragmented datagrams through masquerade: only the first fragment has the ports, the others follow its translation.
//!
//! [`state`] keeps for each datagram the address and which parts have passed, so that nothing passes twice. [`held`] keeps what
//! comes before the first fragment, and lets it in again once that one has passed.

pub mod held;
pub mod state;

use datapath_ebpf::{DropReason, Ip, fragment::Piece, maps::FragmentKey, packet::Family};

use self::state::Admitted;
use super::{scratch::Scratch, skb::Skb, transport::Kind};

/// Writes down which datagram the fragment belongs to, and where in it. `ifindex` as in [`FragmentKey::ifindex`].
#[inline(never)]
pub fn place<F: Family>(skb: Skb, scratch: &mut Scratch, ifindex: u32) -> Result<(), DropReason> {
    let transport = &scratch.transport;
    let length = transport.end.wrapping_sub(transport.fragment_data);
    let piece = Piece::new(transport.fragment_start, length, !transport.more_fragments);
    let Some(piece) = piece.filter(|_| skb.gso_size() == 0) else { return Err(DropReason::Malformed) };
    scratch.fragment.piece = piece;
    scratch.fragment.key = FragmentKey {
        src: scratch.key.src,
        dst: scratch.key.dst,
        id: transport.fragment_id,
        ifindex,
        protocol: if F::V4 { transport.protocol } else { 0 },
        reserved: [0; 3],
    };
    Ok(())
}

/// Whether the packet is a first fragment that the others can follow.
#[inline(always)]
pub fn is_first(scratch: &Scratch) -> bool {
    let transport = &scratch.transport;
    transport.fragmented && matches!(transport.kind, Kind::Ports | Kind::EchoRequest | Kind::EchoReply)
}

/// A first fragment of a datagram that is under way is a repetition or worse.
#[inline(always)]
pub fn check_first(scratch: &mut Scratch) -> Result<(), DropReason> {
    if is_first(scratch) && state::admit(&mut scratch.fragment) == Admitted::No {
        return Err(DropReason::FragmentOverlap);
    }
    Ok(())
}

/// Keeps what a first fragment's address was replaced with.
#[inline(always)]
pub fn remember(scratch: &mut Scratch, address: &Ip) {
    if scratch.transport.fragmented {
        state::begin(&mut scratch.fragment, address);
    }
}

/// Lets in what came before the first fragment, which `skb` is and stays.
#[inline(always)]
pub fn release(skb: Skb, scratch: &mut Scratch) -> Result<(), DropReason> {
    if is_first(scratch) { held::release(skb, &scratch.fragment) } else { Ok(()) }
}

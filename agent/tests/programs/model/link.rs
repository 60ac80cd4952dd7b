//! What is decided before anything is translated: whether a frame is ours at all, and whether its sender may send it.

use datapath_ebpf::{DropReason, Ip};

use super::{
    packet::{Header, UDP},
    sums::word,
    world::{Endpoint, Pod, World},
};
use crate::{frames::ETHERNET, topology::UPLINK_MAC};

/// Whether the frame says that it carries the family's packets.
pub fn is_ip(frame: &[u8], v4: bool) -> bool {
    word(frame, 12) == if v4 { 0x0800 } else { 0x86dd }
}

/// Whether the frame is for another machine on the link; group addresses are for everybody.
pub fn is_for_another(frame: &[u8]) -> bool {
    frame[0] & 1 == 0 && frame[..6] != UPLINK_MAC
}

/// Whether the destination of an IPv6 packet is an IPv4 address in disguise.
pub fn is_mapped(header: &Header) -> bool {
    !header.v4 && header.dst.is_v4()
}

/// A packet of the overlay, for the host to unwrap: UDP to its port, told from the headers that nearly all packets have.
pub fn is_overlay(frame: &[u8], header: &Header) -> bool {
    let plain = !header.v4 || frame[ETHERNET] == 0x45 && word(frame, ETHERNET + 6) & 0x1fff == 0;
    header.next == UDP
        && plain
        && frame.len() >= header.transport + 4
        && word(frame, header.transport + 2) == 8472
}

/// Addresses that mean something on their own link or machine only.
pub fn is_local(address: Ip) -> bool {
    if address.is_v4() {
        let [a, b, c, d] = address.v4();
        return matches!(a, 0 | 127 | 224..) || [a, b, c, d] == [169, 254, 1, 1];
    }
    let [a, b, ..] = address.bytes;
    a == 0xff || (a == 0xfe && b & 0xc0 == 0x80) || (a, b) == (0, 0)
}

/// A pod sends as itself or not at all.
pub fn check_source(world: &World, pod: Pod, frame: &[u8], header: &Header) -> Result<(), DropReason> {
    if !header.v4 && (header.src.is_v4() || header.dst.is_v4()) {
        return Err(DropReason::Malformed);
    }
    match world.find(header.src) {
        None if is_local(header.src) && is_local(header.dst) => Err(DropReason::LinkLocal),
        Some(Endpoint::Pod(sender)) if sender == pod => {
            if frame[6..12] == pod.mac() {
                Ok(())
            } else {
                Err(DropReason::SourceMac)
            }
        }
        _ => Err(DropReason::SourceAddress),
    }
}

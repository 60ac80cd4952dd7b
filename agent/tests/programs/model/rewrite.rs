//! What a translation does to the bytes.

use datapath_ebpf::Ip;

use super::{
    packet::{Header, ICMP, ICMPV6, UDP},
    rules::Rules,
    sums::{follow, set_word, word},
};
use crate::{frames::Mac, topology::GATEWAY_MAC};

/// Which end of a packet is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Source,
    Destination,
}

/// The bytes of an address in a header of its family.
fn wire(v4: bool, address: Ip) -> Vec<u8> {
    if v4 { address.v4().to_vec() } else { address.bytes.to_vec() }
}

/// Replaces an address in an IP header; returns its old and new bytes.
pub fn address(frame: &mut [u8], header: &Header, side: Side, new: Ip) -> (Vec<u8>, Vec<u8>) {
    let offset = match (header.v4, side) {
        (true, Side::Source) => 12,
        (true, Side::Destination) => 16,
        (false, Side::Source) => 8,
        (false, Side::Destination) => 24,
    };
    let new = wire(header.v4, new);
    let at = header.base + offset;
    let old = frame[at..at + new.len()].to_vec();
    frame[at..at + new.len()].copy_from_slice(&new);
    if header.v4 {
        let sum = header.base + 10;
        let right = follow(word(frame, sum), &old, &new);
        set_word(frame, sum, right);
    }
    (old, new)
}

/// Replaces address and port of a packet that has its transport header; `quoted` bytes past the frame's end are not there.
pub fn end(rules: &Rules, frame: &mut [u8], header: &Header, side: Side, new: Ip, port: u16) {
    let (mut before, mut after) = address(frame, header, side, new);
    if header.protocol == ICMP {
        // Its checksum does not cover the addresses.
        (before, after) = (Vec::new(), Vec::new());
    }
    let at = header.transport
        + match (header.protocol, side) {
            (ICMP | ICMPV6, _) => 4,
            (_, Side::Source) => 0,
            (_, Side::Destination) => 2,
        };
    before.extend_from_slice(&frame[at..at + 2]);
    after.extend_from_slice(&port.to_be_bytes());
    set_word(frame, at, port);
    cover(rules, frame, header, &before, &after);
}

/// Makes the transport checksum follow a change of bytes under it, where there is one and it is there.
pub fn cover(rules: &Rules, frame: &mut [u8], header: &Header, before: &[u8], after: &[u8]) {
    let Some(at) = header.checksum().filter(|at| at + 2 <= frame.len()) else { return };
    let old = word(frame, at);
    let udp = header.protocol == UDP;
    if udp && old == 0 && rules.zero_udp_stays {
        return;
    }
    let new = follow(old, before, after);
    set_word(frame, at, if udp && new == 0 { 0xffff } else { new });
}

/// One hop further.
pub fn hop(frame: &mut [u8], header: &Header) {
    let at = header.base + if header.v4 { 8 } else { 7 };
    let old = [frame[at], 0];
    frame[at] -= 1;
    if header.v4 {
        let sum = header.base + 10;
        let right = follow(word(frame, sum), &old, &[frame[at], 0]);
        set_word(frame, sum, right);
    }
}

/// From the gateway to the pod.
pub fn macs(frame: &mut [u8], pod: Mac) {
    frame[..6].copy_from_slice(&pod);
    frame[6..12].copy_from_slice(&GATEWAY_MAC);
}

//! Whether a frame's checksums are right, recomputed from all the bytes they cover.

use std::net::IpAddr;

use etherparse::{LaxIpSlice, checksum::Sum16BitWords};

use super::frames::{ETHERNET, pseudo_header};

/// What recomputing found; `None` where there is no checksum, or not all that it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksums {
    /// Of the IPv4 header.
    pub header: Option<bool>,
    /// Of TCP, UDP, ICMP or ICMPv6.
    pub transport: Option<bool>,
}

/// Recomputes the checksums of an Ethernet frame.
pub fn of(frame: &[u8]) -> Checksums {
    let mut found = Checksums { header: None, transport: None };
    let Ok((ip, _)) = LaxIpSlice::from_slice(&frame[ETHERNET..]) else { return found };
    if let Some(v4) = ip.ipv4() {
        found.header = Some(Sum16BitWords::new().add_slice(v4.header().slice()).ones_complement() == 0);
    }
    let payload = ip.payload();
    if payload.incomplete || payload.fragmented {
        return found;
    }
    found.transport =
        transport(ip.source_addr(), ip.destination_addr(), payload.ip_number.0, payload.payload);
    found
}

fn transport(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> Option<bool> {
    const UDP: u8 = 17;
    let (length, field) = match (protocol, src.is_ipv4()) {
        (6, _) => (20, 16),
        (UDP, _) => (8, 6),
        (1, true) | (58, false) => (8, 2),
        _ => return None,
    };
    if bytes.len() < length || protocol == UDP && bytes[field..field + 2] == [0, 0] {
        return None;
    }
    Some(pseudo_header(src, dst, protocol, bytes.len()).add_slice(bytes).ones_complement() == 0)
}

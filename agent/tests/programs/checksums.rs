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
    /// Of the IPv4 header that an ICMP error quotes.
    pub quoted_header: Option<bool>,
    /// Of the TCP, UDP, ICMP or ICMPv6 packet that an ICMP error quotes as a whole.
    pub quoted_transport: Option<bool>,
}

/// Recomputes the checksums of an Ethernet frame.
pub fn of(frame: &[u8]) -> Checksums {
    let mut found = Checksums { header: None, transport: None, quoted_header: None, quoted_transport: None };
    let packet = &frame[ETHERNET..];
    let Ok((ip, _)) = LaxIpSlice::from_slice(packet) else { return found };
    (found.header, found.transport) = of_packet(packet);
    if let Some(quote) = quote(&ip) {
        (found.quoted_header, found.quoted_transport) = of_packet(quote);
    }
    found
}

/// Of the header, and of the transport.
fn of_packet(packet: &[u8]) -> (Option<bool>, Option<bool>) {
    let Ok((ip, _)) = LaxIpSlice::from_slice(packet) else { return (None, None) };
    let header =
        ip.ipv4().map(|v4| Sum16BitWords::new().add_slice(v4.header().slice()).ones_complement() == 0);
    let payload = ip.payload();
    if payload.incomplete || payload.fragmented {
        return (header, None);
    }
    let (src, dst) = (ip.source_addr(), ip.destination_addr());
    (header, transport(src, dst, payload.ip_number.0, payload.payload))
}

/// What an ICMP error quotes, if it does not end before the error does.
fn quote<'a>(ip: &LaxIpSlice<'a>) -> Option<&'a [u8]> {
    const HEADER: usize = 8;
    let payload = ip.payload();
    let icmp = payload.payload;
    if payload.incomplete || payload.fragmented || icmp.len() < HEADER {
        return None;
    }
    let length = match (ip.ipv4().is_some(), payload.ip_number.0, icmp[0]) {
        (true, 1, 3 | 11 | 12) => icmp[5],
        (false, 58, 1 | 3) => icmp[4],
        (true, 1, 4 | 5) | (false, 58, 0..128) => 0,
        _ => return None,
    };
    (length == 0).then(|| &icmp[HEADER..])
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

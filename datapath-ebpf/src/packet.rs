//! Headers as they lie in a packet, and the one trait that lets every program be written once for both families.

use crate::{Ip, Mac, checksum};

/// Length of the Ethernet header; where the IP header starts.
pub const ETHERNET_LEN: usize = size_of::<Ethernet>();

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// SCTP's protocol number.
pub const SCTP: u8 = 132;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;

/// TCP's FIN flag.
pub const TCP_FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// TCP's RST flag.
pub const TCP_RST: u8 = 0x04;
/// TCP's ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// An Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType, network order.
    pub ether_type: [u8; 2],
}

/// An IPv4 header without options. Four-byte alignment is what the network stack keeps for it (`NET_IP_ALIGN`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words (4 bits).
    pub version_length: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload, network order.
    pub total_length: u16,
    /// Identification, network order.
    pub id: [u8; 2],
    /// Flags (3 bits) and fragment offset in 8-byte units (13 bits), network order.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum, network order.
    pub checksum: u16,
    /// Source address, network order.
    pub src: u32,
    /// Destination address, network order.
    pub dst: u32,
}

/// An IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class and flow label, network order.
    pub version_class_flow: u32,
    /// Length of what follows this header, network order.
    pub payload_length: u16,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address, network order.
    pub src: [u32; 4],
    /// Destination address, network order.
    pub dst: [u32; 4],
}

/// TTL and hop limit of what the programs make themselves, Linux' default.
pub const TTL: u8 = 64;

impl Ipv4 {
    /// A header without options, checksum included, that lets routers fragment. `payload` is the length of what follows.
    #[inline(always)]
    pub fn new(src: &Ip, dst: &Ip, protocol: u8, payload: u16, tos: u8, id: u16) -> Self {
        let mut header = Self {
            version_length: 0x45,
            tos,
            total_length: payload.wrapping_add(size_of::<Self>() as u16).to_be(),
            id: id.to_be_bytes(),
            fragment: [0; 2],
            ttl: TTL,
            protocol,
            checksum: 0,
            src: src.words()[3],
            dst: dst.words()[3],
        };
        header.checksum = header.sum();
        header
    }

    /// The header's checksum from scratch, in the form the field has; the field itself must be zero.
    #[inline(always)]
    pub fn sum(&self) -> u16 {
        let words = [
            u16::from_ne_bytes([self.version_length, self.tos]),
            self.total_length,
            u16::from_ne_bytes(self.id),
            u16::from_ne_bytes(self.fragment),
            u16::from_ne_bytes([self.ttl, self.protocol]),
            self.checksum,
        ];
        let sum = checksum::add_words(0, words);
        !checksum::fold(checksum::add_words(sum, halves(self.src).into_iter().chain(halves(self.dst))))
    }
}

impl Ipv6 {
    /// A header; `payload` is the length of what follows.
    #[inline(always)]
    pub const fn new(src: &Ip, dst: &Ip, next_header: u8, payload: u16, traffic_class: u8) -> Self {
        Self {
            version_class_flow: u32::from_ne_bytes([0x60 | traffic_class >> 4, traffic_class << 4, 0, 0]),
            payload_length: payload.to_be(),
            next_header,
            hop_limit: TTL,
            src: src.words(),
            dst: dst.words(),
        }
    }
}

const _: () = assert!(size_of::<Ethernet>() == 14);
const _: () = assert!(size_of::<Ipv4>() == 20);
const _: () = assert!(size_of::<Ipv6>() == 40);

/// An address family: what differs between IPv4 and IPv6 for a program that forwards.
pub trait Family {
    /// The fixed header.
    type Header: Copy;
    /// Whether this is IPv4.
    const V4: bool;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// The EtherType, as a number.
    const ETHER_TYPE: u16;
    /// The family's ICMP.
    const ICMP: u8;
    /// The smallest MTU a link of this family may have.
    const MIN_MTU: u32;

    /// Whether version and header length are sane.
    fn is_valid(header: &Self::Header) -> bool;
    /// Length of the header in bytes, options included.
    fn length(header: &Self::Header) -> usize;
    /// Length of the whole IP packet as its header tells it; a short Ethernet frame is padded beyond.
    fn packet_length(header: &Self::Header) -> usize;
    /// Source address.
    fn src(header: &Self::Header) -> Ip;
    /// Destination address.
    fn dst(header: &Self::Header) -> Ip;
    /// Time to live or hop limit.
    fn ttl(header: &Self::Header) -> u8;
    /// Takes one hop off, checksum included.
    fn decrement_ttl(header: &mut Self::Header);
    /// The protocol after the fixed header (in IPv6 perhaps an extension header).
    fn protocol(header: &Self::Header) -> u8;
    /// Whether the transport header follows the fixed header at once: no options, no extension header, no later fragment.
    fn is_plain(header: &Self::Header) -> bool;
    /// Whether routers must not fragment the packet.
    fn dont_fragment(header: &Self::Header) -> bool;
    /// The identification and the flags and offset of fragmentation, where the fixed header has them (IPv4).
    fn fragmentation(header: &Self::Header) -> ([u8; 2], [u8; 2]);
    /// What the fixed header's own checksum lacks to be right, if it has one: 0 when it is. Options are not looked at.
    fn checksum_error(header: &Self::Header) -> u32;
    /// Both addresses' part of the pseudo header's sum: one's complement, unfolded.
    fn address_sum(header: &Self::Header) -> u32;
    /// The two ECN bits.
    fn ecn(header: &Self::Header) -> u8;
    /// Replaces the source address in the header (and its checksum, if the header has one).
    fn set_src(header: &mut Self::Header, to: &Ip);
    /// Replaces the destination address in the header (and its checksum, if the header has one).
    fn set_dst(header: &mut Self::Header, to: &Ip);
    /// Whether an address is of a kind that is never forwarded: multicast, broadcast, link-local, loopback, none.
    fn is_link_local(ip: &Ip) -> bool;
}

/// The ECN bits of TOS and traffic class.
pub const ECN: u8 = 3;

/// IPv4.
pub enum V4 {}
/// IPv6.
pub enum V6 {}

/// The IPv4 header checksum after a 32-bit field changed.
#[inline(always)]
const fn replace32(sum: u16, old: u32, new: u32) -> u16 {
    let sum = checksum::replace(sum, old as u16, new as u16);
    checksum::replace(sum, (old >> 16) as u16, (new >> 16) as u16)
}

impl Family for V4 {
    type Header = Ipv4;
    const V4: bool = true;
    const AF: u8 = 2;
    const ETHER_TYPE: u16 = 0x0800;
    const ICMP: u8 = ICMP;
    const MIN_MTU: u32 = 68;

    #[inline(always)]
    fn is_valid(header: &Ipv4) -> bool {
        header.version_length >> 4 == 4 && header.version_length & 0xf >= 5
    }

    #[inline(always)]
    fn length(header: &Ipv4) -> usize {
        (header.version_length & 0xf) as usize * 4
    }

    #[inline(always)]
    fn packet_length(header: &Ipv4) -> usize {
        u16::from_be(header.total_length) as usize
    }

    #[inline(always)]
    fn src(header: &Ipv4) -> Ip {
        Ip::from_v4_word(header.src)
    }

    #[inline(always)]
    fn dst(header: &Ipv4) -> Ip {
        Ip::from_v4_word(header.dst)
    }

    #[inline(always)]
    fn ttl(header: &Ipv4) -> u8 {
        header.ttl
    }

    #[inline(always)]
    fn decrement_ttl(header: &mut Ipv4) {
        // TTL is the high byte of its 16-bit word: one less there is one more in the complement.
        let sum = u32::from(header.checksum) + u32::from(0x0100u16.to_be());
        // All ones would say the same as zero, but no sender would have written it.
        header.checksum = (sum + u32::from(sum >= 0xffff)) as u16;
        header.ttl = header.ttl.wrapping_sub(1);
    }

    #[inline(always)]
    fn protocol(header: &Ipv4) -> u8 {
        header.protocol
    }

    #[inline(always)]
    fn is_plain(header: &Ipv4) -> bool {
        header.version_length == 0x45 && u16::from_be_bytes(header.fragment) & 0x1fff == 0
    }

    #[inline(always)]
    fn dont_fragment(header: &Ipv4) -> bool {
        header.fragment[0] & 0x40 != 0
    }

    #[inline(always)]
    fn fragmentation(header: &Ipv4) -> ([u8; 2], [u8; 2]) {
        (header.id, header.fragment)
    }

    #[inline(always)]
    fn checksum_error(header: &Ipv4) -> u32 {
        header.sum() as u32
    }

    #[inline(always)]
    fn address_sum(header: &Ipv4) -> u32 {
        checksum::add_words(0, halves(header.src).into_iter().chain(halves(header.dst)))
    }

    #[inline(always)]
    fn ecn(header: &Ipv4) -> u8 {
        header.tos & ECN
    }

    #[inline(always)]
    fn set_src(header: &mut Ipv4, to: &Ip) {
        let to = to.words()[3];
        header.checksum = replace32(header.checksum, header.src, to);
        header.src = to;
    }

    #[inline(always)]
    fn set_dst(header: &mut Ipv4, to: &Ip) {
        let to = to.words()[3];
        header.checksum = replace32(header.checksum, header.dst, to);
        header.dst = to;
    }

    /// 169.254/16 other than the gateway is forwarded: clouds serve metadata there.
    #[inline(always)]
    fn is_link_local(ip: &Ip) -> bool {
        let [a, b, c, d] = ip.v4();
        a >= 224 || a == 0 || a == 127 || (a == 169 && b == 254 && c == 1 && d == 1)
    }
}

impl Family for V6 {
    type Header = Ipv6;
    const V4: bool = false;
    const AF: u8 = 10;
    const ETHER_TYPE: u16 = 0x86dd;
    const ICMP: u8 = ICMPV6;
    const MIN_MTU: u32 = 1280;

    #[inline(always)]
    fn is_valid(header: &Ipv6) -> bool {
        header.version_class_flow.to_ne_bytes()[0] >> 4 == 6
    }

    #[inline(always)]
    fn length(_header: &Ipv6) -> usize {
        size_of::<Ipv6>()
    }

    #[inline(always)]
    fn packet_length(header: &Ipv6) -> usize {
        size_of::<Ipv6>() + u16::from_be(header.payload_length) as usize
    }

    #[inline(always)]
    fn src(header: &Ipv6) -> Ip {
        Ip::from_words(header.src)
    }

    #[inline(always)]
    fn dst(header: &Ipv6) -> Ip {
        Ip::from_words(header.dst)
    }

    #[inline(always)]
    fn ttl(header: &Ipv6) -> u8 {
        header.hop_limit
    }

    #[inline(always)]
    fn decrement_ttl(header: &mut Ipv6) {
        header.hop_limit = header.hop_limit.wrapping_sub(1);
    }

    #[inline(always)]
    fn protocol(header: &Ipv6) -> u8 {
        header.next_header
    }

    #[inline(always)]
    fn is_plain(header: &Ipv6) -> bool {
        matches!(header.next_header, TCP | UDP | SCTP | ICMPV6)
    }

    #[inline(always)]
    fn dont_fragment(_header: &Ipv6) -> bool {
        true
    }

    #[inline(always)]
    fn fragmentation(_header: &Ipv6) -> ([u8; 2], [u8; 2]) {
        ([0; 2], [0; 2])
    }

    #[inline(always)]
    fn checksum_error(_header: &Ipv6) -> u32 {
        0
    }

    #[inline(always)]
    fn address_sum(header: &Ipv6) -> u32 {
        let mut sum = 0;
        for at in 0..4 {
            sum = checksum::add_words(sum, halves(header.src[at]).into_iter().chain(halves(header.dst[at])));
        }
        sum
    }

    #[inline(always)]
    fn ecn(header: &Ipv6) -> u8 {
        // The traffic class straddles the first two bytes.
        (header.version_class_flow.to_ne_bytes()[1] >> 4) & ECN
    }

    #[inline(always)]
    fn set_src(header: &mut Ipv6, to: &Ip) {
        header.src = to.words();
    }

    #[inline(always)]
    fn set_dst(header: &mut Ipv6, to: &Ip) {
        header.dst = to.words();
    }

    #[inline(always)]
    fn is_link_local(ip: &Ip) -> bool {
        let [a, b, ..] = ip.bytes;
        // ::/16 holds the unspecified, loopback and IPv4-mapped addresses, none of which may be on a wire; the last
        // would be taken for an IPv4 address by every map.
        a == 0xff || (a == 0xfe && b & 0xc0 == 0x80) || (a == 0 && b == 0)
    }
}

/// The sum to add to a checksum when one address replaces another in the pseudo header: one's complement, unfolded.
#[inline(always)]
pub fn address_difference<F: Family>(old: &Ip, new: &Ip) -> u32 {
    let (old, new) = (old.words(), new.words());
    if F::V4 {
        return u32::from(checksum::fold(checksum::add_words(
            0,
            halves(!old[3]).into_iter().chain(halves(new[3])),
        )));
    }
    let mut sum = 0;
    for at in 0..4 {
        sum = checksum::add_words(sum, halves(!old[at]).into_iter().chain(halves(new[at])));
    }
    u32::from(checksum::fold(sum))
}

#[inline(always)]
const fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(src: u32, dst: u32, ttl: u8) -> Ipv4 {
        let mut header = Ipv4 {
            version_length: 0x45,
            tos: 0,
            total_length: 84u16.to_be(),
            id: [1, 2],
            fragment: [0x40, 0],
            ttl,
            protocol: TCP,
            checksum: 0,
            src,
            dst,
        };
        header.checksum = full(&header);
        header
    }

    fn full(header: &Ipv4) -> u16 {
        Ipv4 { checksum: 0, ..*header }.sum()
    }

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a | b == 0xffff && a & b == 0)
    }

    proptest! {
        #[test]
        fn every_change_of_an_ipv4_header_keeps_its_checksum_right(
            src: u32, dst: u32, ttl in 1u8.., new_src: [u8; 4], new_dst: [u8; 4],
        ) {
            let mut h = header(src, dst, ttl);
            V4::decrement_ttl(&mut h);
            prop_assert!(same(h.checksum, full(&h)), "after the TTL");
            V4::set_src(&mut h, &Ip::from_v4(new_src));
            prop_assert!(same(h.checksum, full(&h)), "after the source");
            V4::set_dst(&mut h, &Ip::from_v4(new_dst));
            prop_assert!(same(h.checksum, full(&h)), "after the destination");
            prop_assert_eq!((h.ttl, V4::src(&h).v4(), V4::dst(&h).v4()), (ttl - 1, new_src, new_dst));
        }

        #[test]
        fn an_address_difference_turns_the_old_sum_into_the_new_one(old: [u8; 16], new: [u8; 16], rest: u16) {
            let (old, new) = (Ip::from_v6(old), Ip::from_v6(new));
            let sum = |ip: &Ip| checksum::add_words(u32::from(rest), ip.words().into_iter().flat_map(halves));
            let expected = checksum::fold(sum(&new));
            let actual = checksum::fold(u32::from(checksum::fold(sum(&old))) + address_difference::<V6>(&old, &new));
            prop_assert!(same(expected, actual));
        }
    }

    #[test]
    fn a_header_checksum_never_becomes_all_ones() {
        for checksum in 0..=u16::MAX {
            let mut h = Ipv4 { checksum: checksum.to_be(), ..header(1, 2, 64) };
            V4::decrement_ttl(&mut h);
            assert_ne!(h.checksum, 0xffff, "from {checksum:#x}");
        }
    }

    #[test]
    fn what_is_never_forwarded() {
        let v4 = |a: [u8; 4]| V4::is_link_local(&Ip::from_v4(a));
        assert!(
            v4([224, 0, 0, 251]) && v4([255; 4]) && v4([169, 254, 1, 1]) && v4([127, 0, 0, 1]) && v4([0; 4])
        );
        assert!(!v4([169, 254, 169, 254]), "cloud metadata");
        assert!(!v4([10, 0, 0, 1]) && !v4([223, 255, 255, 255]));
        let v6 = |text: &str| V6::is_link_local(&Ip::from(text.parse::<std::net::Ipv6Addr>().unwrap()));
        assert!(
            v6("ff02::2") && v6("fe80::1") && v6("febf::1") && v6("::") && v6("::1") && v6("::ffff:1.2.3.4")
        );
        assert!(!v6("fd00::1") && !v6("2001:db8::1") && !v6("fec0::1") && !v6("64:ff9b::1"));
    }
}

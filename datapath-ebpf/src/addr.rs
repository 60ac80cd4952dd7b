//! Addresses as the maps hold them: bytes in network order.

use crate::maps::pod;

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// Four-byte aligned, so that the compiler loads and compares words instead of single bytes.
#[repr(C, align(4))]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ip {
    /// The sixteen bytes in network order.
    pub bytes: [u8; 16],
}
pod!(Ip);

impl Ip {
    /// `::`, which stands for "none" wherever an address is optional.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// How many bits of the mapped form come before an IPv4 address.
    pub const V4_PREFIX_BITS: u32 = 96;

    /// An IPv4 address from its four bytes in network order.
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(v4))
    }

    /// An IPv4 address from its four bytes as they lie in a packet.
    #[inline(always)]
    pub const fn from_v4_word(v4: u32) -> Self {
        Self::from_words([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), v4])
    }

    /// An IPv6 address from its sixteen bytes in network order.
    #[inline(always)]
    pub const fn from_v6(v6: [u8; 16]) -> Self {
        Self { bytes: v6 }
    }

    /// An address from its sixteen bytes as they lie in a packet.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // Through bytes one by one, the BPF back end would take the address apart and put it together again.
        // SAFETY: both are sixteen bytes of which every bit pattern is valid.
        Self { bytes: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) } }
    }

    /// The sixteen bytes as they lie in a packet.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: both are sixteen bytes of which every bit pattern is valid.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.bytes) }
    }

    /// The four bytes of the IPv4 address; meaningless when [`Self::is_v4`] is false.
    #[inline(always)]
    pub const fn v4(&self) -> [u8; 4] {
        self.words()[3].to_ne_bytes()
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a | b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Whether this is `::`, that is: no address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words();
        a | b | c | d == 0
    }
}

/// An Ethernet address. Two-byte aligned like the header it comes from, so that it is not copied byte by byte.
#[repr(C, align(2))]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac {
    /// The six bytes as they are on the wire.
    pub bytes: [u8; 6],
}
pod!(Mac);

/// The address of the host end of every pod's veth: one constant, so that the pods' permanent neighbour entry for the
/// gateway and the programs' source address need no map entry. Locally administered ("HYPHA" without its first letter).
pub const GATEWAY_MAC: Mac = Mac { bytes: [0x0a, 0x59, 0x50, 0x48, 0x41, 0x01] };

/// The IPv4 gateway inside every pod.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];

/// The IPv6 gateway inside every pod: `fe80::1`.
pub const GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A TCP, UDP or SCTP port, or an ICMP echo identifier.
#[repr(C, align(2))]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The two bytes in network order.
    pub bytes: [u8; 2],
}
pod!(Port);

impl Port {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { bytes: port.to_be_bytes() }
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    use core::{
        fmt,
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
    };

    use super::{Ip, Mac, Port};

    impl From<IpAddr> for Ip {
        fn from(addr: IpAddr) -> Self {
            match addr {
                IpAddr::V4(v4) => v4.into(),
                IpAddr::V6(v6) => v6.into(),
            }
        }
    }

    impl From<Ipv4Addr> for Ip {
        fn from(addr: Ipv4Addr) -> Self {
            Self::from_v4(addr.octets())
        }
    }

    impl From<Ipv6Addr> for Ip {
        fn from(addr: Ipv6Addr) -> Self {
            Self::from_v6(addr.octets())
        }
    }

    impl From<Ip> for IpAddr {
        fn from(ip: Ip) -> Self {
            if ip.is_v4() { Self::V4(ip.v4().into()) } else { Self::V6(ip.bytes.into()) }
        }
    }

    impl fmt::Display for Ip {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    impl fmt::Debug for Ip {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Mac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let [a, b, c, d, e, g] = self.bytes;
            write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
        }
    }

    impl fmt::Debug for Mac {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }

    impl fmt::Display for Port {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.get().fmt(f)
        }
    }

    impl fmt::Debug for Port {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(self, f)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_round_trip() {
        for text in ["0.0.0.0", "10.244.1.5", "255.255.255.255", "::", "::1", "fd00::1:2", "fe80::1"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Ip::from(addr)), addr);
            assert_eq!(Ip::from(addr).is_v4(), addr.is_ipv4());
        }
    }

    #[test]
    fn only_the_v6_zero_address_is_unspecified() {
        assert!(Ip::UNSPECIFIED.is_unspecified());
        assert!(!Ip::from_v4([0; 4]).is_unspecified());
    }

    #[test]
    fn ports_are_network_order_inside() {
        assert_eq!(Port::new(80).bytes, [0, 80]);
        assert_eq!(Port::new(0x1234).get(), 0x1234);
    }
}

//! The two address families and the two ways between nodes: what scenarios are multiplied by.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The address that stands for "any of this family's".
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Bytes of a header without options or extensions.
    pub const fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Bits of an address: the prefix length of a single host.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The option that programs such as `ping` and `ip` take: `-4` or `-6`.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How packets travel between nodes: the agent's `--routing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    /// As they are; the network between the nodes knows where pods live, or is one segment.
    Native,
    /// Wrapped in VXLAN.
    Tunnel,
}

impl Routing {
    /// Both ways.
    pub const BOTH: [Self; 2] = [Self::Native, Self::Tunnel];

    /// What the agent's `--routing` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tunnel => "tunnel",
        }
    }

    /// How many bytes of the underlay's MTU the wrapping takes when nodes talk IPv4 to each other.
    pub const fn overhead(self) -> u32 {
        match self {
            Self::Native => 0,
            Self::Tunnel => 50,
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a connectivity check sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// A TCP connection that carries data both ways.
    Tcp,
    /// A datagram and its echo.
    Udp,
    /// An ICMP or ICMPv6 echo request and its reply.
    Icmp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Udp, Self::Tcp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        })
    }
}

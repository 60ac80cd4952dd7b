//! Frames as a malicious or broken pod would send them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::{family::Family, netns::Netns};

/// All protocols, in the byte order that the kernel wants.
const ETH_P_ALL_BE: u16 = 0x0003_u16.to_be();

/// A packet socket bound to a device.
pub(super) fn packet_socket(netns: &Netns, device: &str) -> Result<Socket> {
    let open = || -> io::Result<Socket> {
        let ifindex = if_nametoindex(device)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.bind(&link_address(ifindex))?;
        Ok(socket)
    };
    netns.enter(open)?.with_context(|| format!("cannot open {device} in {} for raw frames", netns.name()))
}

fn link_address(ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is the address type of the packet family that is set here, and all its fields are integers.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ETH_P_ALL_BE;
    address.sll_ifindex = ifindex.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a `sockaddr_ll` of exactly this length.
    unsafe { SockAddr::new(storage, len) }
}

/// Sends frames on one device exactly as they are.
#[derive(Debug)]
pub struct RawSender {
    socket: Socket,
}

impl RawSender {
    /// Opens a device.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        Ok(Self { socket: packet_socket(netns, device)? })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket.send(frame).context("cannot send a raw frame")?;
        Ok(())
    }
}

/// Sends IP packets with headers of one's own, by the namespace's routes.
#[derive(Debug)]
pub struct IpSender {
    socket: Socket,
}

impl IpSender {
    /// Opens a raw socket of the family.
    pub fn open(netns: &Netns, family: Family) -> Result<Self> {
        let domain = Domain::for_address((family.unspecified(), 0).into());
        let open = || Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let socket = netns.enter(open)?.with_context(|| format!("no raw socket in {}", netns.name()))?;
        Ok(Self { socket })
    }

    /// Sends one packet, IP header first.
    pub fn send(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        self.socket.send_to(packet, &SocketAddr::new(to, 0).into()).context("cannot send a raw packet")?;
        Ok(())
    }
}

/// A TCP RST without payload, IP header first.
pub fn tcp_reset(from: SocketAddr, to: SocketAddr, sequence: u32) -> Result<Vec<u8>> {
    const TTL: u8 = 64;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => PacketBuilder::ipv4(src.octets(), dst.octets(), TTL),
        (IpAddr::V6(src), IpAddr::V6(dst)) => PacketBuilder::ipv6(src.octets(), dst.octets(), TTL),
        (src, dst) => bail!("{src} and {dst} are of different families"),
    };
    let tcp = ip.tcp(from.port(), to.port(), sequence, 0).rst();
    let mut packet = Vec::with_capacity(tcp.size(0));
    tcp.write(&mut packet, &[]).context("cannot build a packet")?;
    Ok(packet)
}

/// A UDP packet with any addresses one likes.
#[derive(Clone, Copy, Debug)]
pub struct UdpFrame {
    /// Source and destination MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Source and destination port.
    pub ports: (u16, u16),
}

impl UdpFrame {
    /// The frame's bytes, checksums included.
    pub fn build(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let link = PacketBuilder::ethernet2(self.macs.0, self.macs.1);
        let ip = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(Ipv4Addr::octets(&src), dst.octets(), self.ttl),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(Ipv6Addr::octets(&src), dst.octets(), self.ttl),
            _ => bail!("{} and {} are of different families", self.src, self.dst),
        };
        let udp = ip.udp(self.ports.0, self.ports.1);
        let mut frame = Vec::with_capacity(udp.size(payload.len()));
        udp.write(&mut frame, payload).context("cannot build a frame")?;
        Ok(frame)
    }
}

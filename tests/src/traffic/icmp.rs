//! ICMP and ICMPv6 echo by raw sockets: who asked, under which identifier, and what came back.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, checksum::Sum16BitWords,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::socket::{self, PATIENCE};
use crate::{family::Family, netns::Netns};

/// A raw socket that sends and receives echo messages of one family, and sends errors.
#[derive(Debug)]
pub struct EchoSocket {
    family: Family,
    socket: Socket,
}

/// An echo message that came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Echo {
    /// Where it came from.
    pub from: IpAddr,
    /// A request, or a reply to one.
    pub is_request: bool,
    /// The identifier.
    pub id: u16,
    /// The sequence number.
    pub seq: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl EchoSocket {
    /// Opens one in a namespace.
    pub fn open(netns: &Netns, family: Family) -> Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_recv_buffer_size(8 << 20)?;
            Ok(socket)
        };
        let socket = netns.enter(open)?.context("cannot open a raw ICMP socket")?;
        Ok(Self { family, socket })
    }

    /// Sends an echo request.
    pub fn request(&self, to: IpAddr, id: u16, seq: u16, payload: &[u8]) -> Result<()> {
        let echo = IcmpEchoHeader { id, seq };
        let mut message = match self.family {
            Family::V4 => {
                Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload).to_bytes().to_vec()
            }
            // The kernel fills in the checksum: it alone knows the source address.
            Family::V6 => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
        };
        message.extend_from_slice(payload);
        self.socket
            .send_to(&message, &SocketAddr::new(to, 0).into())
            .with_context(|| format!("cannot send an echo request to {to}"))?;
        Ok(())
    }

    /// Sends an error of type and code, with `rest` after its checksum, about a packet of which `quote` is the start.
    pub fn error(&self, to: IpAddr, (kind, code): (u8, u8), rest: u32, quote: &[u8]) -> Result<()> {
        let mut message = [&[kind, code, 0, 0], rest.to_be_bytes().as_slice(), quote].concat();
        if self.family == Family::V4 {
            let sum = Sum16BitWords::new().add_slice(&message).ones_complement();
            message[2..4].copy_from_slice(&sum.to_ne_bytes());
        }
        self.socket
            .send_to(&message, &SocketAddr::new(to, 0).into())
            .with_context(|| format!("cannot send an ICMP error to {to}"))?;
        Ok(())
    }

    /// The next echo message, or `None` when `within` has passed.
    pub fn receive(&self, within: Duration) -> Result<Option<Echo>> {
        let deadline = Instant::now() + within;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 65_600];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left)).context("cannot set a deadline")?;
            let (len, from) = match socket::retry(|| self.socket.recv_from(&mut buffer)) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("cannot receive ICMP"),
            };
            // SAFETY: the kernel has written the first `len` bytes.
            let bytes = unsafe { buffer[..len].assume_init_ref() };
            let from = from.as_socket().context("a message from nowhere")?.ip();
            if let Some(echo) = parse(self.family, from, bytes) {
                return Ok(Some(echo));
            }
        }
    }

    /// Waits for the message that `wanted` describes; others are passed over.
    pub fn expect(&self, what: &str, wanted: impl Fn(&Echo) -> bool) -> Result<Echo> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(echo) = self.receive(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&echo) {
                return Ok(echo);
            }
        }
        bail!("no {what} within {PATIENCE:?}")
    }
}

/// An echo message in what a raw socket delivers: IPv4 with the IP header, IPv6 without.
fn parse(family: Family, from: IpAddr, bytes: &[u8]) -> Option<Echo> {
    let message = match family {
        Family::V4 => bytes.get(usize::from(bytes.first()? & 0xf) * 4..)?,
        Family::V6 => bytes,
    };
    let (kind, header) = (*message.first()?, message.get(4..8)?);
    let is_request = match (family, kind) {
        (Family::V4, 8) | (Family::V6, 128) => true,
        (Family::V4, 0) | (Family::V6, 129) => false,
        _ => return None,
    };
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some(Echo { from, is_request, id: number(0), seq: number(2), payload: message.get(8..)?.to_vec() })
}

//! ICMP errors about masqueraded flows: they quote a packet of the flow, and are translated inside and outside.
//!
//! Path MTU discovery and traceroute from a pod to the world depend on it.

use datapath_ebpf::{
    DropReason, Forward, Ip, Port,
    maps::FlowKey,
    packet::{self, Family, address_difference, words},
};

use super::{
    Verdict, masquerade,
    rewrite::{self, End},
    skb::Skb,
    tables::{CONNTRACK, NAT},
    transport::Transport,
};

/// An ICMP error's own header.
const ICMP_HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;

/// The packet an ICMP error quotes.
struct Quote<F: Family> {
    header: F::Header,
    /// Where the quoted IP header starts.
    offset: u32,
    /// Where its transport header starts.
    transport: u32,
    src_port: Port,
    dst_port: Port,
    echo: bool,
}

impl<F: Family> Quote<F> {
    /// Reads the quoted headers. A quoted packet with IPv6 extension headers is not understood: its flow is not found.
    #[inline(always)]
    fn read(skb: Skb, transport: &Transport) -> Result<Self, DropReason> {
        let offset = transport.offset + ICMP_HEADER;
        let header = skb.load::<F::Header>(offset)?;
        if !F::is_valid(&header) {
            return Err(DropReason::Malformed);
        }
        let length = if F::V4 {
            // The quote of a later fragment has no ports.
            (skb.load::<u8>(offset)? & 0xf) as u32 * 4
        } else {
            size_of::<F::Header>() as u32
        };
        let inner = offset + length;
        let echo = F::protocol(&header) == F::ICMP;
        let [src_port, dst_port] = if echo {
            let id = skb.load::<Port>(inner + 4)?;
            [id, id]
        } else {
            skb.load::<[Port; 2]>(inner)?
        };
        Ok(Self { header, offset, transport: inner, src_port, dst_port, echo })
    }

    /// The flow of the answer to the quoted packet.
    #[inline(always)]
    fn answer(&self) -> FlowKey {
        FlowKey {
            src: F::dst(&self.header),
            dst: F::src(&self.header),
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: F::protocol(&self.header),
            reserved: [0; 3],
        }
    }

    /// Gives one end of the quoted packet another address and port, and keeps the ICMP checksum right. (The quoted
    /// transport checksum is left alone: it is about a packet of which most is missing, and nobody can check it.)
    #[inline(always)]
    fn rewrite(
        &self,
        skb: Skb,
        transport: &Transport,
        end: End,
        address: &Ip,
        port: Port,
    ) -> Result<(), DropReason> {
        let checksum = transport.offset + ICMP_CHECKSUM;
        let (old_port, at) = match (self.echo, end) {
            (true, _) => (self.src_port, 4),
            (false, End::Source) => (self.src_port, 0),
            (false, End::Destination) => (self.dst_port, 2),
        };
        if old_port != port {
            let word = |port: Port| u16::from_ne_bytes(port.bytes) as u64;
            skb.replace_in_checksum(checksum, word(old_port), word(port), 2)?;
            skb.store(self.transport + at, &port)?;
        }
        if F::V4 {
            // The quoted header's own checksum makes up for the address, so the ICMP checksum does not change.
            let mut header = self.header;
            match end {
                End::Source => F::set_src(&mut header, address),
                End::Destination => F::set_dst(&mut header, address),
            }
            return skb.store(self.offset, &header);
        }
        let (old, at) = match end {
            End::Source => (F::src(&self.header), 8),
            End::Destination => (F::dst(&self.header), 24),
        };
        skb.replace_in_checksum(checksum, 0, address_difference::<F>(&old, address) as u64, 0)?;
        skb.store(self.offset + at, &words(address))
    }
}

/// An error from the world about a packet that a pod (or the host) sent out masqueraded.
#[inline(never)]
pub fn inbound<F: Family>(skb: Skb, header: &F::Header, transport: &Transport) -> Verdict {
    let Ok(quote) = Quote::<F>::read(skb, transport) else { return Ok(Forward::Stack) };
    // SAFETY: copied at once.
    let Some(reverse) = (unsafe { NAT.get(&quote.answer()) }) else { return Ok(Forward::Stack) };
    let (owner, port) = (reverse.address, reverse.port);
    quote.rewrite(skb, transport, End::Source, &owner, port)?;
    outside::<F>(skb, transport, End::Destination, &F::dst(header), &owner)?;
    masquerade::to_owner::<F>(skb, header, &owner, Forward::RelatedError)
}

/// An error of a pod's about a packet from the world.
#[inline(never)]
pub fn outbound<F: Family>(skb: Skb, header: &F::Header, transport: &Transport) -> Verdict {
    let quote = Quote::<F>::read(skb, transport)?;
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { CONNTRACK.get(&quote.answer()) }) else { return Ok(Forward::World) };
    let (address, port) = (flow.nat_address, flow.nat_port);
    if address.is_unspecified() {
        return Ok(Forward::World);
    }
    quote.rewrite(skb, transport, End::Destination, &address, port)?;
    outside::<F>(skb, transport, End::Source, &F::src(header), &address)?;
    Ok(Forward::RelatedError)
}

/// The error packet's own address.
#[inline(always)]
fn outside<F: Family>(skb: Skb, transport: &Transport, end: End, old: &Ip, new: &Ip) -> Result<(), DropReason> {
    debug_assert!(transport.protocol == packet::ICMP || transport.protocol == packet::ICMPV6);
    rewrite::pseudo_header::<F>(skb, transport, old, new)?;
    rewrite::address::<F>(skb, end, new)
}

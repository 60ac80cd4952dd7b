//! Frames of events.

use datapath_ebpf::Ip;

use super::{
    event::{Content, ERRORS, Quirk},
    packet::{ICMP, ICMPV6, SCTP, TCP, UDP},
    sums::{field, pseudo_header, set_word, sum, word},
};
use crate::frames::ETHERNET;

/// An address and its port or identifier.
pub type Place = (Ip, u16);

/// Where sequence numbers start: one end's are about to wrap, the other's about to change their sign.
const STARTS: [u32; 2] = [0xffff_fffe, 0x7fff_fffe];

/// An IP packet between two places. `from_owner` says whose sequence numbers are whose.
pub struct Plan<'a> {
    pub v4: bool,
    pub src: Place,
    pub dst: Place,
    pub from_owner: bool,
    pub content: &'a Content,
    pub quirks: &'a [Quirk],
    /// The quoted packet of an error.
    pub quote: Vec<u8>,
}

/// What an ICMP error quotes of a packet: its headers and so many bytes of what follows them.
pub fn quote(plan: &Plan<'_>, payload: usize) -> Vec<u8> {
    let mut bytes = packet(plan);
    let headers = with_header(plan, 0, &[]).len();
    bytes.truncate(headers + payload);
    bytes
}

/// The IP packet.
pub fn packet(plan: &Plan<'_>) -> Vec<u8> {
    let (protocol, mut transport, sum_at) = transport(plan);
    if let Some(at) = sum_at {
        let pseudo = if protocol == ICMP {
            0
        } else {
            pseudo_header(&plan.src.0.bytes, &plan.dst.0.bytes, protocol, transport.len())
        };
        // The mapped form of an IPv4 address adds only ones, twice.
        let right = field(sum(&transport) + pseudo);
        set_word(&mut transport, at, if protocol == UDP && right == 0 { 0xffff } else { right });
    }
    for quirk in plan.quirks {
        match (quirk, sum_at) {
            (Quirk::TransportSum, Some(at)) if word(&transport, at) != 0 => {
                // Neither right nor none.
                let wrong = 1 + word(&transport, at) % 0xfff0;
                set_word(&mut transport, at, wrong);
            }
            (Quirk::DataOffset(words), _) if protocol == TCP => transport[12] = words << 4,
            (Quirk::UdpLength(by), _) if protocol == UDP => {
                let length = word(&transport, 4).wrapping_add_signed((*by).into());
                set_word(&mut transport, 4, length);
            }
            _ => {}
        }
    }
    let mut bytes = with_header(plan, protocol, &transport);
    for quirk in plan.quirks {
        match quirk {
            Quirk::Cut(count) => {
                // The kernel runs no program on less than an IP header.
                let shortest = if plan.v4 { 20 } else { 40 };
                bytes.truncate(shortest.max(bytes.len().saturating_sub(usize::from(*count))));
            }
            Quirk::Padding(count) => bytes.resize(bytes.len() + usize::from(*count), 0xee),
            _ => {}
        }
    }
    bytes
}

/// Turns the bits of a frame that its quirks name.
pub fn flip(frame: &mut [u8], v4: bool, quirks: &[Quirk]) {
    for quirk in quirks {
        let Quirk::Flip { bit, repaired } = quirk else { continue };
        let at = usize::from(*bit) % (frame.len() * 8);
        frame[at / 8] ^= 1 << (at % 8);
        let header = ETHERNET..ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
        if *repaired && v4 && header.len() >= 20 && header.end <= frame.len() {
            set_word(frame, ETHERNET + 10, 0);
            let right = field(sum(&frame[header]));
            set_word(frame, ETHERNET + 10, right);
        }
    }
}

/// Protocol, transport header with payload, and where its checksum goes.
fn transport(plan: &Plan<'_>) -> (u8, Vec<u8>, Option<usize>) {
    let [a, b] = plan.src.1.to_be_bytes();
    let [c, d] = plan.dst.1.to_be_bytes();
    let data = |length: u8| (0..length).map(|n| n.wrapping_mul(37) ^ 0x5a).collect::<Vec<u8>>();
    let icmp = if plan.v4 { ICMP } else { ICMPV6 };
    match plan.content {
        Content::Tcp { flags, seq, ack, length } => {
            let [mine, other] = if plan.from_owner { STARTS } else { [STARTS[1], STARTS[0]] };
            let number = |start: u32, offset: u8| start.wrapping_add(offset.into()).to_be_bytes();
            let header = [&[a, b, c, d], &number(mine, *seq)[..], &number(other, *ack)].concat();
            (TCP, [header, vec![0x50, *flags, 16, 0, 0, 0, 0, 0], data(*length)].concat(), Some(16))
        }
        Content::Udp { checksum, length } => {
            let header = vec![a, b, c, d, 0, 8 + length, 0, 0];
            (UDP, [header, data(*length)].concat(), checksum.then_some(6))
        }
        Content::Sctp => (SCTP, vec![a, b, c, d, 1, 2, 3, 4, 5, 6, 7, 8], None),
        Content::Echo { reply, length } => {
            let kind = match (plan.v4, reply) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            // The identifier stands for the owner's port, whichever way it goes.
            let [high, low] = if plan.from_owner { [a, b] } else { [c, d] };
            (icmp, [vec![kind, 0, 0, 0, high, low, 0, 1], data(*length)].concat(), Some(2))
        }
        Content::Error { kind, .. } => {
            let (number, code) = ERRORS[*kind][usize::from(!plan.v4)];
            (icmp, [&[number, code, 0, 0, 0, 0, 5, 0], plan.quote.as_slice()].concat(), Some(2))
        }
        Content::Other => (47, vec![0; 12], None),
    }
}

fn with_header(plan: &Plan<'_>, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut payload = transport;
    let (mut hops, mut extensions, mut fragment, mut length_error) = (64, 0, None, 0_i8);
    for quirk in plan.quirks {
        match quirk {
            Quirk::LastHop => hops = 1,
            Quirk::Extensions(count) => extensions = usize::from(*count),
            Quirk::Part { id, from, to } => {
                let at = |eighth: u8| (usize::from(eighth) * 8).min(transport.len() / 8 * 8);
                let end = if usize::from(*to) * 8 < transport.len() { at(*to) } else { transport.len() };
                payload = transport.get(at(*from)..end).unwrap_or(&[]);
                fragment = Some((*id, at(*from), end < transport.len()));
            }
            Quirk::Length(by) => length_error = *by,
            _ => {}
        }
    }
    if plan.v4 {
        return v4(plan, protocol, payload, (hops, extensions, fragment, length_error));
    }
    let (next, between) = v6_extensions(protocol, extensions, fragment);
    let length = ((between.len() + payload.len()) as u16).wrapping_add_signed(length_error.into());
    let [high, low] = length.to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, next, hops];
    [&header[..], &plan.src.0.bytes, &plan.dst.0.bytes, &between, payload].concat()
}

type Parts = (u8, usize, Option<(u8, usize, bool)>, i8);

fn v4(plan: &Plan<'_>, protocol: u8, payload: &[u8], (hops, options, fragment, error): Parts) -> Vec<u8> {
    let length = 20 + options * 4;
    let [high, low] = ((length + payload.len()) as u16).wrapping_add_signed(error.into()).to_be_bytes();
    let (id, start, more) = fragment.unwrap_or_default();
    let place = ((start / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes();
    let first = 0x40 | (length / 4) as u8;
    let mut header = vec![first, 0, high, low, 0x12, id, place[0], place[1], hops, protocol, 0, 0];
    header.extend(plan.src.0.v4());
    header.extend(plan.dst.0.v4());
    // No operation, all of them.
    header.resize(length, 1);
    let right = field(sum(&header));
    let wrong = plan.quirks.contains(&Quirk::HeaderSum);
    set_word(&mut header, 10, if wrong { right ^ 0x0110 } else { right });
    [header, payload.to_vec()].concat()
}

/// The first header's number, and the headers before the transport header.
fn v6_extensions(protocol: u8, count: usize, fragment: Option<(u8, usize, bool)>) -> (u8, Vec<u8>) {
    const KINDS: [u8; 5] = [0, 60, 43, 60, 60];
    let mut numbers: Vec<u8> = KINDS[..count.min(KINDS.len())].to_vec();
    numbers.extend(fragment.map(|_| 44));
    numbers.push(protocol);
    let mut bytes = Vec::new();
    for pair in numbers.windows(2) {
        bytes.push(pair[1]);
        match (pair[0], fragment) {
            (44, Some((id, start, more))) => {
                let place = (start as u16 | u16::from(more)).to_be_bytes();
                bytes.extend([0, place[0], place[1], 0, 0, 0x12, id]);
            }
            // A routing header of an experimental kind with no segment left.
            (43, _) => bytes.extend([0, 253, 0, 0, 0, 0, 0]),
            // Four bytes of padding as the only option.
            _ => bytes.extend([0, 1, 4, 0, 0, 0, 0]),
        }
    }
    (numbers[0], bytes)
}

//! ICMP errors: those about translated flows, in both directions, and the node's own.

use datapath_ebpf::{DropReason, Forward, Ip};

use super::{
    packet::{self, Header, ICMP, ICMPV6, Kind, Packet, SCTP, TCP, UDP},
    rewrite::{self, Side},
    rules::Rules,
    sums::{field, pseudo_header, set_word, sum},
    translation::{Model, Verdict, key},
};
use crate::frames::ETHERNET;

/// The packet that an error quotes, as far as it is there.
struct Quote {
    header: Header,
    ports: (u16, u16),
}

/// Who sends an error: it decides which echo messages of a flow it can be about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Owner,
    World,
}

/// Reads a quote; `None` when it does not say what flow it is about, or was not sent by who gets the error.
fn quote(frame: &[u8], error: &Header, sender: Sender) -> Option<Quote> {
    let quoted = &frame[..error.end];
    let header = packet::fixed(quoted, error.v4, error.transport + 8).ok()?;
    let header = packet::locate(quoted, header).ok()?;
    if error.fragment.is_some() || header.is_later_fragment() || header.src != error.dst {
        return None;
    }
    if sender == Sender::Owner && header.dst != error.src {
        return None;
    }
    let number = |at: usize| Some(u16::from_be_bytes(quoted.get(at..at + 2)?.try_into().unwrap()));
    let at = header.transport;
    let ports = match header.protocol {
        TCP | UDP | SCTP => (number(at)?, number(at + 2)?),
        protocol if protocol == if header.v4 { ICMP } else { ICMPV6 } => {
            let translated = match (header.v4, sender) {
                (true, Sender::Owner) => 0,
                (true, Sender::World) => 8,
                (false, Sender::Owner) => 129,
                (false, Sender::World) => 128,
            };
            if *quoted.get(at)? != translated {
                return None;
            }
            (number(at + 4)?, number(at + 4)?)
        }
        _ => return None,
    };
    Some(Quote { header, ports })
}

/// From the world about what a pod or the host has sent.
pub fn inbound(model: &mut Model, frame: &[u8], error: &Packet) -> Verdict {
    let untouched = Ok((Forward::Stack, frame.to_vec()));
    let Some(quote) = quote(frame, &error.header, Sender::World) else { return untouched };
    let about = key(quote.header.src, quote.header.dst, quote.ports, quote.header.protocol);
    let Some(back) = model.nat.get(&about.reversed()) else { return untouched };
    let (owner, port) = (back.address, back.port);
    model.to_owner(frame, owner, Forward::RelatedError, |frame| {
        translate(&model.rules, frame, &error.header, &quote.header, Side::Source, (owner, port));
    })
}

/// From a pod about what it has received from the world.
pub fn outbound(model: &Model, frame: &[u8], error: &Packet) -> Verdict {
    if error.header.fragment.is_some() {
        return Err(DropReason::UnknownProtocol.into());
    }
    owners(model, frame, error).ok_or(DropReason::RelatedUnknown.into())
}

/// From the host itself about what it has received from the world.
pub fn hosts(model: &Model, frame: &[u8], error: &Packet) -> Verdict {
    let translated = owners(model, frame, error).filter(|(forward, _)| *forward == Forward::RelatedError);
    Ok(translated.unwrap_or((Forward::Stack, frame.to_vec())))
}

/// From the owner of a flow, which may be one that is not translated; `None` if it is about no flow known.
fn owners(model: &Model, frame: &[u8], error: &Packet) -> Option<(Forward, Vec<u8>)> {
    let quote = quote(frame, &error.header, Sender::Owner)?;
    let about = key(quote.header.src, quote.header.dst, quote.ports, quote.header.protocol);
    let flow = model.conntrack.get(&about.reversed())?;
    let mut frame = frame.to_vec();
    let Some(nat) = flow.nat.filter(|nat| *nat != (quote.header.dst, quote.ports.1)) else {
        return Some((Forward::World, frame));
    };
    translate(&model.rules, &mut frame, &error.header, &quote.header, Side::Destination, nat);
    Some((Forward::RelatedError, frame))
}

/// Replaces one end of the quoted packet, and the other end of the error itself by the same address.
fn translate(
    rules: &Rules,
    frame: &mut [u8],
    error: &Header,
    quote: &Header,
    inside: Side,
    (address, port): (Ip, u16),
) {
    let body = error.transport..error.end;
    let before = frame[body.clone()].to_vec();
    let mut quoted = frame[..error.end].to_vec();
    let sum_at = quote.checksum();
    let kept = sum_at.and_then(|at| quoted.get(at..at + 2).map(<[u8]>::to_vec));
    rewrite::end(rules, &mut quoted, quote, inside, address, port);
    let end = end_of_quote(frame, error);
    if let (Some(at), Some(kept)) = (sum_at, kept)
        && (!rules.quoted_sums_follow || at + 2 > end)
    {
        quoted[at..at + 2].copy_from_slice(&kept);
    }
    frame[..quoted.len()].copy_from_slice(&quoted);
    let after = frame[body].to_vec();
    rewrite::cover(rules, frame, error, &before, &after);
    let outside = if inside == Side::Source { Side::Destination } else { Side::Source };
    let (old, new) = rewrite::address(frame, error, outside, address);
    if error.protocol == ICMPV6 {
        rewrite::cover(rules, frame, error, &old, &new);
    }
}

/// Where the quote ends as far as its checksum goes: with the error, or where extensions start (RFC 4884).
fn end_of_quote(frame: &[u8], error: &Header) -> usize {
    let icmp = &frame[error.transport..];
    let length = match (error.v4, icmp[0]) {
        (true, 3 | 11 | 12) => usize::from(icmp[5]) * 4,
        (false, 1 | 3) => usize::from(icmp[4]) * 8,
        _ => 0,
    };
    if length == 0 { error.end } else { error.end.min(error.transport + 8 + length) }
}

/// The node's answer to a packet with no hops left, if there may be one.
pub fn time_exceeded(rules: &Rules, node: Ip, v4: bool, frame: &[u8]) -> Option<Vec<u8>> {
    let packet = packet::read(rules, frame, v4).ok()?;
    if matches!(packet.kind, Kind::Error | Kind::LaterFragment) {
        return None;
    }
    let fixed = if v4 { 20 } else { 40 };
    let quoted = fixed + if packet.header.next == TCP { 20 } else { 8 };
    let quote = frame.get(ETHERNET..ETHERNET + quoted)?;
    let icmp = [&[if v4 { 11 } else { 3 }, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    Some(from_node(node, frame, &packet.header, icmp))
}

fn from_node(node: Ip, frame: &[u8], about: &Header, mut icmp: Vec<u8>) -> Vec<u8> {
    let mut answer = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    let length = icmp.len();
    if about.v4 {
        let [high, low] = ((20 + length) as u16).to_be_bytes();
        let mut ip =
            [&[0x45, 0xc0, high, low, 0, 0, 0, 0, 64, ICMP, 0, 0], &node.v4()[..], &about.src.v4()].concat();
        let right = field(sum(&ip));
        set_word(&mut ip, 10, right);
        let right = field(sum(&icmp));
        set_word(&mut icmp, 2, right);
        answer.extend(ip);
    } else {
        let [high, low] = (length as u16).to_be_bytes();
        answer.extend([0x60, 0, 0, 0, high, low, ICMPV6, 64]);
        answer.extend(node.bytes);
        answer.extend(about.src.bytes);
        let right = field(sum(&icmp) + pseudo_header(&node.bytes, &about.src.bytes, ICMPV6, length));
        set_word(&mut icmp, 2, right);
    }
    answer.extend(icmp);
    answer
}

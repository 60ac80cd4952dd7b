//! Telling about drops.

use datapath_ebpf::{
    DropReason, Ip, Port, Program,
    event::{BUDGET, Event, Told, WINDOW_SHIFT},
    outcome::OUTCOMES,
    packet::{self, ETHERNET_LEN, Family, V4, V6},
};

use super::{
    clock,
    skb::{self, Skb},
    tables::{EVENT_STATS, EVENTS},
};

/// Tells about a drop, if the budget allows. Not inlined: drops pay for it, what is forwarded does not.
#[inline(never)]
pub fn dropped(skb: Skb, program: Program, reason: DropReason) {
    let Some(told) = EVENT_STATS.get_ptr_mut(reason as u32 & (OUTCOMES as u32 - 1)) else { return };
    // SAFETY: the slot is this CPU's own, and TC programs do not interrupt each other on one CPU.
    let told = unsafe { &mut *told };
    if !may_tell(told) {
        told.suppressed = told.suppressed.wrapping_add(1);
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        told.lost = told.lost.wrapping_add(1);
        return;
    };
    let event = entry.write(Event {
        time: clock::nanoseconds(),
        src: Ip::UNSPECIFIED,
        dst: Ip::UNSPECIFIED,
        ifindex: skb.ifindex(),
        length: skb.len(),
        src_port: Port::new(0),
        dst_port: Port::new(0),
        ether_type: u16::from_be(skb.protocol() as u16),
        program: program as u8,
        reason: reason as u8,
        protocol: 0,
        reserved: [0; 7],
    });
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => addresses::<V4>(skb, event),
        skb::PROTOCOL_IPV6 => addresses::<V6>(skb, event),
        _ => {}
    }
    entry.submit(0);
}

/// Takes one from the window's budget.
#[inline(always)]
fn may_tell(told: &mut Told) -> bool {
    let window = clock::ticks() >> WINDOW_SHIFT;
    if told.window != window {
        (told.window, told.used) = (window, 0);
    }
    told.used = told.used.saturating_add(1);
    told.used <= BUDGET
}

/// What can be read of the headers; they may be what is wrong with the packet.
#[inline(always)]
fn addresses<F: Family>(skb: Skb, event: &mut Event) {
    let Ok(header) = skb.load::<F::Header>(ETHERNET_LEN as u32) else { return };
    if !F::is_valid(&header) {
        return;
    }
    (event.src, event.dst, event.protocol) = (F::src(&header), F::dst(&header), F::protocol(&header));
    let (_, fragment) = F::fragmentation(&header);
    let is_later = F::V4 && u16::from_be_bytes(fragment) & 0x1fff != 0;
    if !is_later && matches!(event.protocol, packet::TCP | packet::UDP | packet::SCTP) {
        let offset = (ETHERNET_LEN + F::length(&header)) as u32;
        if let Ok([src, dst]) = skb.load::<[Port; 2]>(offset) {
            (event.src_port, event.dst_port) = (src, dst);
        }
    }
}

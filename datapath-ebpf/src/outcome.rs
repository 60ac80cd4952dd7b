//! What became of a packet: every way a program can end, numbered for the counters.

/// The programs, in the order of a packet's way.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Program {
    /// Host end of a pod's veth, ingress: what the pod sends.
    FromPod = 0,
    /// Host end of a pod's veth, egress: what the host's stack sends to the pod.
    ToPod = 1,
    /// Uplink, ingress.
    FromUplink = 2,
    /// Uplink, egress.
    ToUplink = 3,
    /// VXLAN device, ingress.
    FromOverlay = 4,
}

/// Slots per program in `counters`.
pub const OUTCOMES: usize = 64;
/// Slots of `counters`: room for eight programs.
pub const COUNTERS: usize = OUTCOMES * 8;
/// The first drop reason's number; below are the ways forward.
pub const FIRST_DROP: u8 = 24;

macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $number:literal => $text:literal,)+ }) => {
        $(#[$attr])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl $name {
            /// Every variant, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name that metrics, tables and JSON use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it means, in one line.
            #[cfg(not(target_arch = "bpf"))]
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

numbered! {
    /// The ways a packet goes on.
    Forward {
        /// Handed to the host's stack.
        Stack = 0 => "stack",
        /// Delivered to a pod on this node.
        Pod = 1 => "pod",
        /// Sent to another node over the underlay.
        Node = 2 => "node",
        /// Sent to another node through the overlay.
        Overlay = 3 => "overlay",
        /// Sent out of an uplink as it is.
        World = 4 => "world",
        /// Sent out of an uplink with the node's address.
        Masquerade = 5 => "masquerade",
        /// A reply translated back and delivered to a pod.
        Unmasquerade = 6 => "unmasquerade",
        /// Answered with an ICMP time exceeded.
        TimeExceeded = 7 => "time-exceeded",
        /// Answered with an ICMP fragmentation needed or packet too big.
        TooBig = 8 => "too-big",
        /// Already handled by an earlier program: passed on unseen.
        Handled = 9 => "handled",
        /// An ICMP error about a masqueraded flow, translated inside and outside.
        RelatedError = 10 => "related-error",
        /// A later fragment that came before its first: kept, and let in again once that one has come.
        Held = 11 => "held",
        /// Sent to a host port, translated and delivered to the pod that has it.
        HostPort = 12 => "host-port",
        /// A pod's answer to what came through its host port, with that as its source.
        HostPortReply = 13 => "host-port-reply",
    }
}

numbered! {
    /// Why a packet was dropped. The numbers start at [`FIRST_DROP`] and are never reused.
    DropReason {
        /// The source address is not the pod's own.
        SourceAddress = 24 => "source-address",
        /// The source MAC is not the pod's own.
        SourceMac = 25 => "source-mac",
        /// Headers are cut short or contradict each other.
        Malformed = 26 => "malformed",
        /// Neither IPv4 nor IPv6 (a pod needs no ARP: its gateway's neighbour entry is permanent).
        EtherType = 27 => "ether-type",
        /// Multicast, broadcast or link-local: not forwarded between pods.
        LinkLocal = 28 => "link-local",
        /// The destination is in this node's pod range but no pod has it.
        NoEndpoint = 29 => "no-endpoint",
        /// TTL or hop limit ran out and no ICMP error could be sent.
        Ttl = 31 => "ttl",
        /// Larger than the path allows and no ICMP error could be sent.
        MtuExceeded = 32 => "mtu-exceeded",
        /// The uplink has no address of this family to masquerade with.
        NoMasqueradeAddress = 33 => "no-masquerade-address",
        /// No free masquerade port towards this destination.
        PortsExhausted = 34 => "ports-exhausted",
        /// The conntrack or nat map is full.
        ConntrackFull = 35 => "conntrack-full",
        /// A protocol that cannot be masqueraded.
        UnknownProtocol = 36 => "unknown-protocol",
        /// A later fragment whose first fragment was not seen, and that could not be kept.
        FragmentUnknown = 37 => "fragment-unknown",
        /// A helper refused to change the packet.
        Rewrite = 38 => "rewrite",
        /// The packet is for a pod's interface but not for the pod's address.
        NotThisEndpoint = 39 => "not-this-endpoint",
        /// IPv6 extension headers longer than the programs walk.
        ExtensionHeaders = 40 => "extension-headers",
        /// The tunnel's key could not be set.
        TunnelKey = 41 => "tunnel-key",
        /// A fragment that overlaps another of its datagram, repeats it or contradicts it.
        FragmentOverlap = 42 => "fragment-overlap",
        /// A pod's ICMP error that is not about a packet of any flow known of.
        RelatedUnknown = 43 => "related-unknown",
        /// Sent to a host port from an address and port that already talk to the same port of the pod in another way.
        HostPortClash = 44 => "host-port-clash",
    }
}

/// How a program ends: one readable match turns it into a verdict and a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The packet goes on.
    Forward(Forward),
    /// The packet is dropped.
    Drop(DropReason),
}

impl Outcome {
    /// The outcome's number within its program.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        match self {
            Self::Forward(forward) => forward as u8,
            Self::Drop(reason) => reason as u8,
        }
    }
}

/// The slot in `counters` of a program's outcome.
#[inline(always)]
pub const fn counter_index(program: Program, number: u8) -> u32 {
    (program as u32) * OUTCOMES as u32 + (number as u32 & (OUTCOMES as u32 - 1))
}

impl Program {
    /// Every program, in the order of the numbers.
    pub const ALL: &'static [Self] =
        &[Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink, Self::FromOverlay];

    /// The program's name in the object, in bpftool and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::FromOverlay => "from_overlay",
        }
    }
}

const _: () =
    assert!(Forward::ALL.len() <= FIRST_DROP as usize, "ways forward must stay below the drop reasons");
const _: () =
    assert!(FIRST_DROP as usize + DropReason::ALL.len() <= OUTCOMES, "outcomes must fit their slots");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_its_own_slot_and_name() {
        let outcomes = || {
            Forward::ALL
                .iter()
                .map(|&f| (Outcome::Forward(f), f.name()))
                .chain(DropReason::ALL.iter().map(|&d| (Outcome::Drop(d), d.name())))
        };
        let names: BTreeSet<_> = outcomes().map(|(_, name)| name).collect();
        let slots: BTreeSet<_> = Program::ALL
            .iter()
            .flat_map(|&p| outcomes().map(move |(o, _)| counter_index(p, o.number())))
            .collect();
        assert_eq!(names.len(), outcomes().count());
        assert_eq!(slots.len(), outcomes().count() * Program::ALL.len());
        assert!(slots.iter().all(|&slot| (slot as usize) < COUNTERS));
    }
}

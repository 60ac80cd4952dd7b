//! What the programs tell about single packets: the records of the ring buffer `events`.
//!
//! Every drop is counted ([`crate::outcome`]); some are told about too. How many is limited per second, reason and CPU, so that a flood of one
//! kind neither costs much nor hides the others, and what is not told is counted: nothing is silently missing.

use crate::{Ip, Port, maps::pod};

/// Bytes of the ring: a power of two, and about 4,000 events.
pub const EVENTS_BYTES: usize = 256 * 1024;
/// Events per [window](WINDOW_SHIFT), reason and CPU.
pub const BUDGET: u32 = 64;
/// Binary logarithm of the ticks of a window: 1.07 s.
pub const WINDOW_SHIFT: u32 = 10;

/// `events`: a packet was dropped. Addresses and ports are the packet's as it was when it was dropped.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of `CLOCK_MONOTONIC`, a few milliseconds off.
    pub time: u64,
    /// Source address; `::` when the packet has no IP header that could be read.
    pub src: Ip,
    /// Destination address; as above.
    pub dst: Ip,
    /// The device the program saw it on.
    pub ifindex: u32,
    /// Bytes, Ethernet header included.
    pub length: u32,
    /// Source port; 0 where there is none, or not in this fragment.
    pub src_port: Port,
    /// Destination port; as above.
    pub dst_port: Port,
    /// EtherType, as a number.
    pub ether_type: u16,
    /// [`crate::Program`] as its number.
    pub program: u8,
    /// [`crate::DropReason`] as its number.
    pub reason: u8,
    /// IP protocol number, in IPv6 perhaps an extension header's; 0 when it could not be read.
    pub protocol: u8,
    /// Keeps the size a multiple of eight without padding; always 0.
    pub reserved: [u8; 7],
}
pod!(Event);

/// `event_stats`: one per outcome and CPU: what of a reason was told, and what not.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The window that `used` counts for.
    pub window: u32,
    /// Events told in it.
    pub used: u32,
    /// Events not told because there were more than [`BUDGET`] in a window.
    pub suppressed: u64,
    /// Events not told because the ring was full: nobody reads it, or not fast enough.
    pub lost: u64,
}
pod!(Told);

//! The maps about fragmented datagrams: `fragments` and `held`.

use super::pod;
use crate::Ip;

/// Fragmented datagrams under way through masquerade.
pub const FRAGMENTS_MAX: usize = 2_048;

/// `fragments`, `held`: key of a fragmented datagram under way through masquerade.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Source address before translation.
    pub src: Ip,
    /// Destination address before translation.
    pub dst: Ip,
    /// The identification field: bytes as on the wire, an IPv4 one in the first two.
    pub id: [u8; 4],
    /// The device of the pod that sends the datagram, so that nothing is left to the next pod of its address; 0 for what
    /// comes from the world.
    pub ifindex: u32,
    /// IPv4: the protocol's number. IPv6: 0, since only the first fragment's says what the datagram is (RFC 8200, section 4.5).
    pub protocol: u8,
    /// Keeps the size a multiple of four without padding; always 0.
    pub reserved: [u8; 3],
}
pod!(FragmentKey);

/// Words of [`Fragment::seen`]: a bit for each eight bytes of the largest datagram.
pub const FRAGMENT_WORDS: usize = 8_192 / 64;

/// `fragments`: a datagram whose first fragment has passed. Lengths and places count in units of eight bytes of what follows the
/// IP header (in IPv6, the fragment header).
#[repr(C)]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy)]
pub struct Fragment {
    /// The translated address: source on the way out, destination on the way in.
    pub address: Ip,
    /// The device of the pod that sends or gets the datagram.
    pub ifindex: u32,
    /// When the first fragment came, in [ticks](crate::flow::ticks).
    pub created: u32,
    /// How many units have passed.
    pub units: u64,
    /// The end of the furthest fragment so far.
    pub end: u16,
    /// The datagram's length, 0 until its last fragment has been seen.
    pub total: u16,
    /// [`Fragment::POISONED`] or 0.
    pub flags: u32,
    /// Which units have passed.
    pub seen: [u64; FRAGMENT_WORDS],
}
pod!(Fragment);

impl Fragment {
    /// Fragments of the datagram overlap or contradict each other: no more of it is let through.
    pub const POISONED: u32 = 1;
    /// For how long fragments belong together, in seconds: as long as Linux waits for the missing ones.
    pub const LIFETIME: u32 = 30;
}

/// Bytes of a frame that `held` has room for: a jumbo frame of 9,000 bytes of MTU, with its Ethernet header.
pub const HELD_BYTES: usize = 9_216;
/// Slots of `held` for what pods send, and again as many for what comes from the world; a power of two. A datagram of 64 kB in
/// frames of 1,500 bytes has 45 fragments.
pub const HELD_PER_SIDE: usize = 64;
/// Slots of `held`.
pub const HELD_MAX: usize = 2 * HELD_PER_SIDE;

/// `held`: a fragment that has come before the first one of its datagram.
#[repr(C)]
#[cfg_attr(not(target_arch = "bpf"), derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable))]
#[derive(Clone, Copy)]
pub struct Held {
    /// Who may touch the slot: a number that grows with each use, times four, plus [`Held::FREE`], [`Held::FULL`] or
    /// [`Held::BUSY`].
    pub state: u64,
    /// The datagram.
    pub key: FragmentKey,
    /// When the fragment came, in [ticks](crate::flow::ticks).
    pub created: u32,
    /// The device it came in by.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// The frame as it came.
    pub frame: [u8; HELD_BYTES],
}
pod!(Held);

impl Held {
    /// Nothing in it.
    pub const FREE: u64 = 0;
    /// A fragment is in it.
    pub const FULL: u64 = 1;
    /// Somebody is writing or reading it.
    pub const BUSY: u64 = 2;
    /// The bits of [`Held::state`] that say which of these it is.
    pub const STATE: u64 = 3;
}

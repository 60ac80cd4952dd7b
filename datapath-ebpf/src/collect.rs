//! What the agent asks of the program `collect`, and what that answers.
//!
//! The program is never attached: the agent runs it by `BPF_PROG_TEST_RUN`. The request travels as the arguments of the
//! tracepoint that it pretends to be, the answer in the single entry of the map `collection`.

use crate::{
    Ip, Port,
    flow::{Class, TIMEOUTS},
    maps::pod,
};

/// Arguments of a run, by place.
#[repr(usize)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// The time of the run, in [ticks](crate::flow::ticks).
    Now = 0,
    /// [`OWNERS`], [`AUDIT`], [`EVICT`].
    Mode = 1,
    /// How many flows are ended at most; then the walk ends, too.
    Quota = 2,
    /// Eviction: the classes, as a bit each.
    Classes = 3,
    /// Eviction: how long a flow must have been idle, in ticks.
    Idle = 4,
    /// Eviction: the remote end, [`Remote`]'s words; all zero for any.
    Remote = 5,
}

/// Flows whose owner is no endpoint any more, or whose masquerade address is not the node's any more, have ended.
pub const OWNERS: u64 = 1;
/// Halves of flows are looked for, and pools that nobody has searched for long.
pub const AUDIT: u64 = 2;
/// No regular collection: flows are ended to make room.
pub const EVICT: u64 = 4;

/// A remote end as the arguments have it: two words of address, one of port and protocol.
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// Its address.
    pub address: Ip,
    /// Its port; 0 where there is none.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
}

impl Remote {
    /// As arguments.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 3] {
        let [a, b, c, d] = self.address.words();
        let tail = self.port.get() as u64 | (self.protocol as u64) << 16;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32, tail]
    }
}

/// Why a flow was ended.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// No packet for longer than its class allows.
    Idle = 0,
    /// Its pod is gone, or its address no longer the host's.
    Owner = 1,
    /// Its masquerade address is no longer the node's.
    Address = 2,
    /// Evicted to make room.
    Evicted = 3,
    /// Its way back was missing.
    Half = 4,
}

/// Rows of [`Collection::ended`]: a power of two, so that an index can be masked.
pub const CAUSES: usize = 8;

impl Cause {
    /// Every cause, in the order of the numbers.
    pub const ALL: [Self; 5] = [Self::Idle, Self::Owner, Self::Address, Self::Evicted, Self::Half];

    /// The name that metrics and logs use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Owner => "owner-gone",
            Self::Address => "address-gone",
            Self::Evicted => "evicted",
            Self::Half => "half",
        }
    }
}

/// `collection`: what a run found. The agent writes [`Collection::limits`] and zeroes before each.
#[repr(C)]
#[cfg_attr(
    not(target_arch = "bpf"),
    derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Collection {
    /// How long flows of each class may be idle, in ticks; the agent has scaled it if there is pressure.
    pub limits: [u32; TIMEOUTS],
    /// Flows looked at.
    pub seen: u64,
    /// Flows that stay, by class; only after a regular collection that came to its end.
    pub entries: [u64; TIMEOUTS],
    /// How many of them are translated, and so have a way back.
    pub translated: u64,
    /// Flows ended, by [`Cause`] and class.
    pub ended: [[u64; TIMEOUTS]; CAUSES],
    /// Ways back removed that belonged to no flow.
    pub orphans: u64,
    /// Pools removed that nobody had searched for long.
    pub pools: u64,
    /// Traces of fragmented datagrams removed whose owner is gone.
    pub fragments: u64,
}
pod!(Collection);

impl Collection {
    /// Flows that stay.
    pub fn kept(&self) -> u64 {
        self.entries.iter().sum()
    }

    /// Flows ended for this cause.
    pub fn ended_by(&self, cause: Cause) -> u64 {
        self.ended[cause as usize].iter().sum()
    }

    /// Flows ended altogether.
    pub fn removed(&self) -> u64 {
        self.ended.iter().flatten().sum()
    }

    /// Flows without a way back and ways back without a flow.
    pub fn halves(&self) -> u64 {
        self.orphans + self.ended_by(Cause::Half)
    }

    /// Adds what an earlier part of the same collection has removed.
    pub fn add_removed(&mut self, earlier: &Self) {
        for (row, earlier) in self.ended.iter_mut().zip(&earlier.ended) {
            row.iter_mut().zip(earlier).for_each(|(all, earlier)| *all += earlier);
        }
    }

    /// How many flows of each class were ended, cause by cause.
    pub fn endings(&self) -> impl Iterator<Item = (Cause, Class, u64)> + '_ {
        Cause::ALL.into_iter().flat_map(move |cause| {
            Class::ALL
                .into_iter()
                .map(move |class| (cause, class, self.ended[cause as usize][class as usize]))
        })
    }
}

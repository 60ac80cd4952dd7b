//! Making room in an emergency: a packet was dropped because there was no room for its flow, or no port.
//!
//! Only flows that are not assured are ended: closed ones first, then those that were never answered, and of these the ones that
//! have been idle for longer first. So established connections survive a flood, whatever its size, and what the flood has opened makes
//! room for others a second later.

use datapath_ebpf::{
    collect::{Collection, Remote},
    flow::{Class, ticks_of_seconds},
    maps::MASQUERADE_PORTS,
};

use super::{Datapath, DatapathError, Eviction, Sweep, now};

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// `conntrack` or `nat` is full.
    Room,
    /// All ports towards this remote end are taken.
    Ports(Remote),
}

/// One part in so many is to be free afterwards.
const SHARE: u64 = 10;
/// Who has to go, in this order: classes, and how many seconds they have been idle.
const RUNGS: [(&[Class], u32); 4] = [
    (&[Class::TcpClosing], 1),
    (&[Class::TcpOpening, Class::UdpNew, Class::IcmpEcho], 10),
    (&[Class::TcpOpening, Class::UdpNew, Class::IcmpEcho], 3),
    (&[Class::TcpOpening, Class::UdpNew, Class::IcmpEcho], 1),
];

impl Datapath {
    /// Ends flows until there is room again, or nothing is left that may be ended. Returns what each walk found.
    pub fn make_room(&mut self, shortage: Shortage) -> Result<Vec<Collection>, DatapathError> {
        // What has ended anyway makes room first, and how many there are is known afterwards.
        let mut walks = vec![self.collect(Sweep::Idle, now())?];
        let (flows, max) = self.occupancy();
        let (mut wanted, remote) = match shortage {
            Shortage::Room => ((flows + u64::from(max) / SHARE).saturating_sub(max.into()), None),
            Shortage::Ports(remote) => (u64::from(MASQUERADE_PORTS) / SHARE, Some(remote)),
        };
        for (classes, seconds) in RUNGS {
            if wanted == 0 {
                break;
            }
            let idle = ticks_of_seconds(seconds);
            let found = self.evict(&Eviction { quota: wanted, classes: classes.to_vec(), idle, remote })?;
            wanted = wanted.saturating_sub(found.removed());
            walks.push(found);
        }
        Ok(walks)
    }
}

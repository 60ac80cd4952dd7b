//! What the programs tell about packets they dropped, out of the ring buffer `events`.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use datapath_ebpf::{
    DropReason, Program,
    collect::Remote,
    event::Event,
    flow::{elapsed, is_echo, ticks},
};
use zerocopy::FromBytes as _;

use super::{DatapathError, collect::now};

/// A packet that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The program that dropped it.
    pub program: Program,
    /// Why.
    pub reason: DropReason,
    /// The whole record.
    pub event: Event,
}

impl Dropped {
    /// A record of the ring; `None` for one that another version's programs have written.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (event, _) = Event::read_from_prefix(bytes).ok()?;
        let program = Program::ALL.iter().find(|&&program| program as u8 == event.program)?;
        let reason = DropReason::ALL.iter().find(|&&reason| reason as u8 == event.reason)?;
        Some(Self { program: *program, reason: *reason, event })
    }

    /// Source and destination address, when the packet has an IP header.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        let Event { src, dst, .. } = self.event;
        (!dst.is_unspecified()).then(|| (src.into(), dst.into()))
    }

    /// Whom the packet was for, in the way ports are shared: an echo's remote end has none.
    pub fn remote(&self) -> Remote {
        let Event { dst, dst_port, protocol, .. } = self.event;
        let port = if is_echo(protocol) { datapath_ebpf::Port::new(0) } else { dst_port };
        Remote { address: dst, port, protocol }
    }

    /// How long ago it was, in ticks.
    pub fn age(&self) -> u32 {
        elapsed(ticks(self.event.time), now())
    }
}

/// The reader of the ring. There can be one.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Opens the pinned ring.
    pub fn open(bpf_dir: &Path) -> Result<Self, DatapathError> {
        let failed = DatapathError::map("events");
        let data = MapData::from_pin(bpf_dir.join("events")).map_err(&failed)?;
        Ok(Self { ring: RingBuf::try_from(Map::RingBuf(data)).map_err(&failed)? })
    }
}

/// Takes the oldest event that was not read yet; there may be more after the end.
impl Iterator for Events {
    type Item = Dropped;

    fn next(&mut self) -> Option<Dropped> {
        loop {
            if let Some(dropped) = Dropped::read(&self.ring.next()?) {
                return Some(dropped);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

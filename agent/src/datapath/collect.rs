//! Ending flows: runs the program `collect`, which walks the maps inside the kernel, and tells what it found.

use aya::{
    TestRun as _,
    maps::{Array, MapData},
    programs::{RawTracePoint, RawTracePointRunOptions},
};
use datapath_ebpf::{
    collect::{AUDIT, Argument, Collection, EVICT, OWNERS, Remote},
    flow::{Class, TIMEOUTS, ticks},
};
use nix::time::{ClockId, clock_gettime};

use super::{DatapathError, pressure};

/// The program's name in the object.
pub const PROGRAM: &str = "collect";

/// Flows that one run ends at most. The kernel preempts nobody while it runs; removing an entry takes longer than looking at one.
const AT_ONCE: u64 = 16_384;

/// How thorough a collection is; each does what the ones before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sweep {
    /// Flows that have been idle for longer than their class may be.
    #[default]
    Idle,
    /// Also flows whose pod or whose masquerade address is gone.
    Owners,
    /// Also halves of flows, and pools of ports that nobody has searched for long.
    Audit,
}

impl Sweep {
    const fn mode(self) -> u64 {
        match self {
            Self::Idle => 0,
            Self::Owners => OWNERS,
            Self::Audit => OWNERS | AUDIT,
        }
    }
}

/// Flows that have to go so that others find room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// How many at most.
    pub quota: u64,
    /// Of these classes.
    pub classes: Vec<Class>,
    /// Idle for at least so long, in ticks.
    pub idle: u32,
    /// Only flows towards this remote end.
    pub remote: Option<Remote>,
}

/// The loaded program and the map of its answers.
pub struct Collector {
    program: RawTracePoint,
    collection: Array<MapData, Collection>,
    /// Flows that stayed after the last walk over all of them.
    kept: u64,
    /// How many flows there can be.
    max: u32,
}

impl Collector {
    /// Puts the parts together.
    pub fn new(program: RawTracePoint, collection: Array<MapData, Collection>, max: u32) -> Self {
        Self { program, collection, kept: 0, max }
    }

    /// Removes what has ended at `now`. `timeouts` are seconds by class; they shrink as the map fills up.
    pub fn sweep(
        &mut self,
        sweep: Sweep,
        now: u32,
        timeouts: &[u32; TIMEOUTS],
    ) -> Result<Collection, DatapathError> {
        let limits = pressure::limits(timeouts, self.kept, self.max);
        let mut earlier = Collection::default();
        loop {
            let mut arguments = RawTracePointRunOptions::new();
            arguments.args[Argument::Now as usize] = now.into();
            arguments.args[Argument::Mode as usize] = sweep.mode();
            arguments.args[Argument::Quota as usize] = AT_ONCE;
            let mut found = self.run(limits, arguments)?;
            let complete = found.removed() < AT_ONCE;
            found.add_removed(&earlier);
            if complete {
                self.kept = found.kept();
                return Ok(found);
            }
            earlier = found;
        }
    }

    /// Removes flows to make room for others.
    pub fn evict(&mut self, eviction: &Eviction, now: u32) -> Result<Collection, DatapathError> {
        let mut arguments = RawTracePointRunOptions::new();
        let classes = eviction.classes.iter().fold(0, |bits, &class| bits | 1 << class as u64);
        let words = eviction.remote.map_or([0; 3], |remote| remote.words());
        arguments.args[Argument::Remote as usize..][..3].copy_from_slice(&words);
        for (argument, value) in [
            (Argument::Now, now.into()),
            (Argument::Mode, EVICT),
            (Argument::Quota, eviction.quota),
            (Argument::Classes, classes),
            (Argument::Idle, eviction.idle.into()),
        ] {
            arguments.args[argument as usize] = value;
        }
        let found = self.run([0; TIMEOUTS], arguments)?;
        self.kept = self.kept.saturating_sub(found.removed());
        Ok(found)
    }

    /// Flows that stayed after the last collection, and how many there can be.
    pub fn occupancy(&self) -> (u64, u32) {
        (self.kept, self.max)
    }

    fn run(
        &mut self,
        limits: [u32; TIMEOUTS],
        arguments: RawTracePointRunOptions,
    ) -> Result<Collection, DatapathError> {
        let failed = DatapathError::map("collection");
        let blank = Collection { limits, ..Collection::default() };
        self.collection.set(0, &blank, 0).map_err(&failed)?;
        self.program.test_run(arguments).map_err(DatapathError::program(PROGRAM, 0))?;
        self.collection.get(&0, 0).map_err(&failed)
    }
}

/// The clock of the programs, in ticks.
pub fn now() -> u32 {
    // The monotonic clock cannot fail; if it did, nothing would look idle.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| ticks(time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()))
}

//! Ending flows: both halves of a flow that has been idle for longer than its protocol allows, or whose pod is gone.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::IterableMap as _;
use datapath_ebpf::{
    Ip,
    flow::{flow_of, ticks, ticks_of_seconds, way_back},
    maps::{Flow, FlowKey, Reverse},
};
use nix::time::{ClockId, clock_gettime};

use super::{
    DatapathError, batch,
    tables::{Tables, absent_is_fine},
};

/// What one garbage collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GarbageStats {
    /// Flows looked at.
    pub seen: usize,
    /// Flows removed.
    pub removed: usize,
}

/// A claim without a flow was cut short between its two halves; until then it may be one that is just being made.
const ORPHAN: u32 = ticks_of_seconds(10);

/// How long this flow may be idle, in seconds.
pub fn timeout(protocol: u8, flow: &Flow) -> u32 {
    flow.class(protocol).default_timeout()
}

/// Removes what has ended, at the kernel's time now.
pub fn collect(tables: &mut Tables, leaving: &BTreeSet<Ip>) -> Result<GarbageStats, DatapathError> {
    let flows: Vec<(FlowKey, Flow)> = batch::read("conntrack", tables.conntrack.map())?;
    let backs: BTreeMap<FlowKey, Reverse> = batch::read("nat", tables.nat.map())?.into_iter().collect();
    let now = now();
    let mut stats = GarbageStats { seen: flows.len(), removed: 0 };
    for (key, flow) in &flows {
        if leaving.contains(&key.src) || flow.idle(now) > ticks_of_seconds(timeout(key.protocol, flow)) {
            remove_flow(tables, key, flow)?;
            stats.removed += 1;
        }
    }
    let known: BTreeSet<&FlowKey> = flows.iter().map(|(key, _)| key).collect();
    for (key, back) in &backs {
        if !known.contains(&flow_of(key, back.address, back.port)) && now.wrapping_sub(back.created) > ORPHAN
        {
            remove_orphan(tables, key, back)?;
        }
    }
    Ok(stats)
}

/// The flow first: from then on its next packet makes both halves anew. Should one have done so before its way back was
/// removed, that new flow has lost its half, and is removed once more.
fn remove_flow(tables: &mut Tables, key: &FlowKey, flow: &Flow) -> Result<(), DatapathError> {
    let remove = |tables: &mut Tables| {
        absent_is_fine(tables.conntrack.remove(key)).map_err(DatapathError::map("conntrack"))
    };
    remove(tables)?;
    if flow.nat_address.is_unspecified() {
        return Ok(());
    }
    absent_is_fine(tables.nat.remove(&way_back(key, flow.nat_address, flow.nat_port)))
        .map_err(DatapathError::map("nat"))?;
    remove(tables)
}

fn remove_orphan(tables: &mut Tables, key: &FlowKey, back: &Reverse) -> Result<(), DatapathError> {
    if tables.conntrack.get(&flow_of(key, back.address, back.port), 0).is_ok() {
        return Ok(());
    }
    absent_is_fine(tables.nat.remove(key)).map_err(DatapathError::map("nat"))
}

/// The clock of the programs, in ticks.
pub fn now() -> u32 {
    // The monotonic clock cannot fail; if it did, nothing would look idle.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| ticks(time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()))
}

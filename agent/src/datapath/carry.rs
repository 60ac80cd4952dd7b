//! Another size for the maps of flows: the flows are carried over.
//!
//! The attached programs go on with the old maps until the new programs are swapped in. So there are two rounds: before the swap
//! everything is copied, and right after it what has come or changed in between. Until then the old `conntrack` stays pinned
//! ([`FORMER`]), so that an agent which takes over from one that was killed meanwhile finds it.
//!
//! The ways back are made from the flows, never copied: what arrives is whole. What there is no room for is dropped, assured flows last.

use std::{fs, path::Path};

use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapInfo};
use datapath_ebpf::{
    flow::{TICK_SHIFT, is_after, ticks, way_back},
    maps::{Flow, FlowKey, Pool, PoolKey, Reverse},
};
use tracing::{info, warn};

use super::{DatapathError, batch, collect::now, links, tables::absent_is_fine};

/// Where the old `conntrack` is pinned until its flows have been carried over.
const FORMER: &str = "conntrack-former";
/// The programs' clock lags behind ours by less.
const CLOCK_LAG: u32 = 100_000_000 >> TICK_SHIFT;

/// The old flows, and where they go.
pub struct Carry {
    old: MapData,
    new: HashMap<MapData, FlowKey, Flow>,
    backs: HashMap<MapData, FlowKey, Reverse>,
    /// When the first round began, in ticks.
    began: u32,
}

/// Puts the pinned maps of flows aside if they have another size than this.
pub fn set_aside(bpf_dir: &Path, max: u32) -> Result<(), DatapathError> {
    let [conntrack, nat] = ["conntrack", "nat"].map(|name| bpf_dir.join(name));
    let has_size = |pin: &Path, value: usize| {
        let info = MapInfo::from_pin(pin).ok()?;
        // Any other difference is another version's: those maps are made anew.
        let same = info.key_size() as usize == size_of::<FlowKey>() && info.value_size() as usize == value;
        same.then(|| info.max_entries())
    };
    let sizes = (has_size(&conntrack, size_of::<Flow>()), has_size(&nat, size_of::<Reverse>()));
    let (Some(flows), Some(backs)) = sizes else { return Ok(()) };
    if (flows, backs) == (max, max) {
        return Ok(());
    }
    info!(from = flows, to = max, "the maps of flows get another size: flows are carried over");
    let former = bpf_dir.join(FORMER);
    links::remove(&former)?;
    fs::rename(&conntrack, &former).map_err(|source| DatapathError::pins("renaming", &conntrack, source))?;
    links::remove(&nat)
}

/// Forgets flows that were put aside.
pub fn forget(bpf_dir: &Path) -> Result<(), DatapathError> {
    links::remove(&bpf_dir.join(FORMER))
}

impl Carry {
    /// The first round, if maps were put aside.
    pub fn begin(bpf_dir: &Path) -> Result<Option<Self>, DatapathError> {
        let former = bpf_dir.join(FORMER);
        if !former.exists() {
            return Ok(None);
        }
        let open = |name: &'static str| {
            MapData::from_pin(bpf_dir.join(name)).map_err(DatapathError::map(name)).map(Map::HashMap)
        };
        let mut carry = Self {
            old: MapData::from_pin(&former).map_err(DatapathError::map(FORMER))?,
            new: open("conntrack")?.try_into().map_err(DatapathError::map("conntrack"))?,
            backs: open("nat")?.try_into().map_err(DatapathError::map("nat"))?,
            began: now().wrapping_sub(CLOCK_LAG),
        };
        let (mut carried, mut dropped) = (0, 0);
        for assured in [true, false] {
            let old = &carry.old;
            let mut round = |chunk: &[(FlowKey, Flow)]| {
                let wanted =
                    |(key, flow): &&(FlowKey, Flow)| flow.class(key.protocol).is_assured() == assured;
                let flows: Vec<_> = chunk.iter().filter(wanted).copied().collect();
                let fitted = copy(&mut carry.backs, &carry.new, &flows)?;
                carried += fitted;
                dropped += flows.len() - fitted;
                Ok(())
            };
            batch::chunks(FORMER, old, &mut round)?;
        }
        info!(flows = carried, "carried flows over to maps of another size");
        if dropped > 0 {
            warn!(flows = dropped, "there was no room for all flows: these end now (--conntrack-max)");
        }
        forget_pools(bpf_dir)?;
        Ok(Some(carry))
    }

    /// The second round, once nobody uses the old maps any more.
    pub fn finish(mut self, bpf_dir: &Path) -> Result<(), DatapathError> {
        let (mut late, mut changed) = (0, 0);
        let Self { old, new, backs, began } = &mut self;
        batch::chunks(FORMER, old, |chunk: &[(FlowKey, Flow)]| {
            for (key, flow) in chunk {
                match new.get(key, 0) {
                    // The last packets met the old programs.
                    Ok(present) if is_after(flow.last_seen(), present.last_seen()) => {
                        new.insert(key, flow, 0).map_err(DatapathError::map("conntrack"))?;
                        changed += 1;
                    }
                    Ok(_) => {}
                    Err(_) if is_after(ticks(flow.created), *began) => late += insert(backs, new, key, flow)?,
                    // It has ended, or there was no room.
                    Err(_) => {}
                }
            }
            Ok(())
        })?;
        info!(late, changed, "carried over what had changed meanwhile");
        forget(bpf_dir)
    }
}

/// Copies whole flows; returns how many fitted.
fn copy(
    backs: &mut HashMap<MapData, FlowKey, Reverse>,
    new: &HashMap<MapData, FlowKey, Flow>,
    flows: &[(FlowKey, Flow)],
) -> Result<usize, DatapathError> {
    let (translated, others): (Vec<_>, Vec<_>) =
        flows.iter().partition(|(_, flow)| !flow.nat_address.is_unspecified());
    let ways: Vec<(FlowKey, Reverse)> = translated.iter().map(|(key, flow)| back_of(key, flow)).collect();
    let room = batch::write("nat", backs.map(), &ways)?;
    let fitted = batch::write("conntrack", new.map(), &translated[..room])?;
    for (back, _) in &ways[fitted..room] {
        absent_is_fine(backs.remove(back)).map_err(DatapathError::map("nat"))?;
    }
    Ok(fitted + batch::write("conntrack", new.map(), &others)?)
}

/// Inserts one whole flow if it is not there and nothing of it is another's; returns how many.
fn insert(
    backs: &mut HashMap<MapData, FlowKey, Reverse>,
    new: &mut HashMap<MapData, FlowKey, Flow>,
    key: &FlowKey,
    flow: &Flow,
) -> Result<usize, DatapathError> {
    const NO_EXIST: u64 = 1;
    let back = (!flow.nat_address.is_unspecified()).then(|| back_of(key, flow));
    if let Some((back, to)) = &back
        && backs.insert(back, to, NO_EXIST).is_err()
    {
        return Ok(0);
    }
    if new.insert(key, flow, NO_EXIST).is_ok() {
        return Ok(1);
    }
    // Its next packet has made it meanwhile, or there is no room.
    let present = new.get(key, 0).ok();
    let same = |now: Flow| (now.nat_address, now.nat_port) == (flow.nat_address, flow.nat_port);
    if let Some((back, _)) = &back
        && !present.is_some_and(same)
    {
        absent_is_fine(backs.remove(back)).map_err(DatapathError::map("nat"))?;
    }
    Ok(0)
}

fn back_of(key: &FlowKey, flow: &Flow) -> (FlowKey, Reverse) {
    let to = Reverse {
        address: key.src,
        created: ticks(flow.created),
        port: key.src_port,
        flags: flow.flags & (Flow::HOST | Flow::HOST_PORT),
        reserved: 0,
    };
    (way_back(key, flow.nat_address, flow.nat_port), to)
}

/// Ports of flows that were dropped must not stay marked as taken: what is known is found out anew.
fn forget_pools(bpf_dir: &Path) -> Result<(), DatapathError> {
    let failed = DatapathError::map("ports");
    let data = MapData::from_pin(bpf_dir.join("ports")).map_err(&failed)?;
    let mut pools: HashMap<MapData, PoolKey, Pool> = Map::HashMap(data).try_into().map_err(&failed)?;
    let keys: Vec<PoolKey> = pools.keys().collect::<Result<_, _>>().map_err(&failed)?;
    keys.iter().try_for_each(|key| absent_is_fine(pools.remove(key)).map_err(&failed))
}

//! Reading the pinned maps: what the operator's commands show, with or without an agent running.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapInfo, PerCpuArray},
};
use datapath_ebpf::{
    DropReason, Forward, Ip, Program,
    event::Told,
    flow::{TICK_SHIFT, TIMEOUTS, elapsed},
    maps::{
        CLAIM_BUCKETS, Counter, Endpoint, Flow, FlowKey, HostPort, HostPortKey, Pool, PoolKey, Reverse, Route,
    },
    outcome::counter_index,
};
use ipnet::IpNet;

use super::{
    DatapathError, batch, collect,
    load::MAPS,
    tables::{entries, prefix_of_trie},
};

/// What one program has done with packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// The program.
    pub program: &'static str,
    /// The outcome's name.
    pub outcome: &'static str,
    /// What it means.
    pub description: &'static str,
    /// Whether the outcome is a drop.
    pub drop: bool,
    /// Packets over all CPUs.
    pub packets: u64,
    /// Bytes over all CPUs.
    pub bytes: u64,
}

/// A flow and its age.
#[derive(Clone, Debug)]
pub struct FlowRow {
    /// The flow as its owner sees it.
    pub key: FlowKey,
    /// Its entry.
    pub flow: Flow,
    /// How long it may be idle, in seconds.
    pub timeout_seconds: u64,
    /// How long it has been idle, in seconds.
    pub idle_seconds: u64,
}

/// A remote end towards which ports are scarce.
#[derive(Clone, Copy, Debug)]
pub struct PoolRow {
    /// The masquerade address and the remote end.
    pub key: PoolKey,
    /// Ports known to be taken.
    pub known_taken: u32,
    /// How long ago a port was last searched here, in seconds.
    pub searched_seconds: u64,
}

/// What the kernel says about one pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    /// Its name, which is its pin's.
    pub name: &'static str,
    /// Its kind.
    pub kind: String,
    /// The kernel's number for it.
    pub id: u32,
    /// Bytes per key.
    pub key_size: u32,
    /// Bytes per value.
    pub value_size: u32,
    /// Entries it can hold.
    pub max_entries: u32,
}

/// How many drops for one reason programs could not tell about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UntoldRow {
    /// The reason's name.
    pub reason: &'static str,
    /// There were too many at once.
    pub suppressed: u64,
    /// Nobody read what was told.
    pub lost: u64,
}

/// Every counter that is not zero, in the order of programs and outcomes.
pub fn counters(bpf_dir: &Path) -> Result<Vec<CounterRow>, DatapathError> {
    let failed = DatapathError::map("counters");
    let map: PerCpuArray<MapData, Counter> =
        PerCpuArray::try_from(Map::PerCpuArray(pinned(bpf_dir, "counters")?)).map_err(&failed)?;
    let forwards = Forward::ALL.iter().map(|&f| (f as u8, f.name(), f.description(), false));
    let drops = DropReason::ALL.iter().map(|&d| (d as u8, d.name(), d.description(), true));
    let outcomes: Vec<_> = forwards.chain(drops).collect();
    let mut rows = Vec::new();
    for &program in Program::ALL {
        for &(number, outcome, description, drop) in &outcomes {
            let values = map.get(&counter_index(program, number), 0).map_err(&failed)?;
            let packets = values.iter().map(|counter| counter.packets).sum();
            let bytes = values.iter().map(|counter| counter.bytes).sum();
            rows.push(CounterRow { program: program.name(), outcome, description, drop, packets, bytes });
        }
    }
    rows.retain(|row| row.packets != 0);
    Ok(rows)
}

/// `endpoints`, sorted by address.
pub fn endpoints(bpf_dir: &Path) -> Result<BTreeMap<IpAddr, Endpoint>, DatapathError> {
    let map: HashMap<MapData, Ip, Endpoint> = HashMap::try_from(Map::HashMap(pinned(bpf_dir, "endpoints")?))
        .map_err(DatapathError::map("endpoints"))?;
    let entries = entries("endpoints", map.iter())?;
    Ok(entries.into_iter().map(|(ip, endpoint)| (ip.into(), endpoint)).collect())
}

/// `routes`, sorted by prefix.
pub fn routes(bpf_dir: &Path) -> Result<BTreeMap<IpNet, Route>, DatapathError> {
    let failed = DatapathError::map("routes");
    let map: LpmTrie<MapData, Ip, Route> =
        LpmTrie::try_from(Map::LpmTrie(pinned(bpf_dir, "routes")?)).map_err(&failed)?;
    let mut routes = BTreeMap::new();
    for entry in &map {
        let (key, route) = entry.map_err(&failed)?;
        if let Some(prefix) = prefix_of_trie(key.prefix_len(), key.data()) {
            routes.insert(prefix, route);
        }
    }
    Ok(routes)
}

/// `host_ports`, sorted by address and port.
pub fn host_ports(bpf_dir: &Path) -> Result<BTreeMap<HostPortKey, HostPort>, DatapathError> {
    let map: HashMap<MapData, HostPortKey, HostPort> =
        HashMap::try_from(Map::HashMap(pinned(bpf_dir, "host_ports")?))
            .map_err(DatapathError::map("host_ports"))?;
    entries("host_ports", map.iter())
}

/// `conntrack`, sorted by flow.
pub fn flows(bpf_dir: &Path) -> Result<Vec<FlowRow>, DatapathError> {
    let mut flows: Vec<(FlowKey, Flow)> = hash_entries(bpf_dir, "conntrack")?;
    flows.sort_by_key(|(key, _)| *key);
    let (now, timeouts) = (collect::now(), timeouts(bpf_dir)?);
    let row = |(key, flow): (FlowKey, Flow)| FlowRow {
        key,
        flow,
        timeout_seconds: timeouts[flow.class(key.protocol) as usize].into(),
        idle_seconds: seconds_of_ticks(flow.idle(now)),
    };
    Ok(flows.into_iter().map(row).collect())
}

/// `event_stats` over all CPUs, where there is anything.
pub fn untold(bpf_dir: &Path) -> Result<Vec<UntoldRow>, DatapathError> {
    let failed = DatapathError::map("event_stats");
    let map: PerCpuArray<MapData, Told> =
        PerCpuArray::try_from(Map::PerCpuArray(pinned(bpf_dir, "event_stats")?)).map_err(&failed)?;
    let mut rows = Vec::new();
    for &reason in DropReason::ALL {
        let told = map.get(&u32::from(reason as u8), 0).map_err(&failed)?;
        let (suppressed, lost) = told
            .iter()
            .fold((0, 0), |(suppressed, lost), one| (suppressed + one.suppressed, lost + one.lost));
        if suppressed + lost > 0 {
            rows.push(UntoldRow { reason: reason.name(), suppressed, lost });
        }
    }
    Ok(rows)
}

/// `claims` over all CPUs: how many claims took up to 2^n tries, by n.
pub fn claims(bpf_dir: &Path) -> Result<[u64; CLAIM_BUCKETS], DatapathError> {
    let failed = DatapathError::map("claims");
    let map: PerCpuArray<MapData, u64> =
        PerCpuArray::try_from(Map::PerCpuArray(pinned(bpf_dir, "claims")?)).map_err(&failed)?;
    let mut all = [0; CLAIM_BUCKETS];
    for (bucket, claims) in (0..).zip(&mut all) {
        *claims = map.get(&bucket, 0).map_err(&failed)?.iter().sum();
    }
    Ok(all)
}

/// `timeouts`: seconds by class, while there is no pressure.
pub fn timeouts(bpf_dir: &Path) -> Result<[u32; TIMEOUTS], DatapathError> {
    let failed = DatapathError::map("timeouts");
    let map: Array<MapData, u32> =
        Array::try_from(Map::Array(pinned(bpf_dir, "timeouts")?)).map_err(&failed)?;
    let mut all = [0; TIMEOUTS];
    for (class, seconds) in (0..).zip(&mut all) {
        *seconds = map.get(&class, 0).map_err(&failed)?;
    }
    Ok(all)
}

/// `nat` as it is, sorted.
pub fn nat(bpf_dir: &Path) -> Result<Vec<(FlowKey, Reverse)>, DatapathError> {
    let mut entries: Vec<(FlowKey, Reverse)> = hash_entries(bpf_dir, "nat")?;
    entries.sort_by_key(|(key, _)| *key);
    Ok(entries)
}

/// `ports`, sorted.
pub fn pools(bpf_dir: &Path) -> Result<Vec<PoolRow>, DatapathError> {
    let mut pools: Vec<(PoolKey, Pool)> = hash_entries(bpf_dir, "ports")?;
    pools.sort_by_key(|(key, _)| *key);
    let row = |(key, pool): (PoolKey, Pool)| PoolRow {
        key,
        known_taken: pool.taken.iter().map(|word| word.count_ones()).sum(),
        searched_seconds: age(pool.last_used),
    };
    Ok(pools.into_iter().map(row).collect())
}

/// How long ago something was, in seconds, by the ticks of the maps.
pub fn age(since: u32) -> u64 {
    seconds_of_ticks(elapsed(since, collect::now()))
}

fn seconds_of_ticks(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}

/// What the kernel says about every pinned map.
pub fn maps(bpf_dir: &Path) -> Result<Vec<MapRow>, DatapathError> {
    let row = |name: &'static str| {
        let failed = DatapathError::map(name);
        let info = MapInfo::from_pin(bpf_dir.join(name)).map_err(&failed)?;
        Ok(MapRow {
            name,
            kind: format!("{:?}", info.map_type().map_err(&failed)?),
            id: info.id(),
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
        })
    };
    MAPS.into_iter().map(row).collect()
}

fn hash_entries<K: Pod, V: Pod>(bpf_dir: &Path, name: &'static str) -> Result<Vec<(K, V)>, DatapathError> {
    batch::read(name, &pinned(bpf_dir, name)?)
}

fn pinned(bpf_dir: &Path, name: &'static str) -> Result<MapData, DatapathError> {
    MapData::from_pin(bpf_dir.join(name)).map_err(DatapathError::map(name))
}

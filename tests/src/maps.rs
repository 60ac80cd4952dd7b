//! Looks into a node's pinned maps, past the agent: the tests' own view of the truth.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray},
};
use datapath_ebpf::{
    DropReason, Forward, Ip, Outcome, Program,
    maps::{Counter, Endpoint, Flow, FlowKey, Reverse, Route},
    outcome::counter_index,
};

/// The pins of one node.
#[derive(Clone, Copy, Debug)]
pub struct Maps<'a> {
    bpf_dir: &'a Path,
}

/// A counter that is not zero.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// The program that counted.
    pub program: Program,
    /// What became of the packets: the name that metrics use.
    pub outcome: &'static str,
    /// The same in one sentence.
    pub meaning: &'static str,
    /// Whether they were dropped.
    pub dropped: bool,
    /// Packets and bytes, summed over the CPUs.
    pub counter: Counter,
}

impl<'a> Maps<'a> {
    /// The maps pinned in an agent's `--bpf-dir`.
    pub fn of(bpf_dir: &'a Path) -> Self {
        Self { bpf_dir }
    }

    fn open(&self, name: &str) -> Result<Map> {
        let path = self.bpf_dir.join(name);
        let data = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Map::from_map_data(data).with_context(|| format!("cannot use {}", path.display()))
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> Result<Vec<(K, V)>> {
        let map = HashMap::<_, K, V>::try_from(self.open(name)?)?;
        // An entry that goes while we look is not an error of the test.
        Ok(map.iter().flatten().collect())
    }

    /// Every address that the node knows as local.
    pub fn endpoints(&self) -> Result<Vec<(Ip, Endpoint)>> {
        self.hash("endpoints")
    }

    /// What the node knows of one address.
    pub fn endpoint(&self, address: IpAddr) -> Result<Option<Endpoint>> {
        Ok(self.endpoints()?.into_iter().find(|(ip, _)| *ip == address.into()).map(|(_, endpoint)| endpoint))
    }

    /// Writes an entry behind the agent's back.
    pub fn put_endpoint(&self, ip: Ip, endpoint: &Endpoint) -> Result<()> {
        let mut map = HashMap::<_, Ip, Endpoint>::try_from(self.open("endpoints")?)?;
        map.insert(&ip, endpoint, 0).context("cannot write an endpoint")
    }

    /// Removes an entry behind the agent's back.
    pub fn remove_endpoint(&self, address: IpAddr) -> Result<()> {
        let mut map = HashMap::<_, Ip, Endpoint>::try_from(self.open("endpoints")?)?;
        map.remove(&address.into()).context("cannot remove an endpoint")
    }

    /// Masqueraded and inbound flows.
    pub fn conntrack(&self) -> Result<Vec<(FlowKey, Flow)>> {
        self.hash("conntrack")
    }

    /// The ways back of masqueraded flows.
    pub fn nat(&self) -> Result<Vec<(FlowKey, Reverse)>> {
        self.hash("nat")
    }

    /// Prefixes (address and length within its family) and where they are.
    pub fn routes(&self) -> Result<Vec<(Ip, u32, Route)>> {
        let map = LpmTrie::<_, Ip, Route>::try_from(self.open("routes")?)?;
        let entries = map.iter().flatten().map(|(key, route)| {
            let ip = key.data();
            let mapped = if ip.is_v4() { Ip::V4_PREFIX_BITS } else { 0 };
            (ip, key.prefix_len().saturating_sub(mapped), route)
        });
        Ok(entries.collect())
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, program: Program, outcome: Outcome) -> Result<Counter> {
        let map = PerCpuArray::<_, Counter>::try_from(self.open("counters")?)?;
        sum(&map, program, outcome)
    }

    /// Packets dropped for a reason, summed over the programs.
    pub fn dropped(&self, reason: DropReason) -> Result<u64> {
        let map = PerCpuArray::<_, Counter>::try_from(self.open("counters")?)?;
        Program::ALL.iter().map(|&program| Ok(sum(&map, program, Outcome::Drop(reason))?.packets)).sum()
    }

    /// Every counter that is not zero.
    pub fn counters(&self) -> Result<Vec<Counted>> {
        let map = PerCpuArray::<_, Counter>::try_from(self.open("counters")?)?;
        let forward = Forward::ALL.iter().map(|&way| (Outcome::Forward(way), way.name(), way.description()));
        let drop = DropReason::ALL
            .iter()
            .map(|&reason| (Outcome::Drop(reason), reason.name(), reason.description()));
        let mut counted = Vec::new();
        for (outcome, name, meaning) in forward.chain(drop) {
            for &program in Program::ALL {
                let counter = sum(&map, program, outcome)?;
                if counter.packets > 0 {
                    let dropped = matches!(outcome, Outcome::Drop(_));
                    counted.push(Counted { program, outcome: name, meaning, dropped, counter });
                }
            }
        }
        counted.sort_by_key(|counted| counted.program);
        Ok(counted)
    }
}

fn sum(map: &PerCpuArray<MapData, Counter>, program: Program, outcome: Outcome) -> Result<Counter> {
    let values = map.get(&counter_index(program, outcome.number()), 0).context("cannot read a counter")?;
    let add = |sum: Counter, cpu: &Counter| Counter {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
    };
    Ok(values.iter().fold(Counter::default(), add))
}

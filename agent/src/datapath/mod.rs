//! The datapath's user side: loads the object, keeps maps and attachments equal to the desired state.
//!
//! Two things outlive the agent and are adopted by the next one: the maps, pinned by name under the BPF directory, and
//! the links, pinned under its `links/`. Programs are loaded anew at every start and swapped in through the links, one
//! atomic update each: no packet ever meets a hook without a program.
//!
//! Invariants:
//! - what is *attached* counts, not what is pinned: [`attach`] asks the kernel;
//! - a map is filled before a program that reads it is attached, and never flushed;
//! - an endpoint is inserted last and removed first ([`tables`]).

mod attach;
mod batch;
mod carry;
mod collect;
mod error;
mod events;
mod links;
mod load;
mod object;
mod pressure;
pub mod read;
mod room;
mod settings;
mod tables;
pub mod test_run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use datapath_ebpf::{
    Ip, Program,
    maps::{Endpoint, HostPort, HostPortKey},
};

use self::{
    attach::Attachments,
    carry::Carry,
    collect::Collector,
    load::Loaded,
    tables::Tables,
    test_run::{Packet, Ran},
};
pub use datapath_ebpf::collect::{Cause, Collection};

pub use self::{
    attach::Role,
    collect::{Eviction, Sweep, now},
    error::DatapathError,
    events::{Dropped, Events},
    pressure::is_high,
    room::Shortage,
    settings::{Settings, timeouts},
};
use crate::core::Desired;

/// What one call changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries or attachments that were missing.
    pub added: usize,
    /// Entries or attachments that differed.
    pub updated: usize,
    /// Entries or attachments that should not have been there.
    pub removed: usize,
}

impl Changes {
    /// Whether there was anything to do.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.updated += other.updated;
        self.removed += other.removed;
    }
}

/// The programs and maps of one node. Every method blocks for a few system calls.
pub struct Datapath {
    bpf_dir: PathBuf,
    tables: Tables,
    attachments: Attachments,
    collector: Collector,
    /// Flows that are on their way from maps of another size, until the programs are swapped.
    carry: Option<Carry>,
    settings: Settings,
    leaving: Leaving,
}

/// Addresses that are no endpoints any more and whose flows are still to be ended.
#[derive(Debug, Default)]
struct Leaving {
    addresses: BTreeSet<Ip>,
    /// The maps are equal to the desired state: what is no endpoint now is not just not one yet.
    settled: bool,
    /// Nobody knows what an earlier agent has left undone.
    unknown: bool,
}

impl Leaving {
    fn concerns(&self, ip: Ip) -> bool {
        self.unknown || self.addresses.contains(&ip)
    }
}

impl Datapath {
    /// Loads the object and adopts or makes the pinned maps under `bpf_dir`; attaches nothing.
    pub fn open(bpf_dir: &Path, settings: &Settings) -> Result<Self, DatapathError> {
        let Loaded { tables, programs, collector, carry } = load::load(bpf_dir, settings)?;
        let attachments = Attachments::new(programs, links::directory(bpf_dir));
        let leaving = Leaving { unknown: true, ..Leaving::default() };
        let settings = settings.clone();
        Ok(Self { bpf_dir: bpf_dir.to_owned(), tables, attachments, collector, carry, settings, leaving })
    }

    /// Makes the maps equal to `desired` by diff against what the kernel holds.
    pub fn apply(&mut self, desired: &Desired) -> Result<Changes, DatapathError> {
        let applied = self.tables.apply(desired)?;
        self.leaving.settled = true;
        self.leaving.addresses.extend(applied.gone);
        Ok(applied.changes)
    }

    /// Makes one address reachable. Flows of its former owner are gone before that.
    pub fn publish(&mut self, ip: Ip, endpoint: &Endpoint) -> Result<(), DatapathError> {
        if self.leaving.concerns(ip) {
            self.collect(Sweep::Owners, now())?;
        }
        self.tables.insert_endpoint(ip, endpoint)
    }

    /// Makes one address unreachable at once. Its flows are still to be ended: by [`Datapath::collect`] with
    /// [`Sweep::Owners`], or before the address is published again.
    pub fn withdraw(&mut self, ip: Ip) -> Result<(), DatapathError> {
        self.leaving.addresses.insert(ip);
        self.tables.remove_endpoint(ip)
    }

    /// Makes ports of the node lead to a pod that can be reached.
    pub fn publish_host_ports(
        &mut self,
        host_ports: &[(HostPortKey, HostPort)],
    ) -> Result<(), DatapathError> {
        if host_ports.is_empty() {
            return Ok(());
        }
        self.tables.insert_host_ports(host_ports)
    }

    /// Makes all ports of the node that lead to this endpoint the node's own again. What came through them ends with the endpoint's
    /// addresses.
    pub fn withdraw_host_ports(&mut self, endpoint: u32) -> Result<(), DatapathError> {
        self.tables.remove_host_ports(endpoint)
    }

    /// Whether there are addresses that are no endpoints any more and may still have flows.
    pub fn has_leavers(&self) -> bool {
        self.leaving.settled && (self.leaving.unknown || !self.leaving.addresses.is_empty())
    }

    /// Attaches or atomically replaces the programs of one device.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<(), DatapathError> {
        self.attachments.attach(ifindex, role).map(drop)
    }

    /// Makes the attachments of all devices equal to `wanted`, as the kernel reports them.
    pub fn attach_all(&mut self, wanted: &BTreeMap<u32, Role>) -> Result<Changes, DatapathError> {
        let changes = self.attachments.attach_all(wanted)?;
        // From here on only these programs run.
        if let Some(carry) = self.carry.take() {
            carry.finish(&self.bpf_dir)?;
        }
        Ok(changes)
    }

    /// False when someone removed pins of maps or links that this process still holds.
    pub fn pins_intact(&self) -> bool {
        self.tables.pins_intact(&self.bpf_dir) && self.attachments.pins_intact()
    }

    /// Pins again what this process still holds; nothing was lost meanwhile.
    pub fn repin(&mut self) -> Result<(), DatapathError> {
        links::create_directory(&self.bpf_dir)?;
        self.tables.repin(&self.bpf_dir)?;
        self.attachments.repin()
    }

    /// Runs one program on one packet without a device: for tests, benchmarks and explanations.
    pub fn test_run(&mut self, program: Program, packet: &Packet<'_>) -> Result<Ran, DatapathError> {
        test_run::run(self.attachments.program(program)?, program, packet)
    }

    /// Removes flows that have ended at `now` ([`now`]), and whatever else the sweep is for.
    pub fn collect(&mut self, sweep: Sweep, now: u32) -> Result<Collection, DatapathError> {
        // Before the maps are filled for the first time every owner would seem to be gone.
        let sweep = if self.leaving.settled { sweep } else { Sweep::Idle };
        let found = self.collector.sweep(sweep, now, &self.settings.timeouts)?;
        if sweep >= Sweep::Owners {
            self.leaving = Leaving { settled: true, ..Leaving::default() };
        }
        Ok(found)
    }

    /// Removes flows to make room for others.
    pub fn evict(&mut self, eviction: &Eviction) -> Result<Collection, DatapathError> {
        self.collector.evict(eviction, now())
    }

    /// Flows that stayed after the last collection, and how many there can be.
    pub fn occupancy(&self) -> (u64, u32) {
        self.collector.occupancy()
    }
}

/// Removes every pin under `bpf_dir` and the directory itself; the programs detach with their links.
pub fn cleanup(bpf_dir: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir_all(bpf_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::pins("removing", bpf_dir, error))
        }
        _ => Ok(()),
    }
}

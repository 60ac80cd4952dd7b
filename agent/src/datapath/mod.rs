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
mod error;
mod garbage;
mod links;
mod load;
mod object;
pub mod read;
mod tables;
pub mod test_run;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use datapath_ebpf::{Ip, Program, maps::Endpoint};

use self::{
    attach::Attachments,
    tables::Tables,
    test_run::{Packet, Ran},
};
pub use self::{attach::Role, error::DatapathError, garbage::GarbageStats};
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
    /// Addresses whose pods are gone and whose flows are still to be forgotten.
    leaving: BTreeSet<Ip>,
}

impl Datapath {
    /// Loads the object and adopts or makes the pinned maps under `bpf_dir`; attaches nothing.
    pub fn open(bpf_dir: &Path) -> Result<Self, DatapathError> {
        let (tables, programs) = load::load(bpf_dir)?;
        let attachments = Attachments::new(programs, links::directory(bpf_dir));
        Ok(Self { bpf_dir: bpf_dir.to_owned(), tables, attachments, leaving: BTreeSet::new() })
    }

    /// Makes the maps equal to `desired` by diff against what the kernel holds.
    pub fn apply(&mut self, desired: &Desired) -> Result<Changes, DatapathError> {
        self.tables.apply(desired)
    }

    /// Makes one address reachable. Flows of its former owner are gone before that.
    pub fn publish(&mut self, ip: Ip, endpoint: &Endpoint) -> Result<(), DatapathError> {
        if self.leaving.contains(&ip) {
            self.collect_garbage()?;
        }
        self.tables.insert_endpoint(ip, endpoint)
    }

    /// Makes one address unreachable at once; its flows are forgotten at the next collection, or before the address is
    /// published again.
    pub fn withdraw(&mut self, ip: Ip) -> Result<(), DatapathError> {
        self.leaving.insert(ip);
        self.tables.remove_endpoint(ip)
    }

    /// Attaches or atomically replaces the programs of one device.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<(), DatapathError> {
        self.attachments.attach(ifindex, role).map(drop)
    }

    /// Makes the attachments of all devices equal to `wanted`, as the kernel reports them.
    pub fn attach_all(&mut self, wanted: &BTreeMap<u32, Role>) -> Result<Changes, DatapathError> {
        self.attachments.attach_all(wanted)
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

    /// Removes flows that have ended, and those of addresses that were withdrawn.
    pub fn collect_garbage(&mut self) -> Result<GarbageStats, DatapathError> {
        let stats = garbage::collect(&mut self.tables, &self.leaving)?;
        self.leaving.clear();
        Ok(stats)
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

//! The datapath's user side: loads the object, keeps maps and attachments equal to the desired state.
//!
//! Only the signatures are here yet, so that the rest of the agent compiles.

use std::{collections::BTreeMap, path::Path};

use datapath_ebpf::{Ip, maps::Endpoint};

use crate::core::Desired;

/// What a device is to the datapath, and with it which programs it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Host end of a pod's veth.
    Pod,
    /// Leads to other nodes and the world.
    Uplink,
    /// The VXLAN device.
    Overlay,
}

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

/// What one garbage collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GarbageStats {
    /// Flows looked at.
    pub seen: usize,
    /// Flows removed.
    pub removed: usize,
}

/// Why the datapath could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {}

/// The programs and maps of one node.
#[derive(Debug)]
pub struct Datapath;

impl Datapath {
    /// Loads the object and adopts or makes the pinned maps under `bpf_dir`; attaches nothing.
    pub fn open(_bpf_dir: &Path) -> Result<Self, DatapathError> {
        Ok(Self)
    }

    /// Makes the maps equal to `desired` by diff against what the kernel holds.
    pub fn apply(&mut self, _desired: &Desired) -> Result<Changes, DatapathError> {
        Ok(Changes::default())
    }

    /// Makes one address reachable.
    pub fn publish(&mut self, _ip: Ip, _endpoint: &Endpoint) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Makes one address unreachable and forgets its flows.
    pub fn withdraw(&mut self, _ip: Ip) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Attaches or atomically replaces the programs of one device.
    pub fn attach(&mut self, _ifindex: u32, _role: Role) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Makes the attachments of all devices equal to `wanted`, as the kernel reports them.
    pub fn attach_all(&mut self, _wanted: &BTreeMap<u32, Role>) -> Result<Changes, DatapathError> {
        Ok(Changes::default())
    }

    /// False when someone removed the pins.
    pub fn pins_intact(&self) -> bool {
        true
    }

    /// Pins again what this process still holds.
    pub fn repin(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    /// Removes flows that have ended.
    pub fn collect_garbage(&mut self) -> Result<GarbageStats, DatapathError> {
        Ok(GarbageStats::default())
    }
}

/// Removes every pin under `bpf_dir`; the programs detach with them.
pub fn cleanup(_bpf_dir: &Path) -> Result<(), DatapathError> {
    Ok(())
}

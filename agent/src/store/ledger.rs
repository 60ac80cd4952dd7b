//! The endpoints of this node in memory, always as they are on disk, and the addresses they hold.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use hypha_cni::protocol::{Add, Attachment};
use ipnet::IpNet;
use tracing::warn;

use super::{
    files::{Store, StoreError},
    record::{NamespaceId, Phase, RECORD_VERSION, Record, host_ifname},
};
use crate::core::{
    host_ports::{self, HostPortError},
    ipam::{Ipam, IpamError, PoolUsage},
};

/// Why an endpoint could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// No address for it.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// Its host ports cannot be.
    #[error(transparent)]
    HostPort(#[from] HostPortError),
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All endpoints of the node.
#[derive(Debug)]
pub struct Ledger {
    store: Store,
    ipam: Ipam,
    records: BTreeMap<Attachment, Record>,
    last_id: u32,
}

impl Ledger {
    /// Reads what an earlier agent left under `run_dir`.
    pub fn open(run_dir: &Path) -> Result<Self, StoreError> {
        let store = Store::open(run_dir)?;
        let loaded = store.load()?;
        let mut ledger =
            Self { store, ipam: Ipam::new(loaded.checkpoint), records: BTreeMap::new(), last_id: 0 };
        for record in loaded.records {
            ledger.adopt(record);
        }
        Ok(ledger)
    }

    fn adopt(&mut self, record: Record) {
        for address in &record.addresses {
            if let Err(error) = self.ipam.adopt(record.id, *address, record.requested) {
                warn!(endpoint = record.id, %error, "two endpoints are recorded with one address");
            }
        }
        self.last_id = self.last_id.max(record.id);
        self.records.insert(record.attachment.clone(), record);
    }

    /// Makes `cidrs` the prefixes to allocate from.
    pub fn set_cidrs(&mut self, cidrs: &[IpNet]) {
        self.ipam.set_cidrs(cidrs);
    }

    /// How full the node's prefixes are.
    pub fn usage(&self) -> Vec<PoolUsage> {
        self.ipam.usage()
    }

    /// One endpoint.
    pub fn get(&self, attachment: &Attachment) -> Option<&Record> {
        self.records.get(attachment)
    }

    /// Every endpoint.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Records the intent to make an endpoint, with addresses for it; what was recorded about the same attachment
    /// before keeps its number and addresses. A host port is taken from here on, and free when its endpoint is forgotten.
    pub fn reserve(&mut self, add: &Add, namespace: NamespaceId, mtu: u32) -> Result<Record, LedgerError> {
        self.check_host_ports(add)?;
        let known = self.records.get(&add.attachment).map(|record| (record.id, record.requested));
        let (id, was_requested) = known.unwrap_or_else(|| (self.free_id(), false));
        let asked: Vec<IpAddr> = add.addresses.iter().flatten().map(IpNet::addr).collect();
        let mut addresses = self.ipam.allocate(id, &asked)?;
        addresses.sort_unstable();
        if let Err(error) = host_ports::check(&add.port_mappings, &addresses) {
            if known.is_none() {
                self.ipam.release(id);
            }
            return Err(error.into());
        }
        let record = Record {
            version: RECORD_VERSION,
            id,
            attachment: add.attachment.clone(),
            pod: add.pod.clone(),
            netns: add.netns.clone(),
            namespace,
            addresses,
            requested: was_requested || !asked.is_empty(),
            mtu: add.mtu.unwrap_or(mtu),
            port_mappings: add.port_mappings.clone(),
            host_ifname: host_ifname(&add.attachment),
            link: None,
            phase: Phase::Wiring,
        };
        if let Err(error) = self.update(record.clone()) {
            if known.is_none() {
                self.ipam.release(id);
            }
            return Err(error.into());
        }
        Ok(record)
    }

    /// Whether no other endpoint has these ports.
    fn check_host_ports(&self, add: &Add) -> Result<(), HostPortError> {
        let others = self.records.values().filter(|record| record.attachment != add.attachment);
        for record in others {
            for other in &record.port_mappings {
                let wanted = add.port_mappings.iter().find(|mapping| host_ports::overlap(mapping, other));
                if let Some(mapping) = wanted {
                    let owner = record.title();
                    return Err(HostPortError::Taken { mapping: *mapping, other: *other, owner });
                }
            }
        }
        Ok(())
    }

    /// Records an endpoint's new state.
    pub fn update(&mut self, record: Record) -> Result<(), StoreError> {
        self.store.save(&record)?;
        self.records.insert(record.attachment.clone(), record);
        Ok(())
    }

    /// Forgets an endpoint of which nothing is left, and frees its addresses, which it returns.
    pub fn release(&mut self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let Some(id) = self.records.get(attachment).map(|record| record.id) else { return Ok(Vec::new()) };
        let addresses = self.ipam.release(id);
        // The order of reuse first: an agent killed in between finds the endpoint and frees its addresses again.
        let saved = self.store.save_checkpoint(&self.ipam.checkpoint()).and_then(|()| self.store.remove(id));
        self.records.remove(attachment);
        saved.map(|()| addresses)
    }

    /// The number after the last one given, so that a number comes back as late as possible.
    fn free_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && self.records.values().all(|record| record.id != self.last_id) {
                return self.last_id;
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Address management: which address of the node's pod CIDRs the next pod gets.
//!
//! An address that was never used comes first, then the one that was freed longest ago: a packet still under way to a
//! pod that is gone should find nobody for as long as possible.
//!
//! What is held is recorded with each endpoint by the caller; the [`Checkpoint`] adds only the order of reuse. It must be
//! written after every [`Ipam::release`] and before the endpoint's record goes. [`Ipam::allocate`] needs no write: a
//! restart finds the cursor again from the addresses that are held.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How many addresses of one pod CIDR are ever used: a /64 has more than anybody can keep a list of.
pub const POOL_MAX: u32 = 65_536;

/// The number of the endpoint that holds an address.
pub type Owner = u32;

/// Why no address was given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IpamError {
    /// The node's own object was not seen yet or has no pod CIDR.
    #[error("no pod CIDR is known for this node yet: its Node object needs spec.podCIDRs")]
    NoPool,
    /// Every address is held.
    #[error(
        "all {capacity} addresses of the pod CIDR {cidr} are in use: remove pods or give the node a larger CIDR"
    )]
    Exhausted {
        /// The pod CIDR.
        cidr: IpNet,
        /// How many addresses it has for pods.
        capacity: u32,
    },
    /// A requested address belongs to somebody else.
    #[error("address {address} is in use by endpoint {owner}")]
    InUse {
        /// The requested address.
        address: IpAddr,
        /// Who holds it.
        owner: Owner,
    },
    /// The owner has addresses already, and not the ones it requests now.
    #[error("endpoint {owner} holds {} and cannot change to {}", List(.held), List(.requested))]
    Differs {
        /// The endpoint.
        owner: Owner,
        /// What it holds.
        held: Vec<IpAddr>,
        /// What it asked for.
        requested: Vec<IpAddr>,
    },
}

/// Addresses separated by commas, for messages.
struct List<'a>(&'a [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, address) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            write!(f, "{separator}{address}")?;
        }
        Ok(())
    }
}

/// The order of reuse, as it is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// One entry per pod CIDR the node has or had.
    pub pools: Vec<PoolCheckpoint>,
}

/// The order of reuse within one pod CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCheckpoint {
    /// The pod CIDR.
    pub cidr: IpNet,
    /// The first address, counted from the CIDR's first usable one, that may never have been used.
    pub next: u32,
    /// Freed addresses, counted in the same way, the longest free first.
    pub freed: Vec<u32>,
}

/// How full a pod CIDR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// The pod CIDR.
    pub cidr: IpNet,
    /// Addresses it has for pods.
    pub capacity: u32,
    /// Addresses that pods hold.
    pub used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    owner: Owner,
    /// Whether the address was asked for by name: then it says nothing about the cursor.
    requested: bool,
}

/// The addresses of one node.
#[derive(Debug, Default)]
pub struct Ipam {
    pools: Vec<Pool>,
    held: BTreeMap<IpAddr, Holding>,
    owners: BTreeMap<Owner, Vec<IpAddr>>,
    /// The order of reuse of CIDRs that the node does not have at the moment.
    remembered: BTreeMap<IpNet, PoolCheckpoint>,
}

impl Ipam {
    /// Without pools: they come with [`Ipam::set_cidrs`] when the node's object is seen.
    pub fn new(checkpoint: Checkpoint) -> Self {
        let remembered = checkpoint.pools.into_iter().map(|pool| (pool.cidr, pool)).collect();
        Self { remembered, ..Self::default() }
    }

    /// Records an address that an endpoint held before the restart; `requested` as [`Ipam::allocate`] was asked.
    /// The first owner of an address keeps it.
    pub fn adopt(&mut self, owner: Owner, address: IpAddr, requested: bool) -> Result<(), IpamError> {
        if let Some(other) = self.held.get(&address).filter(|holding| holding.owner != owner) {
            return Err(IpamError::InUse { address, owner: other.owner });
        }
        self.hold(owner, address, requested);
        Ok(())
    }

    /// Makes `cidrs` the pools to allocate from. What is held stays held, in whatever CIDR it is.
    pub fn set_cidrs(&mut self, cidrs: &[IpNet]) {
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pools).into_iter().partition(|pool| cidrs.contains(&pool.cidr));
        self.remembered.extend(gone.iter().map(|pool| (pool.cidr, pool.checkpoint())));
        self.pools = kept;
        for cidr in cidrs {
            if self.pools.iter().all(|pool| pool.cidr != *cidr) {
                let pool = Pool::restore(*cidr, self.remembered.remove(cidr), &self.held);
                self.pools.push(pool);
            }
        }
    }

    /// Addresses for `owner`: the requested ones, or one of each family that the node has a pool of.
    ///
    /// The same call again returns the same addresses.
    pub fn allocate(&mut self, owner: Owner, requested: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
        if let Some(held) = self.owners.get(&owner) {
            return same_addresses(owner, held, requested);
        }
        let addresses = if requested.is_empty() { self.pick()? } else { self.check(requested)? };
        for address in &addresses {
            self.hold(owner, *address, !requested.is_empty());
        }
        Ok(addresses)
    }

    /// Frees everything `owner` holds and returns it.
    pub fn release(&mut self, owner: Owner) -> Vec<IpAddr> {
        let addresses = self.owners.remove(&owner).unwrap_or_default();
        for address in &addresses {
            self.held.remove(address);
            if let Some((pool, offset)) = self.pools.iter_mut().find_map(|pool| pool.find(*address)) {
                pool.free(offset);
            }
        }
        addresses
    }

    /// The order of reuse as of now.
    pub fn checkpoint(&self) -> Checkpoint {
        let current = self.pools.iter().map(Pool::checkpoint);
        Checkpoint { pools: current.chain(self.remembered.values().cloned()).collect() }
    }

    /// How full each pool is.
    pub fn usage(&self) -> Vec<PoolUsage> {
        let used = |cidr: &IpNet| self.held.keys().filter(|address| cidr.contains(*address)).count();
        let usage =
            |pool: &Pool| PoolUsage { cidr: pool.cidr, capacity: pool.capacity, used: used(&pool.cidr) };
        self.pools.iter().map(usage).collect()
    }

    fn hold(&mut self, owner: Owner, address: IpAddr, requested: bool) {
        if let Some((pool, offset)) = self.pools.iter_mut().find_map(|pool| pool.find(address)) {
            pool.claim(offset);
        }
        if self.held.insert(address, Holding { owner, requested }).is_none() {
            self.owners.entry(owner).or_default().push(address);
        }
    }

    /// One address of each family, held by nobody.
    fn pick(&mut self) -> Result<Vec<IpAddr>, IpamError> {
        let mut addresses = Vec::with_capacity(2);
        for v4 in [true, false] {
            let mut exhausted = None;
            for pool in self.pools.iter_mut().filter(|pool| pool.is_v4() == v4) {
                exhausted = match pool.candidate(&self.held) {
                    Some(offset) => {
                        addresses.push(pool.address(offset));
                        None
                    }
                    None => Some(IpamError::Exhausted { cidr: pool.cidr, capacity: pool.capacity }),
                };
                if exhausted.is_none() {
                    break;
                }
            }
            if let Some(error) = exhausted {
                return Err(error);
            }
        }
        if addresses.is_empty() { Err(IpamError::NoPool) } else { Ok(addresses) }
    }

    fn check(&self, requested: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
        match requested.iter().find_map(|address| Some((*address, self.held.get(address)?.owner))) {
            Some((address, owner)) => Err(IpamError::InUse { address, owner }),
            None => Ok(requested.to_vec()),
        }
    }
}

fn same_addresses(owner: Owner, held: &[IpAddr], requested: &[IpAddr]) -> Result<Vec<IpAddr>, IpamError> {
    let same =
        requested.is_empty() || held.len() == requested.len() && requested.iter().all(|ip| held.contains(ip));
    if same {
        Ok(held.to_vec())
    } else {
        Err(IpamError::Differs { owner, held: held.to_vec(), requested: requested.to_vec() })
    }
}

/// One pod CIDR. Addresses are offsets from its first usable one.
#[derive(Debug)]
struct Pool {
    cidr: IpNet,
    first: u128,
    capacity: u32,
    /// Every offset from here on that is neither held nor freed was never used.
    next: u32,
    /// Freed offsets by the order in which they were freed.
    freed: BTreeMap<u64, u32>,
    /// The same the other way round.
    freed_at: BTreeMap<u32, u64>,
    clock: u64,
}

impl Pool {
    fn new(cidr: IpNet) -> Self {
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let size = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        // IPv4 keeps the network's and the broadcast address, IPv6 the subnet routers' anycast address (RFC 4291 2.6.1);
        // point-to-point prefixes have none of them (RFC 3021, RFC 6164). The pods' gateway is link-local: it takes none.
        let (before, after) = match (cidr, host_bits) {
            (_, 0 | 1) => (0, 0),
            (IpNet::V4(_), _) => (1, 1),
            (IpNet::V6(_), _) => (1, 0),
        };
        let capacity = u32::try_from(size - before - after).unwrap_or(u32::MAX).min(POOL_MAX);
        let first = number(cidr.network()) + before;
        Self { cidr, first, capacity, next: 0, freed: BTreeMap::new(), freed_at: BTreeMap::new(), clock: 0 }
    }

    /// As it was before the restart. An offset below the cursor that is neither held nor in the checkpoint was in use
    /// not long ago: it counts as freed last.
    fn restore(cidr: IpNet, checkpoint: Option<PoolCheckpoint>, held: &BTreeMap<IpAddr, Holding>) -> Self {
        let mut pool = Self::new(cidr);
        let held: BTreeMap<u32, &Holding> =
            held.iter().filter_map(|(address, holding)| Some((pool.offset(*address)?, holding))).collect();
        let (next, freed) = checkpoint.map_or((0, Vec::new()), |saved| (saved.next, saved.freed));
        let after_held = held.iter().filter(|(_, holding)| !holding.requested).map(|(offset, _)| offset + 1);
        pool.next = after_held.max().unwrap_or(0).max(next).min(pool.capacity);
        for offset in freed.into_iter().chain(0..pool.next) {
            if offset < pool.capacity && !held.contains_key(&offset) && !pool.freed_at.contains_key(&offset) {
                pool.free(offset);
            }
        }
        pool
    }

    fn checkpoint(&self) -> PoolCheckpoint {
        PoolCheckpoint { cidr: self.cidr, next: self.next, freed: self.freed.values().copied().collect() }
    }

    fn is_v4(&self) -> bool {
        matches!(self.cidr, IpNet::V4(_))
    }

    /// The offset to use next; `None` when every address is held.
    fn candidate(&mut self, held: &BTreeMap<IpAddr, Holding>) -> Option<u32> {
        while self.next < self.capacity {
            let used = self.freed_at.contains_key(&self.next) || held.contains_key(&self.address(self.next));
            if !used {
                return Some(self.next);
            }
            self.next += 1;
        }
        self.freed.first_key_value().map(|(_, offset)| *offset)
    }

    fn claim(&mut self, offset: u32) {
        if let Some(at) = self.freed_at.remove(&offset) {
            self.freed.remove(&at);
        }
    }

    fn free(&mut self, offset: u32) {
        self.clock += 1;
        self.freed.insert(self.clock, offset);
        self.freed_at.insert(offset, self.clock);
    }

    fn address(&self, offset: u32) -> IpAddr {
        let number = self.first + u128::from(offset);
        match self.cidr {
            // The number came from an IPv4 address of this CIDR: it fits.
            IpNet::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u32> {
        let offset = number(address).checked_sub(self.first).filter(|_| address.is_ipv4() == self.is_v4())?;
        u32::try_from(offset).ok().filter(|offset| *offset < self.capacity)
    }

    fn find(&mut self, address: IpAddr) -> Option<(&mut Self, u32)> {
        let offset = self.offset(address)?;
        Some((self, offset))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests;

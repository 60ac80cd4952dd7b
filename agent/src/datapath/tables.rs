//! The maps from user space: typed handles, and making them equal to the desired state.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use datapath_ebpf::{
    Ip,
    flow::TIMEOUTS,
    maps::{Endpoint, HostPort, HostPortKey, Node, Route, Uplink},
};
use ipnet::IpNet;

use super::{Changes, DatapathError, links, load::MAPS};
use crate::core::{Desired, host_ports::is_at};

/// Handles on the maps of one node.
pub struct Tables {
    endpoints: HashMap<MapData, Ip, Endpoint>,
    routes: LpmTrie<MapData, Ip, Route>,
    host_ports: HashMap<MapData, HostPortKey, HostPort>,
    uplinks: HashMap<MapData, u32, Uplink>,
    node: Array<MapData, Node>,
    timeouts: Array<MapData, u32>,
    /// The maps that only the programs and readers use, held to be pinned again.
    others: Vec<(&'static str, Map)>,
}

/// What [`Tables::apply`] did.
pub struct Applied {
    /// How much.
    pub changes: Changes,
    /// The addresses that are no endpoints any more.
    pub gone: Vec<Ip>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            endpoints: take(ebpf, "endpoints")?,
            routes: take(ebpf, "routes")?,
            host_ports: take(ebpf, "host_ports")?,
            uplinks: take(ebpf, "uplinks")?,
            node: take(ebpf, "node")?,
            timeouts: take(ebpf, "timeouts")?,
            others: vec![
                ("conntrack", take_any(ebpf, "conntrack")?),
                ("nat", take_any(ebpf, "nat")?),
                ("ports", take_any(ebpf, "ports")?),
                ("claims", take_any(ebpf, "claims")?),
                ("fragments", take_any(ebpf, "fragments")?),
                ("held", take_any(ebpf, "held")?),
                ("counters", take_any(ebpf, "counters")?),
                ("events", take_any(ebpf, "events")?),
                ("event_stats", take_any(ebpf, "event_stats")?),
            ],
        })
    }

    /// Makes the maps equal to `desired`. What should not be reachable goes first; what newly should be comes last, when
    /// everything its packets need is there.
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied, DatapathError> {
        let mut changes = Changes::default();
        let stale = self.stale_endpoints(desired)?;
        for ip in &stale {
            self.remove_endpoint(*ip)?;
        }
        changes.removed += stale.len();
        changes += self.remove_stale_host_ports(&desired.host_ports)?;
        changes += self.apply_node(&desired.node)?;
        changes += self.apply_uplinks(&desired.uplinks)?;
        changes += self.apply_routes(&desired.routes)?;
        let present = entries("endpoints", self.endpoints.iter())?;
        for (ip, endpoint) in &desired.endpoints {
            let Some(change) = difference(present.get(ip), endpoint) else { continue };
            self.insert_endpoint(*ip, endpoint)?;
            changes += change;
        }
        changes += self.apply_host_ports(&desired.host_ports)?;
        Ok(Applied { changes, gone: stale })
    }

    /// Tells everyone how long flows may be idle.
    pub fn set_timeouts(&mut self, seconds: &[u32; TIMEOUTS]) -> Result<(), DatapathError> {
        (0..).zip(seconds).try_for_each(|(class, seconds)| {
            self.timeouts.set(class, seconds, 0).map_err(DatapathError::map("timeouts"))
        })
    }

    fn stale_endpoints(&self, desired: &Desired) -> Result<Vec<Ip>, DatapathError> {
        let present = entries("endpoints", self.endpoints.iter())?;
        Ok(present.into_keys().filter(|ip| !desired.endpoints.contains_key(ip)).collect())
    }

    /// Makes one address reachable.
    pub fn insert_endpoint(&mut self, ip: Ip, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.endpoints.insert(&ip, endpoint, 0).map_err(DatapathError::map("endpoints"))
    }

    /// Makes one address unreachable; not there is fine.
    pub fn remove_endpoint(&mut self, ip: Ip) -> Result<(), DatapathError> {
        absent_is_fine(self.endpoints.remove(&ip)).map_err(DatapathError::map("endpoints"))
    }

    /// Makes ports of the node lead to pods, and says so at the addresses concerned.
    pub fn insert_host_ports(&mut self, host_ports: &[(HostPortKey, HostPort)]) -> Result<(), DatapathError> {
        for (key, to) in host_ports {
            self.host_ports.insert(key, to, 0).map_err(DatapathError::map("host_ports"))?;
        }
        for (ip, endpoint) in entries("endpoints", self.endpoints.iter())? {
            let concerned = host_ports.iter().any(|(key, _)| is_at(key, &ip));
            if endpoint.is_host() && !endpoint.has_host_ports() && concerned {
                let flags = endpoint.flags | Endpoint::HOST_PORTS;
                self.insert_endpoint(ip, &Endpoint { flags, ..endpoint })?;
            }
        }
        Ok(())
    }

    /// Removes all host ports of an endpoint. What is said at the node's addresses stays until everything is compared: it only costs time.
    pub fn remove_host_ports(&mut self, endpoint: u32) -> Result<(), DatapathError> {
        let present = entries("host_ports", self.host_ports.iter())?;
        for key in present.iter().filter(|(_, to)| to.endpoint == endpoint).map(|(key, _)| key) {
            absent_is_fine(self.host_ports.remove(key)).map_err(DatapathError::map("host_ports"))?;
        }
        Ok(())
    }

    fn remove_stale_host_ports(
        &mut self,
        desired: &BTreeMap<HostPortKey, HostPort>,
    ) -> Result<Changes, DatapathError> {
        let mut changes = Changes::default();
        let present = entries("host_ports", self.host_ports.iter())?;
        for key in present.keys().filter(|key| !desired.contains_key(key)) {
            absent_is_fine(self.host_ports.remove(key)).map_err(DatapathError::map("host_ports"))?;
            changes.removed += 1;
        }
        Ok(changes)
    }

    fn apply_host_ports(
        &mut self,
        desired: &BTreeMap<HostPortKey, HostPort>,
    ) -> Result<Changes, DatapathError> {
        let mut changes = Changes::default();
        let present = entries("host_ports", self.host_ports.iter())?;
        for (key, to) in desired {
            let Some(change) = difference(present.get(key), to) else { continue };
            self.host_ports.insert(key, to, 0).map_err(DatapathError::map("host_ports"))?;
            changes += change;
        }
        Ok(changes)
    }

    fn apply_node(&mut self, node: &Node) -> Result<Changes, DatapathError> {
        let failed = DatapathError::map("node");
        let present = self.node.get(&0, 0).map_err(&failed)?;
        let Some(change) = difference(Some(&present), node) else { return Ok(Changes::default()) };
        self.node.set(0, node, 0).map_err(&failed)?;
        Ok(change)
    }

    fn apply_uplinks(&mut self, desired: &BTreeMap<u32, Uplink>) -> Result<Changes, DatapathError> {
        let failed = DatapathError::map("uplinks");
        let present = entries("uplinks", self.uplinks.iter())?;
        let mut changes = Changes::default();
        for (ifindex, uplink) in desired {
            let Some(change) = difference(present.get(ifindex), uplink) else { continue };
            self.uplinks.insert(ifindex, uplink, 0).map_err(&failed)?;
            changes += change;
        }
        for ifindex in present.keys().filter(|ifindex| !desired.contains_key(ifindex)) {
            absent_is_fine(self.uplinks.remove(ifindex)).map_err(&failed)?;
            changes.removed += 1;
        }
        Ok(changes)
    }

    fn apply_routes(&mut self, desired: &BTreeMap<IpNet, Route>) -> Result<Changes, DatapathError> {
        let failed = DatapathError::map("routes");
        let present = self.present_routes()?;
        let desired: BTreeMap<_, _> =
            desired.iter().map(|(prefix, route)| (trie_prefix(prefix), route)).collect();
        let mut changes = Changes::default();
        for (&(length, ip), &route) in &desired {
            let Some(change) = difference(present.get(&(length, ip)), route) else { continue };
            self.routes.insert(&Key::new(length, ip), route, 0).map_err(&failed)?;
            changes += change;
        }
        for &(length, ip) in present.keys().filter(|key| !desired.contains_key(key)) {
            absent_is_fine(self.routes.remove(&Key::new(length, ip))).map_err(&failed)?;
            changes.removed += 1;
        }
        Ok(changes)
    }

    fn present_routes(&self) -> Result<BTreeMap<(u32, Ip), Route>, DatapathError> {
        let entries: Result<_, MapError> = self
            .routes
            .iter()
            .map(|entry| entry.map(|(key, route)| ((key.prefix_len(), key.data()), route)))
            .collect();
        entries.map_err(DatapathError::map("routes"))
    }

    /// Whether every map is still pinned.
    pub fn pins_intact(&self, bpf_dir: &Path) -> bool {
        MAPS.iter().all(|map| bpf_dir.join(map).exists())
    }

    /// Pins every map that is not pinned any more.
    pub fn repin(&self, bpf_dir: &Path) -> Result<(), DatapathError> {
        let maps: [(&str, &MapData); 6] = [
            ("host_ports", self.host_ports.map()),
            ("endpoints", self.endpoints.map()),
            ("routes", self.routes.map()),
            ("uplinks", self.uplinks.map()),
            ("node", self.node.map()),
            ("timeouts", self.timeouts.map()),
        ];
        for (name, map) in maps {
            repin(&bpf_dir.join(name), |pin| map.pin(pin))?;
        }
        for (name, map) in &self.others {
            repin(&bpf_dir.join(name), |pin| map.pin(pin))?;
        }
        Ok(())
    }
}

fn repin<E: Into<aya::pin::PinError>>(
    pin: &Path,
    do_pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), DatapathError> {
    if pin.exists() {
        return Ok(());
    }
    links::remove(pin)?;
    do_pin(pin).map_err(|source| DatapathError::Pin { path: pin.to_owned(), source: source.into() })
}

/// A prefix as the trie has it: IPv4 in its mapped form, 96 bits longer.
pub fn trie_prefix(prefix: &IpNet) -> (u32, Ip) {
    let length = u32::from(prefix.prefix_len());
    let mapped = if prefix.addr().is_ipv4() { Ip::V4_PREFIX_BITS } else { 0 };
    (length + mapped, prefix.network().into())
}

/// The other way round; `None` for a prefix no agent of ours writes.
pub fn prefix_of_trie(length: u32, ip: Ip) -> Option<IpNet> {
    let mapped = if ip.is_v4() { Ip::V4_PREFIX_BITS } else { 0 };
    let length = u8::try_from(length.checked_sub(mapped)?).ok()?;
    IpNet::new(IpAddr::from(ip), length).ok()
}

/// One of the object's maps, by its name.
pub fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, DatapathError> {
    take_any(ebpf, name)?.try_into().map_err(DatapathError::map(name))
}

fn take_any(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or(DatapathError::Missing { kind: "map", name })
}

/// A whole hash map, sorted.
pub fn entries<K: Pod + Ord, V: Pod>(
    map: &'static str,
    entries: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<BTreeMap<K, V>, DatapathError> {
    entries.collect::<Result<_, _>>().map_err(DatapathError::map(map))
}

fn difference<T: PartialEq>(present: Option<&T>, desired: &T) -> Option<Changes> {
    match present {
        Some(present) if present == desired => None,
        Some(_) => Some(Changes { updated: 1, ..Changes::default() }),
        None => Some(Changes { added: 1, ..Changes::default() }),
    }
}

/// Someone else may have removed it; the programs remove entries too.
pub fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_trie_in_both_families() {
        for text in ["0.0.0.0/0", "10.244.1.0/24", "192.0.2.1/32", "::/0", "fd00:10:244::/64", "fd00::1/128"]
        {
            let prefix: IpNet = text.parse().unwrap();
            let (length, ip) = trie_prefix(&prefix);
            assert_eq!(length, u32::from(prefix.prefix_len()) + if prefix.addr().is_ipv4() { 96 } else { 0 });
            assert_eq!(prefix_of_trie(length, ip), Some(prefix), "{text}");
        }
        assert_eq!(
            prefix_of_trie(8, Ip::from_v4([10, 0, 0, 0])),
            None,
            "an IPv4 address with an IPv6 length"
        );
    }

    #[test]
    fn bits_beyond_the_prefix_do_not_reach_the_trie() {
        assert_eq!(trie_prefix(&"10.244.1.7/24".parse().unwrap()), (120, Ip::from_v4([10, 244, 1, 0])));
    }
}

//! The index of Node objects: what the other nodes are and where they are.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::table::{Model, Table};

/// What a Node object says about the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeModel {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podCIDRs`, host bits cleared.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type `InternalIP`, the preferred of each family first.
    pub addresses: Vec<IpAddr>,
}

/// Why a Node object cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// Nothing to know it by.
    #[error("a Node object has no metadata.name")]
    NoName,
    /// A pod CIDR that is none.
    #[error("node {node}: spec.podCIDRs has {value:?}, which is not a prefix such as 10.244.1.0/24")]
    PodCidr {
        /// The node.
        node: String,
        /// What was found.
        value: String,
    },
    /// An address that is none.
    #[error(
        "node {node}: status.addresses has InternalIP {value:?}, which is not an address other nodes can reach"
    )]
    Address {
        /// The node.
        node: String,
        /// What was found.
        value: String,
    },
}

/// Every node that is known, by name.
pub type Nodes = Table<NodeModel>;

impl Model for NodeModel {
    type Object = Node;
    type Key = String;
    type Error = NodeError;

    fn key_of(object: &Node) -> Option<String> {
        object.metadata.name.clone().filter(|name| !name.is_empty())
    }

    fn read(object: &Node) -> Result<(String, Self), NodeError> {
        let name = Self::key_of(object).ok_or(NodeError::NoName)?;
        let spec = object.spec.as_ref();
        let cidrs = spec.and_then(|spec| spec.pod_cidrs.clone()).filter(|cidrs| !cidrs.is_empty());
        let cidrs = cidrs.or_else(|| spec?.pod_cidr.clone().map(|cidr| vec![cidr])).unwrap_or_default();
        let pod_cidrs = cidrs.into_iter().map(|value| parse_cidr(&name, value)).collect::<Result<_, _>>()?;
        let addresses =
            object.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
        let addresses = addresses
            .into_iter()
            .filter(|address| address.type_ == "InternalIP")
            .map(|address| parse_address(&name, address.address))
            .collect::<Result<_, _>>()?;
        Ok((name.clone(), Self { name, pod_cidrs, addresses }))
    }
}

fn parse_cidr(node: &str, value: String) -> Result<IpNet, NodeError> {
    let parsed: Option<IpNet> = value.parse().ok();
    parsed.map(|cidr| cidr.trunc()).ok_or_else(|| NodeError::PodCidr { node: node.to_owned(), value })
}

fn parse_address(node: &str, value: String) -> Result<IpAddr, NodeError> {
    let parsed = value.parse().ok().map(|address: IpAddr| address.to_canonical());
    parsed
        .filter(|address| !(address.is_unspecified() || address.is_loopback() || address.is_multicast()))
        .ok_or_else(|| NodeError::Address { node: node.to_owned(), value })
}

impl NodeModel {
    /// The node's address of one family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv4() == v4).copied()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn node(name: &str, cidrs: &[&str], addresses: &[&str]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_known_by_its_prefixes_and_addresses() {
        let mut nodes = Nodes::default();
        let object = node("a", &["10.244.1.9/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]);
        assert_eq!(nodes.apply(&object), Ok(true));
        assert_eq!(nodes.apply(&object), Ok(false), "nothing changed");
        let a = nodes.get("a").unwrap();
        assert_eq!(a.pod_cidrs, ["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()]);
        assert_eq!(a.address(true), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(a.address(false), Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn host_names_and_external_addresses_are_not_the_nodes_addresses() {
        let mut object = node("a", &[], &["192.0.2.1"]);
        for address in object.status.iter_mut().flat_map(|status| status.addresses.iter_mut().flatten()) {
            address.type_ = "ExternalIP".into();
        }
        assert_eq!(NodeModel::read(&object).unwrap().1.addresses, Vec::<IpAddr>::new());
    }

    #[test]
    fn the_single_pod_cidr_of_old_objects_counts() {
        let mut object = node("a", &[], &[]);
        object.spec.as_mut().unwrap().pod_cidr = Some("10.1.0.0/24".into());
        assert_eq!(NodeModel::read(&object).unwrap().1.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_bad_object_is_named_and_harms_nobody() {
        let mut nodes = Nodes::default();
        nodes.apply(&node("a", &["10.244.1.0/24"], &["192.0.2.1"])).unwrap();
        for (name, object) in [
            ("no prefix", node("a", &["10.244.1.0"], &[])),
            ("no address", node("a", &[], &["node-a"])),
            ("loopback", node("a", &[], &["127.0.0.1"])),
            ("unspecified", node("a", &[], &["::"])),
            ("no name", node("", &[], &[])),
        ] {
            assert!(nodes.apply(&object).is_err(), "{name}");
        }
        assert_eq!(nodes.get("a").unwrap().pod_cidrs.len(), 1, "the last good state stays");
    }

    #[test]
    fn a_reset_forgets_whom_it_does_not_name() {
        let mut nodes = Nodes::default();
        nodes.apply(&node("a", &[], &[])).unwrap();
        nodes.apply(&node("b", &["10.2.0.0/24"], &[])).unwrap();
        let listed = [node("b", &["nonsense"], &[]), node("c", &[], &[])];
        let reset = nodes.reset(&listed);
        assert_eq!((reset.changed, reset.errors.len()), (true, 1));
        assert!(!nodes.reset(&listed).changed, "the same list again");
        assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(nodes.get("b").unwrap().pod_cidrs.len(), 1);
    }
}

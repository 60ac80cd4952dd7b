//! Ports of the node that lead to pods: which can be, which are in each other's way, and what the maps hold for them.

use std::net::IpAddr;

use datapath_ebpf::{
    Ip, Port,
    maps::{HostPort, HostPortKey, OVERLAY_PORT},
};
use hypha_cni::protocol::{PortMapping, Transport};

use super::facts::{PodFacts, Routing};

/// Why a pod cannot have its host ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// Another pod has the port, or one that includes it.
    #[error(
        "host port {mapping} is taken by {owner}, which has {other}: a port of the node can be one pod's only"
    )]
    Taken {
        /// What was asked for.
        mapping: PortMapping,
        /// What is in its way.
        other: PortMapping,
        /// Whose that is.
        owner: String,
    },
    /// Two mappings of one pod contradict each other.
    #[error(
        "host ports {0} and {1} of the same pod contradict each other: one port can lead to one port only"
    )]
    Contradiction(PortMapping, PortMapping),
    /// The kernel lets nobody but the ends compute SCTP's checksum.
    #[error(
        "host port {0} cannot be: SCTP's checksum covers the ports, so hostPort and containerPort must be the same"
    )]
    Sctp(PortMapping),
    /// The mapping names an address of a family that the pod does not have.
    #[error("host port {0} cannot be: the pod has no address of that family; use another hostIP or none")]
    Family(PortMapping),
    /// The port is the overlay's.
    #[error(
        "host port {0} cannot be: packets between the nodes' pods arrive there (VXLAN); use another port, or --routing native"
    )]
    Overlay(PortMapping),
}

/// Whether a mapping is for all of the node's addresses, of both families.
fn is_for_all(mapping: &PortMapping) -> bool {
    mapping.host_ip.is_none_or(|address| address.is_unspecified())
}

/// Whether some packet would be for both.
pub fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    (a.host_port, a.protocol) == (b.host_port, b.protocol)
        && (is_for_all(a) || is_for_all(b) || a.host_ip == b.host_ip)
}

/// Whether a pod with these addresses can have these mappings, as far as other pods do not matter.
pub fn check(mappings: &[PortMapping], addresses: &[IpAddr]) -> Result<(), HostPortError> {
    for (number, mapping) in mappings.iter().enumerate() {
        if mapping.protocol == Transport::Sctp && mapping.host_port != mapping.container_port {
            return Err(HostPortError::Sctp(*mapping));
        }
        let reachable = |host: IpAddr| addresses.iter().any(|address| address.is_ipv4() == host.is_ipv4());
        if !is_for_all(mapping) && !mapping.host_ip.is_some_and(reachable) {
            return Err(HostPortError::Family(*mapping));
        }
        // The same twice is no contradiction: runtimes list a port once for each address family.
        let contradicts =
            |other: &&PortMapping| overlap(mapping, other) && other.container_port != mapping.container_port;
        if let Some(other) = mappings[..number].iter().find(contradicts) {
            return Err(HostPortError::Contradiction(*other, *mapping));
        }
    }
    Ok(())
}

/// Whether the node itself leaves the ports to pods.
pub fn check_node(mappings: &[PortMapping], routing: Routing) -> Result<(), HostPortError> {
    let is_overlay = |mapping: &&PortMapping| {
        routing == Routing::Tunnel && mapping.protocol == Transport::Udp && mapping.host_port == OVERLAY_PORT
    };
    mappings.iter().find(is_overlay).map_or(Ok(()), |mapping| Err(HostPortError::Overlay(*mapping)))
}

/// What `host_ports` holds for a pod.
pub fn entries(pod: &PodFacts) -> impl Iterator<Item = (HostPortKey, HostPort)> + '_ {
    pod.host_ports.iter().flat_map(|mapping| {
        pod.addresses
            .iter()
            .filter_map(|address| Some((key(mapping, address)?, value(pod, mapping, address))))
    })
}

/// `None` when the mapping is for an address of the other family.
fn key(mapping: &PortMapping, pod: &IpAddr) -> Option<HostPortKey> {
    let address = match mapping.host_ip {
        Some(address) if !is_for_all(mapping) => {
            if address.is_ipv4() != pod.is_ipv4() {
                return None;
            }
            Ip::from(address)
        }
        _ => all_addresses(pod.is_ipv4()),
    };
    Some(HostPortKey {
        address,
        port: Port::new(mapping.host_port),
        protocol: mapping.protocol.number(),
        reserved: 0,
    })
}

fn value(pod: &PodFacts, mapping: &PortMapping, address: &IpAddr) -> HostPort {
    HostPort {
        address: (*address).into(),
        endpoint: pod.id,
        port: Port::new(mapping.container_port),
        reserved: [0; 2],
    }
}

/// What stands for all of the node's addresses of a family.
const fn all_addresses(v4: bool) -> Ip {
    if v4 { Ip::from_v4([0; 4]) } else { Ip::UNSPECIFIED }
}

/// Whether a host port is at this address of the node.
pub fn is_at(key: &HostPortKey, address: &Ip) -> bool {
    key.address == *address || key.address == all_addresses(address.is_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> PortMapping {
        // PROTOCOL ADDRESS HOST CONTAINER, the address "-" for none.
        let [protocol, address, host_port, container_port] = text.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        PortMapping {
            host_port: host_port.parse().unwrap(),
            container_port: container_port.parse().unwrap(),
            protocol: protocol.parse().unwrap(),
            host_ip: (address != "-").then(|| address.parse().unwrap()),
        }
    }

    #[test]
    fn mappings_overlap_when_a_packet_could_be_for_both() {
        for (a, b, expected) in [
            ("tcp - 80 8080", "tcp - 80 9090", true),
            ("tcp - 80 8080", "udp - 80 8080", false),
            ("tcp - 80 8080", "tcp - 81 8080", false),
            ("tcp - 80 8080", "tcp 192.0.2.1 80 8080", true),
            ("tcp 0.0.0.0 80 8080", "tcp 2001:db8::1 80 8080", true),
            ("tcp :: 80 8080", "tcp 192.0.2.1 80 8080", true),
            ("tcp 192.0.2.1 80 8080", "tcp 192.0.2.1 80 8081", true),
            ("tcp 192.0.2.1 80 8080", "tcp 192.0.2.2 80 8080", false),
            ("tcp 192.0.2.1 80 8080", "tcp 2001:db8::1 80 8080", false),
            ("tcp 127.0.0.1 80 8080", "tcp 192.0.2.1 80 8080", false),
        ] {
            assert_eq!(overlap(&mapping(a), &mapping(b)), expected, "{a}, {b}");
            assert_eq!(overlap(&mapping(b), &mapping(a)), expected, "{b}, {a}");
        }
    }

    #[test]
    fn what_a_pod_can_have() {
        let v4: IpAddr = "10.244.1.5".parse().unwrap();
        let v6: IpAddr = "fd00::5".parse().unwrap();
        let (dual, only_v4) = (&[v4, v6][..], &[v4][..]);
        let one = |text: &str| vec![mapping(text)];
        for (mappings, addresses, expected) in [
            (one("tcp - 80 8080"), dual, None),
            (one("sctp - 80 80"), dual, None),
            (one("sctp - 80 81"), dual, Some(HostPortError::Sctp(mapping("sctp - 80 81")))),
            (one("tcp 2001:db8::1 80 80"), dual, None),
            (
                one("tcp 2001:db8::1 80 80"),
                only_v4,
                Some(HostPortError::Family(mapping("tcp 2001:db8::1 80 80"))),
            ),
            (one("tcp :: 80 80"), only_v4, None),
            (vec![mapping("tcp - 80 80"), mapping("tcp - 80 80")], dual, None),
            (vec![mapping("tcp 192.0.2.1 80 80"), mapping("tcp 192.0.2.2 80 81")], dual, None),
            (
                vec![mapping("tcp - 80 80"), mapping("udp - 80 81"), mapping("tcp 192.0.2.1 80 81")],
                dual,
                Some(HostPortError::Contradiction(mapping("tcp - 80 80"), mapping("tcp 192.0.2.1 80 81"))),
            ),
        ] {
            assert_eq!(check(&mappings, addresses).err(), expected, "{mappings:?}");
        }
    }

    #[test]
    fn the_overlays_port_is_no_pods() {
        for (text, routing, refused) in [
            ("udp - 8472 8472", Routing::Tunnel, true),
            ("udp 192.0.2.1 8472 53", Routing::Tunnel, true),
            ("udp - 8472 8472", Routing::Native, false),
            ("tcp - 8472 8472", Routing::Tunnel, false),
            ("udp - 8473 8472", Routing::Tunnel, false),
        ] {
            let expected = refused.then(|| HostPortError::Overlay(mapping(text)));
            assert_eq!(check_node(&[mapping(text)], routing).err(), expected, "{text} {routing:?}");
        }
    }

    #[test]
    fn one_mapping_is_an_entry_for_each_family_it_can_be_reached_by() {
        let pod = |mapping| PodFacts {
            id: 3,
            ifindex: 12,
            mac: datapath_ebpf::Mac { bytes: [2; 6] },
            addresses: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            host_ports: vec![mapping],
        };
        let text = |mapping_text: &str| -> Vec<String> {
            let pod = pod(mapping(mapping_text));
            let row = |(key, to): (HostPortKey, HostPort)| {
                format!("{} {} {} -> {} {}", key.address, key.port, key.protocol, to.address, to.port)
            };
            entries(&pod).map(row).collect()
        };
        let all = ["0.0.0.0 80 6 -> 10.244.1.5 8080", ":: 80 6 -> fd00::5 8080"];
        for address in ["-", "0.0.0.0", "::"] {
            assert_eq!(text(&format!("tcp {address} 80 8080")), all, "{address}");
        }
        assert_eq!(text("udp 192.0.2.1 53 53"), ["192.0.2.1 53 17 -> 10.244.1.5 53"]);
        assert_eq!(text("sctp 2001:db8::1 9 9"), ["2001:db8::1 9 132 -> fd00::5 9"]);
    }
}

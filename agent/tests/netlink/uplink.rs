//! Uplinks, own addresses and next hops.

use std::{collections::BTreeSet, net::IpAddr};

use hypha_agent::netlink::{NamedSource, Netlink, NetlinkError, SourceReason, UplinkInfo};

use super::{Pod, eventually, ip, ip_list, on_a_node, wire, wiring};

/// A device with a carrier.
fn device(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}peer"));
    ip(&format!("link set {name}peer up"));
    ip(&format!("link set {name} up"));
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|it| it.parse().unwrap()).collect()
}

async fn names(netlink: &Netlink, wanted: &[&str], node: &[&str]) -> Vec<String> {
    let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    let found = netlink.uplinks(&wanted, &addresses(node)).await.unwrap();
    found.into_iter().map(|uplink| uplink.name).collect()
}

async fn only(netlink: &Netlink, name: &str) -> UplinkInfo {
    netlink.uplinks(&[name.to_owned()], &[]).await.unwrap().remove(0)
}

#[test]
fn names_come_before_node_addresses_and_these_before_default_routes() {
    on_a_node(async |netlink| {
        for name in ["named", "holder", "routed", "routed6"] {
            device(name);
        }
        ip("address add 10.0.1.1/24 dev holder");
        ip("address add 10.0.2.1/24 dev routed");
        ip("address add 2001:db8:3::1/64 dev routed6 nodad");
        ip("route add default via 10.0.2.254");
        ip("-6 route add default via 2001:db8:3::fe");
        wire(&netlink, &Pod::new(), &wiring(&["10.244.1.5"])).await;
        netlink.ensure_overlay(1450).await.unwrap();
        let table: [(&[&str], &[&str], &[&str]); 5] = [
            (&["named"], &["10.0.1.1"], &["named"]),
            (&["routed", "named"], &[], &["routed", "named"]),
            (&[], &["10.0.1.1"], &["holder"]),
            (&[], &["10.0.1.1", "2001:db8:3::1"], &["holder", "routed6"]),
            (&[], &["10.99.99.99"], &["routed", "routed6"]),
        ];
        for (wanted, node, expected) in table {
            let mut found = names(&netlink, wanted, node).await;
            if wanted.is_empty() {
                found.sort();
            }
            assert_eq!(found, expected, "--device {wanted:?}, node addresses {node:?}");
        }
    });
}

#[test]
fn every_next_hop_of_a_multipath_default_route_counts() {
    on_a_node(async |netlink| {
        device("left");
        device("right");
        ip("address add 10.0.1.1/24 dev left");
        ip("address add 10.0.2.1/24 dev right");
        ip("route add default nexthop via 10.0.1.254 nexthop via 10.0.2.254");
        let mut found = names(&netlink, &[], &[]).await;
        found.sort();
        assert_eq!(found, ["left", "right"]);
    });
}

#[test]
fn a_missing_device_and_no_device_at_all_are_errors_that_tell_what_to_do() {
    on_a_node(async |netlink| {
        let missing = netlink.uplinks(&["nosuch0".into()], &[]).await.unwrap_err();
        assert!(matches!(&missing, NetlinkError::NoSuchDevice { name } if name == "nosuch0"), "{missing}");
        // The node's addresses are on the loopback device here, which is never an uplink.
        let none = netlink.uplinks(&[], &addresses(&["192.0.2.1"])).await.unwrap_err();
        assert!(none.to_string().contains("--device"), "{none}");
    });
}

#[test]
fn the_masquerade_source_is_what_the_kernel_would_choose() {
    on_a_node(async |netlink| {
        device("up0");
        ip("link set up0 mtu 9000");
        ip("address add 10.0.1.1/24 dev up0");
        ip("address add 10.0.2.1/24 dev up0");
        ip("address add 2001:db8:1::1/64 dev up0 nodad");
        ip("address add 2001:db8:1::2/64 dev up0 nodad");
        let before = only(&netlink, "up0").await;
        assert_eq!(before.mtu, 9000);
        assert_eq!(
            before.masquerade_v4,
            Some("10.0.1.1".parse().unwrap()),
            "the first, without a default route"
        );
        let mut own = before.addresses.clone();
        own.sort();
        assert_eq!(own, addresses(&["10.0.1.1", "10.0.2.1", "2001:db8:1::1", "2001:db8:1::2"]));

        // Not the first address, but the one on the router's subnet, or the one that the route names.
        ip("route add default via 10.0.2.254 dev up0");
        ip("-6 route add default via 2001:db8:1::fe dev up0 src 2001:db8:1::1");
        let after = only(&netlink, "up0").await;
        assert_eq!(after.masquerade_v4, Some("10.0.2.1".parse().unwrap()));
        assert_eq!(after.masquerade_v6, Some("2001:db8:1::1".parse().unwrap()));
    });
}

#[test]
fn fleeting_addresses_are_no_masquerade_source() {
    on_a_node(async |netlink| {
        device("up0");
        ip("address add 2001:db8:1::1/64 dev up0 nodad preferred_lft 0");
        ip("address add 2001:db8:1::2/64 dev up0 nodad");
        assert_eq!(only(&netlink, "up0").await.masquerade_v6, Some("2001:db8:1::2".parse().unwrap()));
    });
}

#[test]
fn a_device_of_one_family_masquerades_that_family_only() {
    on_a_node(async |netlink| {
        device("four");
        device("six");
        ip("address add 10.0.1.1/24 dev four");
        ip("address add 2001:db8:1::1/64 dev six nodad");
        let (four, six) = (only(&netlink, "four").await, only(&netlink, "six").await);
        assert_eq!((four.masquerade_v4, four.masquerade_v6), (Some("10.0.1.1".parse().unwrap()), None));
        assert_eq!((six.masquerade_v4, six.masquerade_v6), (None, Some("2001:db8:1::1".parse().unwrap())));
    });
}

#[test]
fn an_unnumbered_device_with_a_default_route_masquerades_with_the_nodes_address() {
    on_a_node(async |netlink| {
        device("up0");
        ip("route add default dev up0");
        assert_eq!(only(&netlink, "up0").await.masquerade_v4, Some("192.0.2.1".parse().unwrap()));
    });
}

#[test]
fn why_it_is_that_source() {
    on_a_node(async |netlink| {
        device("up0");
        let reasons = async |expected: (SourceReason, SourceReason), when: &str| {
            let it = only(&netlink, "up0").await;
            assert_eq!((it.reason_v4, it.reason_v6), expected, "{when}");
        };
        reasons((SourceReason::Missing, SourceReason::Missing), "nothing").await;
        ip("address add 10.0.1.1/24 dev up0");
        ip("address add 10.0.2.1/24 dev up0");
        ip("address add 2001:db8:1::1/64 dev up0 nodad");
        reasons((SourceReason::First, SourceReason::First), "addresses").await;
        ip("route add default via 10.0.1.254");
        ip("-6 route add default via 2001:db8:1::fe");
        reasons((SourceReason::Chosen, SourceReason::Chosen), "default routes").await;
        ip("route replace default via 10.0.1.254 src 10.0.2.1");
        ip("-6 route replace default via 2001:db8:1::fe src 2001:db8:1::1");
        reasons((SourceReason::Named, SourceReason::Named), "that name a source").await;
        assert_eq!(only(&netlink, "up0").await.masquerade_v4, Some("10.0.2.1".parse().unwrap()));
    });
}

#[test]
fn routes_that_name_their_source_are_listed_per_device() {
    on_a_node(async |netlink| {
        device("up0");
        device("up1");
        ip("address add 10.0.1.1/24 dev up0");
        ip("address add 10.0.1.2/24 dev up0");
        ip("address add 10.0.3.1/24 dev up1");
        ip("address add 2001:db8:1::1/64 dev up0 nodad");
        ip("address add 2001:db8:1::2/64 dev up0 nodad");
        ip("route add default via 10.0.1.254 src 10.0.1.1");
        ip("route add 198.51.100.0/24 via 10.0.1.254 src 10.0.1.2");
        ip("route add 203.0.113.0/24 via 10.0.1.254");
        ip("-6 route add 2001:db8:9::/64 via 2001:db8:1::fe src 2001:db8:1::2");
        // A route of the agent's own is none of the operator's.
        ip("route add 10.244.2.0/24 via 10.0.1.254 src 10.0.1.2 proto 72");
        let listed = |routes: &[(&str, &str)]| -> Vec<NamedSource> {
            let named = |(prefix, source): &(&str, &str)| NamedSource {
                prefix: prefix.parse().unwrap(),
                source: source.parse().unwrap(),
            };
            routes.iter().map(named).collect()
        };
        let mut found = only(&netlink, "up0").await.named_sources;
        found.sort();
        let connected = ("10.0.1.0/24", "10.0.1.1");
        assert_eq!(
            found,
            listed(&[connected, ("198.51.100.0/24", "10.0.1.2"), ("2001:db8:9::/64", "2001:db8:1::2")])
        );
        assert_eq!(only(&netlink, "up1").await.named_sources, listed(&[("10.0.3.0/24", "10.0.3.1")]));
    });
}

#[test]
fn local_addresses_are_those_that_others_can_use() {
    on_a_node(async |netlink| {
        device("up0");
        device("up1");
        device("spare");
        ip("address add 10.0.1.1/24 dev up0");
        ip("address add 10.0.1.2/24 dev up0");
        ip("address add 10.0.1.3/32 dev up1");
        ip("address add 10.0.1.4/32 dev spare");
        ip("address add 10.0.1.5 peer 10.0.9.9/32 dev up1");
        ip("address add 169.254.7.7/16 dev up0");
        ip("address add 2001:db8:1::1/64 dev up0 nodad");
        ip("address add 2001:db8:1::2/64 dev up0 nodad preferred_lft 0");
        // Duplicate address detection goes on for a second at least.
        ip("address add 2001:db8:1::3/64 dev up0");
        let mut found = netlink.local_addresses().await.unwrap();
        found.all.sort();
        found.usable.sort();
        let mut expected = addresses(&[
            "10.0.1.1",
            "10.0.1.2",
            "10.0.1.3",
            "10.0.1.4",
            "10.0.1.5",
            "192.0.2.1",
            "2001:db8::1",
            "2001:db8:1::1",
            "2001:db8:1::2",
        ]);
        assert_eq!(found.usable, expected);
        expected.push("2001:db8:1::3".parse().unwrap());
        assert_eq!(found.all, expected);
        eventually("the address has become usable", || {
            ip_list("address show dev up0").iter().all(|device| {
                let list = device["addr_info"].as_array().unwrap();
                list.iter().all(|address| address["tentative"].is_null())
            })
        })
        .await;
        assert_eq!(netlink.local_addresses().await.unwrap().usable.len(), expected.len());
    });
}

#[test]
fn a_next_hop_is_on_the_link_or_behind_a_router_or_nowhere() {
    on_a_node(async |netlink| {
        device("up0");
        let ifindex = ip_list("link show dev up0")[0]["ifindex"].as_u64().unwrap();
        ip("address add 10.0.1.1/24 dev up0");
        ip("address add 2001:db8:1::1/64 dev up0 nodad");
        ip("route add 10.0.9.0/24 via 10.0.1.254 mtu 1400");
        ip("-6 route add 2001:db8:9::/64 via 2001:db8:1::fe");
        ip("route add 10.0.8.0/24 via inet6 2001:db8:1::fe dev up0");
        ip("route add unreachable 10.0.7.0/24");
        ip("route add blackhole 10.0.6.0/24");
        // (destination, gateway, source, mtu)
        let reachable = [
            ("10.0.1.2", None, "10.0.1.1", 1500),
            ("10.0.9.9", Some("10.0.1.254"), "10.0.1.1", 1400),
            ("10.0.8.8", Some("2001:db8:1::fe"), "10.0.1.1", 1500),
            ("2001:db8:1::2", None, "2001:db8:1::1", 1500),
            ("2001:db8:9::9", Some("2001:db8:1::fe"), "2001:db8:1::1", 1500),
        ];
        for (to, gateway, source, mtu) in reachable {
            let to = to.parse().unwrap();
            let hop = netlink.routes_to(vec![to]).await.unwrap()[&to];
            assert_eq!(u64::from(hop.ifindex), ifindex, "{to}");
            assert_eq!(hop.gateway, gateway.map(|it| it.parse().unwrap()), "{to}");
            assert_eq!(hop.source, Some(source.parse().unwrap()), "{to}");
            assert_eq!(hop.mtu, mtu, "{to}");
        }
        let nowhere = ["10.0.7.7", "10.0.6.6", "203.0.113.1", "2001:db8:77::1", "10.0.1.1", "2001:db8:1::1"];
        let all = nowhere.iter().copied().chain(reachable.map(|(to, ..)| to));
        let hops = netlink.routes_to(all.map(|to| to.parse().unwrap()).collect()).await.unwrap();
        let expected: BTreeSet<IpAddr> = reachable.iter().map(|(to, ..)| to.parse().unwrap()).collect();
        assert_eq!(hops.into_keys().collect::<BTreeSet<_>>(), expected, "many at once, some of them nowhere");
    });
}

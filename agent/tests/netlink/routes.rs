//! The agent's routes among others.

use std::{collections::BTreeSet, net::IpAddr};

use hypha_agent::netlink::{KernelRoute, Netlink, RouteChanges, RouteTarget};
use serde_json::Value;

use super::{NODE_V4, NODE_V6, ip, ip_list, on_a_node};

/// An uplink `up0` with a router on it in both families; returns its ifindex.
fn uplink() -> u32 {
    ip("link add up0 type veth peer name up0peer");
    ip("link set up0peer up");
    ip("link set up0 up");
    ip("address add 10.0.0.1/24 dev up0");
    ip("address add 2001:db8:1::1/64 dev up0 nodad");
    ifindex("up0")
}

fn ifindex(device: &str) -> u32 {
    let number = ip_list(&format!("link show dev {device}"))[0]["ifindex"].as_u64().unwrap();
    number.try_into().unwrap()
}

fn route(prefix: &str, target: RouteTarget) -> KernelRoute {
    KernelRoute { prefix: prefix.parse().unwrap(), target, source: None, metric: None }
}

fn gateway(ifindex: u32, gateway: &str) -> RouteTarget {
    RouteTarget::Gateway { ifindex, gateway: gateway.parse().unwrap() }
}

fn tunnel(ifindex: u32, remote: &str) -> RouteTarget {
    RouteTarget::Tunnel { ifindex, id: 1, remote: remote.parse().unwrap() }
}

/// The agent's routes of both families, as `ip` shows them.
fn ours() -> Vec<Value> {
    ["-4", "-6"]
        .iter()
        .flat_map(|family| ip_list(&format!("{family} route show table main proto 72")))
        .collect()
}

async fn sync(netlink: &Netlink, wanted: &[KernelRoute]) -> RouteChanges {
    let wanted: BTreeSet<KernelRoute> = wanted.iter().cloned().collect();
    let changes = netlink.sync_routes(&wanted).await.unwrap();
    let again = netlink.sync_routes(&wanted).await.unwrap();
    assert_eq!(again, RouteChanges::default(), "what was synchronised is found in order");
    changes
}

#[test]
fn every_kind_of_route_is_made_as_wanted_and_recognised() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        let overlay = netlink.ensure_overlay(1450).await.unwrap();
        let source = |ip: &str| Some(ip.parse::<IpAddr>().unwrap());
        let wanted = [
            KernelRoute { source: source(NODE_V4), ..route("10.244.2.0/24", gateway(up0, "10.0.0.2")) },
            KernelRoute { source: source(NODE_V6), ..route("fd00:2::/64", gateway(up0, "2001:db8:1::2")) },
            KernelRoute { source: source(NODE_V4), ..route("10.244.3.0/24", tunnel(overlay, "10.0.0.3")) },
            route("10.244.4.0/24", tunnel(overlay, "2001:db8:1::4")),
            route("fd00:3::/64", tunnel(overlay, "10.0.0.3")),
            KernelRoute { source: source(NODE_V6), ..route("fd00:4::/64", tunnel(overlay, "2001:db8:1::4")) },
            KernelRoute { metric: Some(9999), ..route("10.244.1.0/24", RouteTarget::Unreachable) },
            KernelRoute { metric: Some(9999), ..route("fd00:1::/64", RouteTarget::Unreachable) },
            route("10.244.1.5/32", RouteTarget::Link { ifindex: up0 }),
            route("fd00:1::5/128", RouteTarget::Link { ifindex: up0 }),
        ];
        assert_eq!(sync(&netlink, &wanted).await, RouteChanges { added: 10, removed: 0 });

        let found = |destination: &str| {
            let all = ours();
            all.into_iter().find(|it| it["dst"] == destination).unwrap_or_else(|| panic!("no {destination}"))
        };
        let native = found("10.244.2.0/24");
        assert_eq!((&native["gateway"], &native["prefsrc"]), (&"10.0.0.2".into(), &NODE_V4.into()));
        assert_eq!(found("fd00:2::/64")["prefsrc"], NODE_V6);
        // In JSON the tunnel's `dst` would hide the route's.
        for (shown, encap) in [
            ("route show 10.244.3.0/24", "encap ip id 1 src 0.0.0.0 dst 10.0.0.3 "),
            ("route show 10.244.4.0/24", "encap ip6 id 1 src :: dst 2001:db8:1::4 "),
            ("-6 route show fd00:3::/64", "encap ip id 1 src 0.0.0.0 dst 10.0.0.3 "),
            ("-6 route show fd00:4::/64", "encap ip6 id 1 src :: dst 2001:db8:1::4 "),
        ] {
            let shown = ip(shown);
            assert!(shown.contains(encap) && shown.contains("dev hypha_vxlan"), "{shown}");
        }
        assert_eq!(found("10.244.1.0/24")["type"], "unreachable");
        assert_eq!(found("fd00:1::/64")["metric"], 9999);
        assert_eq!(found("10.244.1.5")["dev"], "up0");
        assert_eq!(ip_list("route get 10.244.3.9")[0]["prefsrc"], NODE_V4);

        assert_eq!(sync(&netlink, &[]).await, RouteChanges { added: 0, removed: 10 });
        assert!(ours().is_empty(), "{:?}", ours());
    });
}

#[test]
fn only_what_differs_is_touched() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        let keep = route("10.244.2.0/24", gateway(up0, "10.0.0.2"));
        let before = route("fd00:2::/64", gateway(up0, "2001:db8:1::2"));
        let after = route("fd00:2::/64", gateway(up0, "2001:db8:1::3"));
        sync(&netlink, &[keep.clone(), before]).await;
        assert_eq!(sync(&netlink, &[keep, after]).await, RouteChanges { added: 1, removed: 0 });
        let ipv6 = ip_list("-6 route show proto 72");
        assert_eq!(ipv6.len(), 1, "replaced, not added beside: {ipv6:?}");
        assert_eq!(ipv6[0]["gateway"], "2001:db8:1::3");
    });
}

#[test]
fn a_kind_of_target_gives_way_to_another_in_place() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        let overlay = netlink.ensure_overlay(1450).await.unwrap();
        for (prefix, router, node) in
            [("10.244.2.0/24", "10.0.0.2", "10.0.0.9"), ("fd00:2::/64", "2001:db8:1::2", "2001:db8:1::9")]
        {
            let targets =
                [gateway(up0, router), tunnel(overlay, node), RouteTarget::Unreachable, gateway(up0, router)];
            for target in targets {
                let changes = sync(&netlink, &[route(prefix, target)]).await;
                assert_eq!(changes.added, 1, "{target:?}");
                assert_eq!(ours().len(), 1, "{:?}", ours());
            }
        }
    });
}

#[test]
fn what_someone_removed_or_changed_comes_back() {
    for damage in [
        "route delete 10.244.2.0/24",
        "route replace 10.244.2.0/24 via 10.0.0.7 proto 72",
        "route replace unreachable 10.244.2.0/24 proto 72",
        "route replace 10.244.2.0/24 proto 72 nexthop via 10.0.0.7 nexthop via 10.0.0.8",
        "route add 10.244.9.0/24 via 10.0.0.7 proto 72",
        "-6 route add fd00:9::/64 via 2001:db8:1::7 proto 72",
    ] {
        on_a_node(async move |netlink| {
            let wanted = [route("10.244.2.0/24", gateway(uplink(), "10.0.0.2"))];
            sync(&netlink, &wanted).await;
            let intact = ours();
            ip(damage);
            assert_ne!(ours(), intact, "ip {damage} does damage");
            sync(&netlink, &wanted).await;
            assert_eq!(ours(), intact, "after ip {damage}");
        });
    }
}

#[test]
fn routes_of_others_stay_whatever_they_lead_to() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        ip("route add 10.244.2.0/24 via 10.0.0.7 proto static metric 50");
        ip("route add 10.99.0.0/16 via 10.0.0.7 proto static");
        ip("-6 route add fd00:99::/64 via 2001:db8:1::7 proto static");
        ip("route add 10.98.0.0/16 via 10.0.0.7 proto 72 table 100");
        let others = || {
            (
                ip("route show table all proto static"),
                ip("-6 route show proto static"),
                ip("route show table 100"),
            )
        };
        let before = others();
        sync(&netlink, &[route("10.244.2.0/24", gateway(up0, "10.0.0.2"))]).await;
        sync(&netlink, &[]).await;
        assert_eq!(others(), before);
    });
}

#[test]
fn a_route_of_someone_else_in_the_same_place_is_reported_and_the_rest_is_made() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        ip("route add 10.244.2.0/24 via 10.0.0.7 proto static");
        let wanted = BTreeSet::from([
            route("10.244.2.0/24", gateway(up0, "10.0.0.2")),
            route("10.244.3.0/24", gateway(up0, "10.0.0.3")),
        ]);
        let refused = netlink.sync_routes(&wanted).await.unwrap_err();
        assert!(refused.to_string().contains("10.244.2.0/24"), "{refused}");
        assert_eq!(ip_list("route show 10.244.2.0/24")[0]["gateway"], "10.0.0.7");
        assert_eq!(ip_list("route show 10.244.3.0/24")[0]["gateway"], "10.0.0.3");
    });
}

#[test]
fn hundreds_of_routes_fit() {
    on_a_node(async |netlink| {
        let up0 = uplink();
        let wanted: Vec<KernelRoute> = (0..1000)
            .map(|i| route(&format!("10.{}.{}.0/24", 100 + i / 250, i % 250), gateway(up0, "10.0.0.2")))
            .collect();
        assert_eq!(sync(&netlink, &wanted).await.added, 1000);
        assert_eq!(sync(&netlink, &wanted[..1]).await.removed, 999);
    });
}

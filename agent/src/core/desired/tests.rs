//! Two nodes on one link, in both routing modes; each test changes one fact.

use hypha_cni::protocol::{PortMapping, Transport};

use super::*;
use crate::core::{
    facts::{LocalAddresses, NextHop, SourceReason},
    nodes,
};

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn cluster() -> Nodes {
    let mut all = Nodes::default();
    for node in [
        nodes::tests::node("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]),
        nodes::tests::node("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2", "2001:db8::2"]),
    ] {
        all.apply(&node).unwrap();
    }
    all
}

pub fn facts(routing: Routing) -> Facts {
    let hop = NextHop { ifindex: 2, gateway: None, source: None, mtu: 1500 };
    Facts {
        node_name: "a".into(),
        routing,
        masquerade: true,
        exempt_cidrs: Vec::new(),
        mtu: None,
        uplinks: vec![UplinkInfo {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            masquerade_v4: Some(ip("192.0.2.1")),
            masquerade_v6: Some(ip("2001:db8::1")),
            reason_v4: SourceReason::Chosen,
            reason_v6: SourceReason::Chosen,
            named_sources: Vec::new(),
        }],
        overlay_ifindex: (routing == Routing::Tunnel).then_some(7),
        next_hops: [(ip("192.0.2.2"), hop), (ip("2001:db8::2"), hop)].into(),
        local: local(&["192.0.2.1", "2001:db8::1"]),
        pods: vec![PodFacts {
            id: 3,
            ifindex: 12,
            mac: Mac { bytes: [2, 0, 0, 0, 0, 3] },
            addresses: vec![ip("10.244.1.5"), ip("fd00:1::5")],
            host_ports: Vec::new(),
        }],
    }
}

fn local(addresses: &[&str]) -> LocalAddresses {
    let all: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    LocalAddresses { usable: all.clone(), all }
}

/// One line per route, so that a test reads like the table it expects.
fn lines(compiled: &Compiled) -> Vec<String> {
    let line = |(prefix, route): (&IpNet, &Route)| {
        let kind = match route.kind {
            1 => "local",
            2 => "native",
            3 => "tunnel",
            _ => "exempt",
        };
        let mtu = if route.mtu == u16::MAX { "any".to_owned() } else { route.mtu.to_string() };
        format!("{prefix} {kind} {} dev {} mtu {mtu}", route.next_hop, route.ifindex)
    };
    compiled.desired.routes.iter().map(line).collect()
}

#[test]
fn native_routes_lead_to_the_other_nodes_addresses() {
    let compiled = compile(&cluster(), &facts(Routing::Native));
    assert_eq!(
        lines(&compiled),
        [
            "10.244.1.0/24 local :: dev 0 mtu any",
            "10.244.2.0/24 native 192.0.2.2 dev 2 mtu 1500",
            "192.0.2.2/32 native 192.0.2.2 dev 2 mtu 1500",
            "2001:db8::2/128 native 2001:db8::2 dev 2 mtu 1500",
            "fd00:1::/64 local :: dev 0 mtu any",
            "fd00:2::/64 native 2001:db8::2 dev 2 mtu 1500",
        ]
    );
    assert!(compiled.problems.is_empty());
}

#[test]
fn a_node_behind_a_router_is_reached_through_it() {
    let mut facts = facts(Routing::Native);
    let hop = NextHop { ifindex: 4, gateway: Some(ip("192.0.2.254")), source: None, mtu: 1400 };
    facts.next_hops.insert(ip("192.0.2.2"), hop);
    let compiled = compile(&cluster(), &facts);
    let routed = compiled.desired.routes[&net("10.244.2.0/24")];
    assert_eq!((IpAddr::from(routed.next_hop), routed.ifindex, routed.mtu), (ip("192.0.2.254"), 4, 1400));
}

#[test]
fn tunnels_prefer_the_smaller_outer_header() {
    let compiled = compile(&cluster(), &facts(Routing::Tunnel));
    assert_eq!(
        lines(&compiled),
        [
            "10.244.1.0/24 local :: dev 0 mtu any",
            "10.244.2.0/24 tunnel 192.0.2.2 dev 7 mtu 1450",
            "192.0.2.2/32 tunnel 192.0.2.2 dev 7 mtu 1450",
            "2001:db8::2/128 tunnel 192.0.2.2 dev 7 mtu 1450",
            "fd00:1::/64 local :: dev 0 mtu any",
            "fd00:2::/64 tunnel 192.0.2.2 dev 7 mtu 1450",
        ]
    );
    assert_eq!(compiled.desired.node.overlay_ifindex, 7);
}

#[test]
fn a_node_with_ipv6_only_is_tunnelled_to_over_ipv6() {
    let mut nodes = cluster();
    nodes.apply(&nodes::tests::node("b", &["10.244.2.0/24"], &["2001:db8::2"])).unwrap();
    let compiled = compile(&nodes, &facts(Routing::Tunnel));
    let routed = compiled.desired.routes[&net("10.244.2.0/24")];
    assert_eq!((IpAddr::from(routed.next_hop), routed.mtu), (ip("2001:db8::2"), 1430));
}

#[test]
fn the_kernel_gets_routes_for_the_nodes_own_sockets() {
    let route = |prefix: &str, target, source: Option<&str>, metric| KernelRoute {
        prefix: net(prefix),
        target,
        source: source.map(ip),
        metric,
    };
    let own = [
        route("10.244.1.0/24", RouteTarget::Unreachable, None, Some(4096)),
        route("fd00:1::/64", RouteTarget::Unreachable, None, Some(4096)),
        route("10.244.1.5/32", RouteTarget::Link { ifindex: 12 }, Some("192.0.2.1"), None),
        route("fd00:1::5/128", RouteTarget::Link { ifindex: 12 }, Some("2001:db8::1"), None),
    ];
    let gateway = |address| RouteTarget::Gateway { ifindex: 2, gateway: ip(address) };
    let tunnel = RouteTarget::Tunnel { ifindex: 7, id: 1, remote: ip("192.0.2.2") };
    for (routing, v4, v6) in
        [(Routing::Native, gateway("192.0.2.2"), gateway("2001:db8::2")), (Routing::Tunnel, tunnel, tunnel)]
    {
        let mut expected = BTreeSet::from(own.clone());
        expected.insert(route("10.244.2.0/24", v4, Some("192.0.2.1"), None));
        expected.insert(route("fd00:2::/64", v6, Some("2001:db8::1"), None));
        assert_eq!(compile(&cluster(), &facts(routing)).kernel_routes, expected, "{routing:?}");
    }
}

#[test]
fn an_unreachable_node_has_no_route_and_a_problem() {
    let mut facts = facts(Routing::Native);
    facts.next_hops.remove(&ip("192.0.2.2"));
    let compiled = compile(&cluster(), &facts);
    assert!(!compiled.desired.routes.contains_key(&net("10.244.2.0/24")));
    assert!(compiled.desired.routes.contains_key(&net("fd00:2::/64")), "the other family works on");
    let problem = Problem::Unreachable { node: "b".into(), address: ip("192.0.2.2") };
    assert_eq!(compiled.problems, [problem].into());
}

#[test]
fn pods_of_a_family_without_a_node_address_are_a_problem() {
    let mut nodes = cluster();
    nodes.apply(&nodes::tests::node("b", &["10.244.2.0/24", "fd00:2::/64"], &["2001:db8::2"])).unwrap();
    let compiled = compile(&nodes, &facts(Routing::Native));
    assert_eq!(
        compiled.problems,
        [Problem::NoAddress { node: "b".into(), cidr: net("10.244.2.0/24") }].into()
    );
}

#[test]
fn endpoints_are_the_pods_and_the_node_itself() {
    let compiled = compile(&cluster(), &facts(Routing::Native));
    let flags: Vec<_> = compiled
        .desired
        .endpoints
        .iter()
        .map(|(ip, endpoint)| (ip.to_string(), endpoint.ifindex, endpoint.flags, endpoint.id))
        .collect();
    assert_eq!(
        flags,
        [
            ("10.244.1.5".into(), 12, 0, 3),
            ("192.0.2.1".into(), 0, Endpoint::HOST, 0),
            ("2001:db8::1".into(), 0, Endpoint::HOST, 0),
            ("fd00:1::5".into(), 12, 0, 3),
        ]
    );
}

#[test]
fn the_node_keeps_its_address_when_a_pod_holds_it_too() {
    let mut facts = facts(Routing::Native);
    facts.local.all.push(ip("10.244.1.5"));
    let compiled = compile(&cluster(), &facts);
    assert_eq!(compiled.desired.endpoints[&ip("10.244.1.5").into()].flags, Endpoint::HOST);
    assert_eq!(compiled.problems.len(), 1);
}

#[test]
fn exempt_prefixes_never_hide_the_way_to_a_node() {
    for (name, exempt, expected) in [
        ("elsewhere", "198.51.100.0/24", Some(RouteKind::Exempt)),
        ("around a node's pods", "10.0.0.0/8", Some(RouteKind::Exempt)),
        ("everything", "0.0.0.0/0", Some(RouteKind::Exempt)),
        ("with host bits", "198.51.100.7/24", Some(RouteKind::Exempt)),
        ("exactly a node's pods", "10.244.2.0/24", Some(RouteKind::Native)),
        ("inside a node's pods", "10.244.2.128/25", None),
        ("inside the node's own pods", "fd00:1::/80", None),
        ("a node's address", "192.0.2.2/32", Some(RouteKind::Native)),
    ] {
        let mut facts = facts(Routing::Native);
        facts.exempt_cidrs = vec![net(exempt)];
        let compiled = compile(&cluster(), &facts);
        let kind = compiled.desired.routes.get(&net(exempt).trunc()).map(|route| route.kind);
        assert_eq!(kind, expected.map(|kind| kind as u8), "{name}");
    }
}

#[test]
fn of_two_nodes_with_one_prefix_the_first_name_keeps_it() {
    let mut nodes = cluster();
    nodes.apply(&nodes::tests::node("c", &["10.244.2.0/24", "10.244.1.0/24"], &["192.0.2.2"])).unwrap();
    let compiled = compile(&nodes, &facts(Routing::Native));
    assert_eq!(compiled.desired.routes[&net("10.244.1.0/24")].kind, RouteKind::Local as u8);
    let owners: Vec<_> = compiled
        .problems
        .iter()
        .map(|problem| match problem {
            Problem::Overlap { node, prefix, owner } => format!("{node} {prefix} {owner}"),
            other => other.to_string(),
        })
        .collect();
    assert_eq!(owners, ["c 10.244.1.0/24 a", "c 10.244.2.0/24 b", "c 192.0.2.2/32 b"]);
}

#[test]
fn uplinks_know_what_to_masquerade_with_and_whether() {
    for (masquerade, flags) in [(true, Uplink::MASQUERADE), (false, 0)] {
        let facts = Facts { masquerade, ..facts(Routing::Native) };
        let uplink = compile(&cluster(), &facts).desired.uplinks[&2];
        assert_eq!((uplink.flags, uplink.mtu), (flags, 1500));
        assert_eq!(IpAddr::from(uplink.masquerade_v4), ip("192.0.2.1"));
        assert_eq!(IpAddr::from(uplink.masquerade_v6), ip("2001:db8::1"));
    }
}

#[test]
fn without_its_own_object_the_node_still_knows_the_others() {
    let mut nodes = cluster();
    nodes.delete("a");
    let compiled = compile(&nodes, &facts(Routing::Native));
    assert_eq!(compiled.problems, [Problem::NoOwnNode("a".into())].into());
    assert_eq!(IpAddr::from(compiled.desired.node.address_v4), ip("192.0.2.1"));
    assert!(compiled.desired.routes.contains_key(&net("10.244.2.0/24")));
}

#[test]
fn the_pods_mtu_leaves_room_for_the_encapsulation() {
    for (name, routing, configured, own_addresses, expected) in [
        ("native", Routing::Native, None, &["192.0.2.1"][..], 1500),
        ("tunnel over IPv4", Routing::Tunnel, None, &["192.0.2.1", "2001:db8::1"], 1450),
        ("tunnel over IPv6", Routing::Tunnel, None, &["2001:db8::1"], 1430),
        ("as configured", Routing::Tunnel, Some(1380), &["192.0.2.1"], 1380),
    ] {
        let mut nodes = cluster();
        nodes.apply(&nodes::tests::node("a", &["10.244.1.0/24"], own_addresses)).unwrap();
        let facts = Facts { mtu: configured, ..facts(routing) };
        assert_eq!(pod_mtu(&facts, &nodes), expected, "{name}");
    }
}

#[test]
fn a_configured_mtu_narrows_the_routes_too() {
    let facts = Facts { mtu: Some(1300), ..facts(Routing::Tunnel) };
    assert_eq!(compile(&cluster(), &facts).desired.routes[&net("fd00:2::/64")].mtu, 1300);
}

#[test]
fn the_pods_range_holds_every_nodes_pods_and_not_the_world() {
    let nodes = |cidrs: &[&[&str]]| {
        let mut nodes = Nodes::default();
        for (number, cidrs) in cidrs.iter().enumerate() {
            nodes.apply(&nodes::tests::node(&format!("n{number}"), cidrs, &[])).unwrap();
        }
        nodes
    };
    /// The pod CIDRs of each node.
    type Cluster<'a> = &'a [&'a [&'a str]];
    let cases: [(&str, Cluster<'_>, Option<&str>); 5] = [
        ("no node", &[], None),
        ("one node", &[&["10.244.1.0/24", "fd00:1::/64"]], Some("10.244.1.0/24")),
        (
            "neighbours",
            &[&["10.244.1.0/24"], &["10.244.2.0/24"], &["10.244.200.0/24"]],
            Some("10.244.0.0/16"),
        ),
        ("one inside the other", &[&["10.0.0.0/9"], &["10.1.0.0/16"]], Some("10.0.0.0/9")),
        ("too far apart to say anything", &[&["10.244.1.0/24"], &["192.168.1.0/24"]], None),
    ];
    for (name, cidrs, expected) in cases {
        let range = pod_range(&nodes(cidrs), true);
        let expected = expected.map(net).map_or(Prefix::NONE, |cover| Prefix {
            address: cover.network().into(),
            mask: cover.netmask().into(),
        });
        assert_eq!(range, expected, "{name}");
        for cidr in cidrs.iter().flat_map(|cidrs| cidrs.iter()).map(|cidr| net(cidr)) {
            let v4 = cidr.addr().is_ipv4();
            let inside = v4 && expected != Prefix::NONE;
            assert_eq!(range.contains(&cidr.addr().into(), v4), inside, "{name}: {cidr}");
        }
        assert!(!range.contains(&ip("203.0.113.9").into(), true), "{name}");
    }
    let range = pod_range(&nodes(&[&["fd00:1::/64"], &["fd00:2::/64"]]), false);
    assert!(
        range.contains(&ip("fd00:2::9").into(), false) && !range.contains(&ip("2001:db8::9").into(), false)
    );
}

/// The sources of the kernel routes of IPv4.
fn sources_v4(nodes: &Nodes, facts: &Facts) -> BTreeSet<Option<IpAddr>> {
    let routes = compile(nodes, facts).kernel_routes.into_iter();
    let of_v4 =
        routes.filter(|route| route.prefix.addr().is_ipv4() && route.target != RouteTarget::Unreachable);
    of_v4.map(|route| route.source).collect()
}

#[test]
fn kernel_routes_have_a_source_that_is_there() {
    for routing in [Routing::Native, Routing::Tunnel] {
        let mut facts = facts(routing);
        assert_eq!(sources_v4(&cluster(), &facts), [Some(ip("192.0.2.1"))].into());
        // The device has another address already; the Node object does not say so yet.
        facts.local = local(&["192.0.2.7", "2001:db8::1"]);
        facts.uplinks[0].masquerade_v4 = Some(ip("192.0.2.7"));
        assert_eq!(sources_v4(&cluster(), &facts), [Some(ip("192.0.2.7"))].into());
        let compiled = compile(&cluster(), &facts);
        assert_eq!(IpAddr::from(compiled.desired.node.address_v4), ip("192.0.2.7"));
        // The object is ahead: duplicate address detection goes on.
        facts.local = local(&["192.0.2.1", "192.0.2.7", "2001:db8::1"]);
        facts.local.usable.retain(|address| *address != ip("192.0.2.1"));
        assert_eq!(sources_v4(&cluster(), &facts), [Some(ip("192.0.2.7"))].into());
        assert!(compile(&cluster(), &facts).desired.endpoints.contains_key(&ip("192.0.2.1").into()));
        // None at all: better a route without a source than no route.
        facts.local = local(&["2001:db8::1"]);
        facts.uplinks[0].masquerade_v4 = None;
        assert_eq!(sources_v4(&cluster(), &facts), [None].into());
    }
}

#[test]
fn all_of_ipv6_exempt_leaves_ipv4_masqueraded_and_the_other_way_round() {
    let exempt = |text: &str| {
        let facts = Facts { exempt_cidrs: vec![net(text)], ..facts(Routing::Native) };
        let routes = compile(&cluster(), &facts).desired.routes;
        routes
            .into_iter()
            .filter(|(_, route)| route.kind == RouteKind::Exempt as u8)
            .map(|(prefix, _)| prefix)
    };
    assert_eq!(exempt("0.0.0.0/0").collect::<Vec<_>>(), [net("0.0.0.0/0")]);
    let v6: Vec<IpNet> = exempt("::/0").collect();
    assert!(v6.iter().any(|prefix| prefix.contains(&ip("2001:db8:77::1"))));
    assert!(!v6.iter().any(|prefix| prefix.contains(&ip("::ffff:203.0.113.1"))));
}

#[test]
fn host_ports_mark_the_pod_and_the_addresses_they_are_at() {
    let mut facts = facts(Routing::Native);
    let second = ip("192.0.2.9");
    facts.local = local(&["192.0.2.1", "192.0.2.9", "2001:db8::1"]);
    let flags = |facts: &Facts| {
        let desired = compile(&cluster(), facts).desired;
        let flags = |address| desired.endpoints[&Ip::from(address)].flags & Endpoint::HOST_PORTS != 0;
        let addresses = [ip("192.0.2.1"), second, ip("2001:db8::1"), ip("10.244.1.5"), ip("fd00:1::5")];
        (desired.host_ports.len(), addresses.map(flags))
    };
    assert_eq!(flags(&facts), (0, [false; 5]));
    let mut mapping =
        PortMapping { host_port: 80, container_port: 80, protocol: Transport::Tcp, host_ip: Some(second) };
    facts.pods[0].host_ports = vec![mapping];
    assert_eq!(flags(&facts), (1, [false, true, false, true, true]));
    mapping.host_ip = None;
    facts.pods[0].host_ports = vec![mapping];
    assert_eq!(flags(&facts), (2, [true; 5]));

    let other = PodFacts { id: 4, ifindex: 13, addresses: vec![ip("10.244.1.6")], ..facts.pods[0].clone() };
    facts.pods.push(other);
    let compiled = compile(&cluster(), &facts);
    assert!(compiled.desired.host_ports.values().all(|to| to.endpoint == 3), "the first one keeps it");
    assert_eq!(compiled.problems, [Problem::HostPort { id: 4, port: 80, owner: 3 }].into());
}

#[test]
fn another_nodes_own_address_is_told_from_its_pods() {
    let routes = compile(&cluster(), &facts(Routing::Tunnel)).desired.routes;
    assert!(routes[&net("192.0.2.2/32")].is_node() && routes[&net("2001:db8::2/128")].is_node());
    assert!(!routes[&net("10.244.2.0/24")].is_node() && !routes[&net("fd00:2::/64")].is_node());
}

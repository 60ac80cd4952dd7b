//! Who can talk to whom, and under which address: every direction, both families, every protocol, both routings.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use hypha_lab::{Family, Lab, LabSpec, Pod, Protocol, Routing, Station, traffic::exchange};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

type Body = fn(&mut Lab) -> Result<()>;

const DIRECTIONS: [(&str, Body); 9] = [
    ("pod_to_pod_on_the_same_node", same_node),
    ("pod_to_pod_on_another_node", cross_node),
    ("node_to_its_pod", node_to_its_pod),
    ("node_to_a_pod_on_another_node", node_to_remote_pod),
    ("pod_to_its_node", pod_to_its_node),
    ("pod_to_another_node", pod_to_other_node),
    ("pod_to_the_world", pod_to_world),
    ("node_to_the_world", node_to_world),
    ("pod_to_the_gateway_on_the_wire", pod_to_gateway),
];

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        for (name, body) in DIRECTIONS {
            trials.push(scenario(format!("directions::{routing}::{name}"), spec(), body));
        }
        trials.push(scenario(
            format!("directions::{routing}::across_a_router"),
            spec().routed(),
            across_a_router,
        ));
        trials.push(scenario(format!("directions::{routing}::with_tools"), spec(), with_tools));
    }
    trials
}

/// Every protocol of both families; the far side must see `source` as its peer.
fn check(from: &dyn Station, to: &dyn Station, source: &dyn Station) -> Result<()> {
    let mut checks = Checks::default();
    check_into(&mut checks, from, to, source);
    checks.finish()
}

fn check_into(checks: &mut Checks, from: &dyn Station, to: &dyn Station, source: &dyn Station) {
    for family in Family::BOTH {
        for protocol in Protocol::ALL {
            let what = format!("{family} {protocol}");
            let outcome = exchange::exchange(from, to, family, protocol)
                .and_then(|seen| expect_source(seen, source.address(family)));
            checks.note(&what, outcome);
        }
    }
}

fn expect_source(seen: IpAddr, expected: IpAddr) -> Result<()> {
    ensure!(seen == expected, "the far side saw {seen} instead of {expected}");
    Ok(())
}

fn pod_on(lab: &Lab, node: usize, name: &str) -> Result<Pod> {
    lab.node(node).add_pod(name)
}

fn same_node(lab: &mut Lab) -> Result<()> {
    let [a, b] = [pod_on(lab, 0, "a")?, pod_on(lab, 0, "b")?];
    check(&a, &b, &a)
}

fn cross_node(lab: &mut Lab) -> Result<()> {
    let [a, c] = [pod_on(lab, 0, "a")?, pod_on(lab, 1, "c")?];
    check(&a, &c, &a)?;
    check(&c, &a, &c)
}

fn node_to_its_pod(lab: &mut Lab) -> Result<()> {
    let a = pod_on(lab, 0, "a")?;
    let node = lab.node(0).as_ref();
    check(node, &a, node)
}

fn node_to_remote_pod(lab: &mut Lab) -> Result<()> {
    let c = pod_on(lab, 1, "c")?;
    let node = lab.node(0).as_ref();
    check(node, &c, node)
}

fn pod_to_its_node(lab: &mut Lab) -> Result<()> {
    let a = pod_on(lab, 0, "a")?;
    check(&a, lab.node(0).as_ref(), &a)
}

fn pod_to_other_node(lab: &mut Lab) -> Result<()> {
    let a = pod_on(lab, 0, "a")?;
    check(&a, lab.node(1).as_ref(), &a)
}

fn pod_to_world(lab: &mut Lab) -> Result<()> {
    let a = pod_on(lab, 0, "a")?;
    check(&a, lab.world(), lab.node(0).as_ref())
}

fn node_to_world(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).as_ref();
    check(node, lab.world(), node)
}

/// A host outside the cluster that is the node's neighbour: masqueraded, though no router is on the way.
fn pod_to_gateway(lab: &mut Lab) -> Result<()> {
    let a = pod_on(lab, 0, "a")?;
    check(&a, lab.gateway(), lab.node(0).as_ref())
}

fn across_a_router(lab: &mut Lab) -> Result<()> {
    let [a, c] = [pod_on(lab, 0, "a")?, pod_on(lab, 1, "c")?];
    let [first, second]: [&dyn Station; 2] = [lab.node(0).as_ref(), lab.node(1).as_ref()];
    let mut checks = Checks::default();
    check_into(&mut checks, &a, &c, &a);
    check_into(&mut checks, &a, second, &a);
    check_into(&mut checks, first, &c, first);
    check_into(&mut checks, &a, lab.world(), first);
    checks.finish()
}

/// What engineers try first: ping and curl.
fn with_tools(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [pod_on(lab, 0, "a")?, pod_on(lab, 0, "b")?, pod_on(lab, 1, "c")?];
    let node: &dyn Station = lab.node(0).as_ref();
    let targets: [(&dyn Station, &dyn Station); 4] = [(&b, &a), (&c, &a), (node, &a), (lab.world(), node)];
    let mut checks = Checks::default();
    for (to, source) in targets {
        for family in Family::BOTH {
            checks.note("ping", a.ping(to.address(family)));
            let server = hypha_lab::traffic::tools::HttpServer::start(to, to.address(family))?;
            let seen = server.get(&a).and_then(|answer| expect_source(answer.client, source.address(family)));
            checks.note("HTTP", seen);
        }
    }
    checks.finish()
}

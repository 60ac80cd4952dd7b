//! What the way looks like from a pod: hops, time to live and path MTU.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Protocol, Routing, Station,
    traffic::{capture::Capture, exchange, mtu, tools},
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        trials.extend([
            scenario(format!("path::{routing}::traceroute_shows_the_nodes"), spec(), traceroute),
            scenario(format!("path::{routing}::each_hop_takes_one_from_the_ttl"), spec(), ttl),
            scenario(
                format!("path::{routing}::mtu_beyond_the_gateway"),
                spec().world_mtu(1400),
                mtu_beyond_gateway,
            ),
            scenario(format!("path::{routing}::mtu_between_the_nodes"), spec(), mtu_between_nodes),
        ]);
    }
    trials
}

fn traceroute(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let [first, second]: [&dyn Station; 2] = [lab.node(0).as_ref(), lab.node(1).as_ref()];
    let mut checks = Checks::default();
    for family in Family::BOTH {
        // The router answers with the address of the segment that the packet came from.
        let gateway = match family {
            Family::V4 => lab.node(0).plan().gateway_v4.into(),
            Family::V6 => IpAddr::from(lab.node(0).plan().gateway_v6),
        };
        let address = |station: &dyn Station| station.address(family);
        let ways = [
            (address(&b), vec![address(first), address(&b)]),
            (address(&c), vec![address(first), address(second), address(&c)]),
            (address(lab.world()), vec![address(first), gateway, address(lab.world())]),
            (address(first), vec![address(first)]),
        ];
        for (to, expected) in ways {
            for method in ["-U", "-I", "-T"] {
                let outcome = tools::traceroute(a.netns(), to, method).and_then(|hops| {
                    let expected: Vec<_> = expected.iter().copied().map(Some).collect();
                    ensure!(hops == expected, "saw {hops:?} instead of {expected:?}");
                    Ok(())
                });
                checks.note(&format!("{family} to {to} by {method}"), outcome);
            }
        }
    }
    checks.finish()
}

/// The kernel's TTL for new packets, which pods use.
const FRESH: u8 = 64;

/// Captures at the far ends, where no tunnel hides the packet: requests on arrival, answers on return.
fn ttl(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let [first, second]: [&dyn Station; 2] = [lab.node(0).as_ref(), lab.node(1).as_ref()];
    // How many routers are on the way; a node's own stack is none.
    let ways: [(&dyn Station, &dyn Station, u8); 7] = [
        (&a, &b, 1),
        (&a, &c, 2),
        (&a, lab.world(), 2),
        (first, &a, 0),
        (first, &c, 1),
        (&a, first, 0),
        (&a, second, 1),
    ];
    let mut checks = Checks::default();
    for (from, to, routers) in ways {
        for family in Family::BOTH {
            // A node's end may be any device of several: what it sends and gets is seen at the other end only.
            let is_node = |station: &dyn Station| [first.name(), second.name()].contains(&station.name());
            let (watched, sender) = if is_node(to) { (from, to) } else { (to, from) };
            let capture = Capture::start(watched.netns(), "eth0")?;
            let outcome = exchange::exchange(from, to, family, Protocol::Udp).and_then(|seen| {
                let source = if is_node(to) { sender.address(family) } else { seen };
                let arrived = capture.expect("the packet", |fields| fields.src == source)?.ttl;
                ensure!(arrived == FRESH - routers, "arrived with {arrived}, {routers} routers on the way");
                Ok(())
            });
            checks.note(&format!("{family} from {} to {}", from.name(), to.name()), outcome);
        }
    }
    checks.finish()
}

/// A router outside has a smaller link: the pod learns it, though the error is addressed to the node.
fn mtu_beyond_gateway(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).pod("a").config("mtu", json!(1500)).add()?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = mtu::discover(&a, lab.world(), family, 1500).and_then(|found| {
            ensure!(found == 1400, "found {found}");
            Ok(())
        });
        checks.note(&format!("{family}"), outcome);
    }
    checks.finish()
}

/// A pod whose interface is larger than the way to the other node is told so by its own node.
fn mtu_between_nodes(lab: &mut Lab) -> Result<()> {
    let large = |name: &str, node: usize| lab.node(node).pod(name).config("mtu", json!(4000)).add();
    let [a, b, c] = [large("a", 0)?, large("b", 0)?, large("c", 1)?];
    let path = 1500 - lab.routing().overhead();
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = mtu::discover(&a, &c, family, 4000).and_then(|found| {
            ensure!(found == path, "found {found} instead of {path}");
            Ok(())
        });
        checks.note(&format!("{family} to another node"), outcome);
        let outcome = mtu::discover(&a, &b, family, 4000).and_then(|found| {
            ensure!(found == 4000, "found {found} though nothing smaller is between");
            Ok(())
        });
        checks.note(&format!("{family} on the same node"), outcome);
        let outcome = mtu::discover(&a, lab.world(), family, 4000).and_then(|found| {
            ensure!(found == 1500, "found {found}");
            Ok(())
        });
        checks.note(&format!("{family} to the world"), outcome);
    }
    checks.note(
        "tracepath",
        tools::tracepath(a.netns(), c.v4()).and_then(|found| {
            ensure!(found == path, "found {found} instead of {path}");
            Ok(())
        }),
    );
    checks.finish()
}

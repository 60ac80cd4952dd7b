//! Much data and odd sizes: nothing may be lost, changed or split that should stay whole.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Routing, Station,
    traffic::{
        capture::{Capture, Frame},
        exchange, transfer,
    },
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

const GIGABYTE: u64 = 1_000_000_000;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        trials.extend([
            scenario(format!("payloads::{routing}::gigabyte_to_another_node"), spec(), gigabyte_cross_node),
            scenario(format!("payloads::{routing}::udp_of_1_to_65000_bytes"), spec(), udp_sizes),
            scenario(format!("payloads::{routing}::large_echo_requests"), spec(), large_echoes),
            scenario(format!("payloads::{routing}::segments_stay_unsplit"), spec(), segments_stay_unsplit),
        ]);
    }
    let spec = || LabSpec::nodes(2, Routing::Native);
    trials.extend([
        scenario("payloads::gigabyte_on_the_same_node", spec(), gigabyte_same_node),
        scenario("payloads::gigabyte_to_the_world_and_back", spec(), gigabyte_world),
        scenario("payloads::gigabyte_on_jumbo_frames", spec().mtu(9000), gigabyte_cross_node),
    ]);
    trials
}

fn gigabyte_same_node(lab: &mut Lab) -> Result<()> {
    let [a, b] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?];
    for family in Family::BOTH {
        transfer::upload(&a, &b, family, GIGABYTE)?;
    }
    Ok(())
}

fn gigabyte_cross_node(lab: &mut Lab) -> Result<()> {
    let [a, c] = [lab.node(0).add_pod("a")?, lab.node(1).add_pod("c")?];
    for family in Family::BOTH {
        transfer::upload(&a, &c, family, GIGABYTE)?;
    }
    Ok(())
}

fn gigabyte_world(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    for family in Family::BOTH {
        let masqueraded = lab.node(0).address(family);
        for transfer in [
            transfer::upload(&a, lab.world(), family, GIGABYTE)?,
            transfer::download(&a, lab.world(), family, GIGABYTE)?,
        ] {
            ensure!(transfer.peer == masqueraded, "the world saw {} instead of {masqueraded}", transfer.peer);
        }
    }
    Ok(())
}

/// A walk through 1..=65000, and every size next to one where a packet becomes two.
fn sizes(family: Family, mtu: usize) -> Vec<usize> {
    let mut sizes: BTreeSet<usize> = (1..=65_000).step_by(997).collect();
    sizes.extend([1, 2, 3, 1023, 1024, 1025, 8191, 8192, 32_768, 65_000]);
    let header = family.header_len();
    // Fragments carry multiples of eight bytes; IPv6 spends another eight on the fragment header.
    let extra = if family == Family::V6 { 8 } else { 0 };
    let per_fragment = (mtu - header - extra) / 8 * 8;
    let whole = mtu - header;
    for edge in [whole, per_fragment, 2 * per_fragment, 3 * per_fragment, 44 * per_fragment.min(1480)] {
        sizes.extend((edge - 8 - 9)..=(edge - 8 + 9));
    }
    sizes.into_iter().filter(|&size| size <= 65_000).collect()
}

fn udp_sizes(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let mtu = 1500 - lab.routing().overhead() as usize;
    let mut checks = Checks::default();
    let targets: [&dyn Station; 5] = [&b, &c, lab.world(), lab.node(0).as_ref(), lab.node(1).as_ref()];
    for to in targets {
        for family in Family::BOTH {
            let mut sizes = sizes(family, mtu);
            if mtu != 1500 {
                sizes.extend(self::sizes(family, 1500));
            }
            checks.note(&format!("{family} to {}", to.name()), exchange::udp(&a, to, family, &sizes));
        }
    }
    checks.finish()
}

fn large_echoes(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let mut checks = Checks::default();
    let targets: [&dyn Station; 3] = [&b, &c, lab.world()];
    for to in targets {
        for family in Family::BOTH {
            for size in [1400, 1472, 1473, 3000, 20_000, 60_000] {
                let what = format!("{family} to {}, {size} bytes", to.name());
                checks.note(&what, exchange::icmp(&a, to, family, size));
            }
        }
    }
    checks.finish()
}

/// Segmentation offload survives the way: segments arrive in the pod larger than any MTU.
fn segments_stay_unsplit(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let mut checks = Checks::default();
    let pairs: [(&str, &dyn Station, &dyn Station); 3] =
        [("same node", &a, &b), ("another node", &a, &c), ("out, masqueraded", &a, lab.world())];
    for (what, from, to) in pairs {
        for family in Family::BOTH {
            let capture = Capture::start(to.netns(), "eth0")?;
            transfer::upload(from, to, family, 20_000_000)?;
            let largest = largest(&capture.finish()?, to.address(family));
            let outcome = largest.and_then(|largest| {
                ensure!(largest > 4_000, "the largest segment that arrived has {largest} bytes");
                Ok(())
            });
            checks.note(&format!("{family} {what}"), outcome);
        }
    }
    checks.finish()
}

fn largest(frames: &[Frame], to: IpAddr) -> Result<usize> {
    let received = frames.iter().filter_map(Frame::fields).filter(|fields| fields.dst == to);
    received.map(|fields| fields.len).max().context("nothing was captured")
}

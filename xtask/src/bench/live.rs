//! What the programs cost under traffic, by the kernel's own run-time statistics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use aya::sys::{Stats, enable_stats};
use hypha_lab::{Family, Station};
use serde::Serialize;

use super::load::{self, Test};
use super::paths::Hypha;
use super::programs::on_device;
use crate::table::table;

/// One program on one path.
#[derive(Serialize)]
pub struct Live {
    path: &'static str,
    program: String,
    /// Nanoseconds per run, the kernel's two clock readings included.
    nanoseconds: f64,
    /// Runs per transaction: a transaction is two packets.
    runs: f64,
}

/// The figures as a table.
pub fn table_of(figures: &[Live]) -> String {
    let rows = figures.iter().map(|live| {
        let name = format!("{}: {}", live.path, live.program);
        [name, format!("{:.0}", live.nanoseconds), format!("{:.1}", live.runs)]
    });
    table(["program under UDP_RR", "ns", "runs per transaction"], rows)
}

/// Runs UDP_RR over every path of Hypha with statistics on.
pub fn measure(
    native: &Hypha,
    tunnel: &Hypha,
    family: Family,
    duration: Duration,
) -> anyhow::Result<Vec<Live>> {
    // Off again when the descriptor closes.
    let _statistics = enable_stats(Stats::RunTime).context("switching on run-time statistics")?;
    let paths: [(&'static str, &Hypha, &dyn Station); 4] = [
        ("same node", native, &native.neighbour),
        ("cross node", native, &native.there),
        ("cross node, VXLAN", tunnel, &tunnel.there),
        ("to the world", native, native.lab.gateway()),
    ];
    let mut figures = Vec::new();
    for (path, hypha, server) in paths {
        let before = totals(hypha)?;
        let address = server.address(family);
        let rate = load::run(Test::UdpRr, hypha.here.netns(), server.netns(), address, duration)?;
        for (program, after) in totals(hypha)? {
            let before = before.get(&program).copied().unwrap_or_default();
            let (time, count) = (after.time - before.time, after.count - before.count);
            // A stray neighbour solicitation is not this path's traffic.
            if count > rate * duration.as_secs_f64() / 100.0 {
                let runs = count / (rate * duration.as_secs_f64());
                figures.push(Live { path, program, nanoseconds: time / count, runs });
            }
        }
    }
    Ok(figures)
}

/// What the kernel has counted for one program since it was loaded.
#[derive(Clone, Copy, Default)]
struct Total {
    time: f64,
    count: f64,
}

/// The sums over all agents of a lab, by the programs' names.
#[expect(clippy::cast_precision_loss, reason = "figures of three digits come of it")]
fn totals(hypha: &Hypha) -> anyhow::Result<BTreeMap<String, Total>> {
    let pods = [&hypha.here, &hypha.neighbour, &hypha.there];
    let mut seen = BTreeMap::new();
    for node in hypha.lab.nodes() {
        let own = pods.iter().filter(|pod| pod.node().name() == node.name());
        let mut devices = own.map(|pod| pod.host_ifname()).collect::<anyhow::Result<Vec<_>>>()?;
        devices.push("eth0");
        devices.extend(hypha.has_overlay().then_some("hypha_vxlan"));
        for device in devices {
            // An agent attaches one program to many devices: counted once, by its number.
            for program in node.netns().enter(|| on_device(device))?? {
                seen.insert(program.id(), program);
            }
        }
    }
    let mut totals = BTreeMap::<String, Total>::new();
    for program in seen.values() {
        let total = totals.entry(program.name_as_str().unwrap_or("?").to_owned()).or_default();
        total.time += program.run_time().as_nanos() as f64;
        total.count += program.run_count() as f64;
    }
    Ok(totals)
}

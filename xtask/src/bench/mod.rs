//! `cargo xtask bench`: what a packet costs, next to what it costs on plain Linux.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use hypha_lab::{Family, Routing, registry};
use serde::Serialize;

use crate::{compile, test::packages, workspace};

mod api;
mod cluster;
mod cni;
mod flows;
mod live;
mod load;
mod paths;
mod plain;
mod programs;
mod report;

use load::Test;
use paths::{Group, Hypha, Networks, Route};
use report::Row;

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// Transactions and streams over every path, next to plain Linux.
    Paths,
    /// Nanoseconds per packet and program.
    Programs,
    /// Masquerade with up to half a million flows.
    Flows,
    /// CNI ADD and DEL, and the agent's memory.
    Cni,
    /// The agent in a large cluster, by a real API server: memory, CPU, latencies, requests.
    Api,
    /// Pods to Ready in a real cluster, next to the reference plugins in another.
    Cluster,
}

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// Measure only this part (repeatable).
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Of the paths, measure only this group (repeatable).
    #[arg(long, value_enum)]
    group: Vec<Group>,
    /// How often every path is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
    /// Send IPv6 instead of IPv4.
    #[arg(long)]
    ipv6: bool,
    /// Leave Hypha out: what this machine's plain Linux does.
    #[arg(long)]
    baselines: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        (self.part.is_empty() || self.part.contains(&part)) && (part == Part::Paths || !self.baselines)
    }

    fn groups(&self) -> Vec<Group> {
        if self.group.is_empty() { Group::ALL.to_vec() } else { self.group.clone() }
    }

    fn family(&self) -> Family {
        if self.ipv6 { Family::V6 } else { Family::V4 }
    }

    fn duration(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Everything that was measured.
#[derive(Default, Serialize)]
struct Report {
    paths: Vec<Row>,
    programs: Vec<programs::Cost>,
    traffic: Vec<live::Live>,
    flows: Option<flows::Report>,
    cni: Option<cni::Report>,
    api: Option<api::Report>,
    cluster: Option<cluster::Report>,
}

/// Builds what is shipped, and measures it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(workspace::is_root(), "benchmarks make network namespaces: run them as root");
    packages::ensure_installed()?;
    registry::clean_up_on_signals()?;
    // Other binaries can be named, to compare two builds.
    if !options.baselines && std::env::var_os("HYPHA_BIN_DIR").is_none() {
        let binaries = compile::binaries(true)?;
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("HYPHA_BIN_DIR", binaries) };
    }
    warn_when_busy();
    let report = measure(options)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).context("writing JSON")?);
    } else {
        print(&report);
    }
    let failed = report.paths.iter().filter_map(|row| row.error.as_deref()).collect::<Vec<_>>();
    ensure!(failed.is_empty(), "paths that carry no traffic:\n  {}", failed.join("\n  "));
    Ok(())
}

/// Rates are taken at real-time priority, but nothing can be done for processes that others start and wait for.
fn warn_when_busy() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    if load.parse().is_ok_and(|load: f64| load > 0.5) {
        eprintln!("this machine is busy (load {load}): CNI latencies include waiting for others");
    }
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let mut report = Report::default();
    if options.wants(Part::Paths) {
        let groups = options.groups();
        let networks = Networks::build(&groups, !options.baselines)?;
        report.paths = measure_paths(&networks.routes(&groups, options.family()), options);
    }
    if options.wants(Part::Programs) {
        eprintln!("programs: one packet at a time, then under traffic");
        let (native, tunnel) = (Hypha::build(Routing::Native)?, Hypha::build(Routing::Tunnel)?);
        report.programs = programs::measure(&native, &tunnel)?;
        report.traffic = live::measure(&native, &tunnel, options.family(), options.duration())?;
    }
    if options.wants(Part::Flows) {
        report.flows = Some(flows::measure(options.family())?);
    }
    if options.wants(Part::Cni) {
        report.cni = Some(cni::measure()?);
    }
    if options.wants(Part::Api) {
        report.api = Some(api::measure()?);
    }
    if options.wants(Part::Cluster) {
        report.cluster = Some(cluster::measure(options.rounds)?);
    }
    Ok(report)
}

/// Measures every path once per round, one right after the other: what disturbs the machine disturbs all of them.
fn measure_paths(routes: &[Route<'_>], options: &Options) -> Vec<Row> {
    let mut rows: Vec<Row> = routes.iter().map(Row::new).collect();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: {} paths", options.rounds, routes.len());
        for test in Test::ALL {
            for (route, row) in routes.iter().zip(&mut rows).filter(|(_, row)| row.error.is_none()) {
                match load::run(test, route.client, route.server, route.address, options.duration()) {
                    Ok(rate) => row.rounds.entry(test).or_default().push(rate),
                    Err(error) => {
                        let error = format!("{:?}, {}: {error:#}", route.group, route.name);
                        eprintln!("{error}");
                        row.error = Some(error);
                    }
                }
            }
        }
    }
    report::summarise(&mut rows);
    rows
}

fn print(report: &Report) {
    let tables = [
        (!report.paths.is_empty()).then(|| report::table_of(&report.paths)),
        (!report.programs.is_empty()).then(|| programs::table_of(&report.programs)),
        (!report.traffic.is_empty()).then(|| live::table_of(&report.traffic)),
        report.flows.as_ref().map(flows::Report::table),
        report.cni.as_ref().map(cni::Report::table),
        report.api.as_ref().map(api::Report::table),
        report.cluster.as_ref().map(cluster::Report::table),
    ];
    for table in tables.into_iter().flatten() {
        println!("{table}\n");
    }
}

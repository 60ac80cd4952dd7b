//! `cargo xtask bench`: what a packet costs, next to what it costs on plain Linux.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use hypha_lab::Family;

use crate::{compile, test::packages, workspace};

mod load;
mod paths;
mod plain;
mod report;

use load::Test;
use paths::{Group, Networks, Route};
use report::Row;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// Measure only this group of paths (repeatable).
    #[arg(long, value_enum)]
    only: Vec<Group>,
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

/// Builds what is shipped, and measures it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(workspace::is_root(), "benchmarks make network namespaces: run them as root");
    packages::ensure_installed()?;
    if !options.baselines {
        let binaries = compile::binaries(true)?;
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("HYPHA_BIN_DIR", binaries) };
    }
    let groups = if options.only.is_empty() { Group::ALL.to_vec() } else { options.only.clone() };
    let networks = Networks::build(&groups, !options.baselines)?;
    let family = if options.ipv6 { Family::V6 } else { Family::V4 };
    let rows = measure(&networks.routes(&groups, family), options);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows).context("writing JSON")?);
    } else {
        println!("{}", report::table_of(&rows));
    }
    let failed = rows.iter().filter_map(|row| row.error.as_deref()).collect::<Vec<_>>();
    ensure!(failed.is_empty(), "paths that carry no traffic:\n  {}", failed.join("\n  "));
    Ok(())
}

/// Measures every path once per round, one right after the other: what disturbs the machine disturbs all of them.
fn measure(routes: &[Route<'_>], options: &Options) -> Vec<Row> {
    let duration = Duration::from_millis(options.milliseconds);
    let mut rows: Vec<Row> = routes.iter().map(Row::new).collect();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: {} paths", options.rounds, routes.len());
        for test in Test::ALL {
            for (route, row) in routes.iter().zip(&mut rows).filter(|(_, row)| row.error.is_none()) {
                match load::run(test, route.client, route.server, route.address, duration) {
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

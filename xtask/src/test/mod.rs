//! `cargo xtask test`: every test, in one command, with one line at the end that says how it went.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;

use crate::{compile, image, workspace};

pub mod packages;
mod runner;
mod suites;

use runner::Totals;
use suites::{Phase, Suite};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Options {
    /// Run only this phase (repeatable); without it all, the cheapest first.
    #[arg(long, value_enum)]
    only: Vec<Phase>,
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
}

/// Runs what was asked for; the last line of the output is `N passed, N failed, N skipped`.
///
/// # Errors
///
/// When a test failed, or one was skipped in CI (`CI=true`), where nothing is there to excuse it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut totals = Totals::default();
    let outcome = phases(options, &mut totals);
    if let Err(error) = &outcome {
        eprintln!("{error:#}");
        totals.failed += 1;
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    if in_ci && totals.skipped > 0 {
        eprintln!("CI=true: the skipped tests count as failures");
    }
    println!("{totals}");
    if totals.failed > 0 || in_ci && totals.skipped > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Prepares and runs the phases, adding to `totals` as it goes so that an error keeps what was counted.
fn phases(options: &Options, totals: &mut Totals) -> anyhow::Result<()> {
    let wanted = |phase: Phase| options.only.is_empty() || options.only.contains(&phase);
    if let Err(error) = packages::ensure_installed() {
        // Some unit tests compare with the reference plugins too; they skip themselves where those are missing.
        ensure!(!workspace::is_root(), error);
        eprintln!("{error:#}");
    }
    let suites = suites::compile()?;
    if wanted(Phase::Unit) {
        *totals += doc_tests(options)?;
    }
    let mut binaries = None;
    for suite in suites.iter().filter(|suite| wanted(suite.phase)) {
        let filter = options.filter.as_deref();
        if suite.phase.needs_root() && !workspace::is_root() {
            let count = suite.count(filter)?;
            println!("skipped: {count} tests of {} (they need root)", suite.name);
            totals.skipped += count;
            continue;
        }
        if suite.phase >= Phase::Lab && binaries.is_none() {
            // The lab tests what is shipped: the same profile, with its link-time optimisation and abort on panic.
            binaries = Some(compile::binaries(true)?);
        }
        *totals += run_suite(suite, filter, binaries.as_ref())?;
    }
    Ok(())
}

fn run_suite(suite: &Suite, filter: Option<&str>, binaries: Option<&PathBuf>) -> anyhow::Result<Totals> {
    println!("\n=== {}", suite.name);
    let mut command = suite.command();
    command.args(filter);
    if let Some(directory) = binaries {
        command.env("HYPHA_BIN_DIR", directory);
    }
    if suite.phase == Phase::Cluster {
        command.env("HYPHA_IMAGE", image::archive()?);
    }
    runner::run(&suite.name, &mut command, suite.phase.limit())
}

/// The examples in the documentation, which have no binary of their own.
fn doc_tests(options: &Options) -> anyhow::Result<Totals> {
    println!("\n=== examples in the documentation");
    let mut command = compile::cargo();
    command.args(["test", "--workspace", "--doc", "--quiet"]);
    if let Some(filter) = &options.filter {
        command.args(["--", filter]);
    }
    runner::run("doc tests", &mut command, Duration::from_mins(10))
}

//! `cargo xtask …`: everything a Hypha developer runs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod bpf;
mod cluster;
mod compile;
mod demo;
mod ebpf;
mod image;
mod progress;
mod table;
mod test;
mod tidy;
mod workspace;

/// Everything a Hypha developer runs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF object, put it at target/bpf/hypha.o, and show what the verifier thinks of it (as root).
    BuildEbpf(ebpf::Options),
    /// Build the agent and the CNI shim.
    Build(compile::Options),
    /// Write the container image as an OCI archive; no container engine is needed.
    Image(image::Options),
    /// Show two nodes and the world at work, in namespaces on this machine.
    Demo(demo::Options),
    /// Run a real Kubernetes cluster on this machine, in namespaces: up, down, status, kubectl.
    Cluster(cluster::Options),
    /// Run every test: unit, programs, lab, cluster; installs what they need.
    Test(test::Options),
    /// Check the conventions that neither rustfmt nor clippy knows.
    Tidy,
    /// Measure paths next to those of plain Linux: transactions, streams, what a packet costs.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::BuildEbpf(options) => ebpf::run(&options),
        Task::Build(options) => compile::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Cluster(options) => cluster::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Tidy => tidy::run(),
        Task::Bench(options) => bench::run(&options),
    };
    // The chain of causes is for the reader; a backtrace through xtask itself would only bury it.
    outcome.map_or_else(
        |error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

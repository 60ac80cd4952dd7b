//! `cargo xtask …`: everything a Hypha developer runs.

use clap::{Parser, Subcommand};

mod ebpf;
mod table;
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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Task::BuildEbpf(options) => ebpf::run(&options),
    }
}

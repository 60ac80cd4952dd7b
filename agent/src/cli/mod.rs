//! What an operator types: `hypha agent` is the daemon, everything else asks it or cleans up after it.

mod cleanup;
mod client;
mod endpoint;
mod flows;
mod install;
mod maps;
mod output;
mod status;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

use crate::{
    causes::with_causes,
    daemon::{self, Options},
};

/// Hypha: a Kubernetes network whose dataplane is eBPF.
#[derive(Debug, Parser)]
#[command(name = "hypha", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's agent
    Agent(Box<AgentArgs>),
    /// Show what the agent is doing
    Status(client::ClientArgs),
    /// Show the pods' interfaces on this node
    #[command(subcommand, visible_alias = "endpoints")]
    Endpoint(endpoint::EndpointCommand),
    /// Show the way to other nodes, from the maps
    #[command(subcommand, visible_alias = "routes")]
    Route(maps::ListCommand),
    /// Show the node's ports that lead to pods, from the maps
    #[command(subcommand, name = "hostport", visible_alias = "hostports")]
    HostPort(maps::ListCommand),
    /// Show the flows that are tracked, from the maps
    #[command(subcommand)]
    Conntrack(maps::ConntrackCommand),
    /// Show where replies to masqueraded packets go, from the maps
    #[command(subcommand)]
    Nat(maps::NatCommand),
    /// Show the maps themselves
    #[command(subcommand, visible_alias = "maps")]
    Map(maps::MapCommand),
    /// Show what became of packets: how many were forwarded and dropped, and why
    Metrics(maps::MapArgs),
    /// Remove every trace of a stopped agent from this node; its pods lose their network
    Cleanup(cleanup::CleanupArgs),
    /// Install the CNI shim on this node, in one step; what the manifest's init container does
    InstallCni(install::InstallArgs),
    /// Mount the BPF file system at /sys/fs/bpf where nobody has; for an init container
    #[command(hide = true)]
    MountBpffs,
    /// Do nothing until SIGTERM; what keeps a DaemonSet's pod there when its init container has done all the work
    #[command(hide = true)]
    Pause,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
struct AgentArgs {
    #[command(flatten)]
    options: Options,

    /// Form of the log lines
    #[arg(long, env = "HYPHA_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,

    /// What to log: a level, or levels by module (info,hypha_agent::server=debug)
    #[arg(long, env = "HYPHA_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Runs the command line; errors go to the standard error with all their causes.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Agent(args) => {
            start_log(&args)?;
            daemon::run(args.options.resolve()?)
        }
        Command::Status(args) => status::run(&args),
        Command::Endpoint(command) => endpoint::run(&command),
        Command::Route(maps::ListCommand::List(args)) => maps::routes(&args),
        Command::HostPort(maps::ListCommand::List(args)) => maps::host_ports(&args),
        Command::Conntrack(maps::ConntrackCommand::List { filter, args }) => flows::conntrack(&filter, &args),
        Command::Nat(maps::NatCommand::List(args)) => flows::nat(&args),
        Command::Nat(maps::NatCommand::Pools { top, args }) => flows::pools(top, &args),
        Command::Map(command) => maps::map(&command),
        Command::Metrics(args) => maps::counters(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::InstallCni(args) => install::run(&args),
        Command::MountBpffs => daemon::mount_bpffs(),
        Command::Pause => daemon::pause(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hypha", &mut io::stdout());
            Ok(())
        }
    }
}

/// Libraries whose warnings repeat what the agent says better; a filter that names them is heeded.
const QUIET: &str = "kube_client=off,kube_runtime=off";

fn start_log(args: &AgentArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", args.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_agent_has_a_variable_of_its_name() {
        let cli = Cli::command();
        let agent = cli.find_subcommand("agent").unwrap();
        for arg in agent.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            let flag = arg.get_long().unwrap();
            let variable = format!("HYPHA_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{flag}");
        }
    }
}

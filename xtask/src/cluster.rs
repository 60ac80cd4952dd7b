//! `cargo xtask cluster`: a real Kubernetes cluster in namespaces on this machine, to play with.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hypha_lab::{
    Routing,
    cluster::{Cluster, ClusterSpec, kept},
    registry,
};

use crate::{image, progress::Progress, test::packages, workspace};

/// Options of `cargo xtask cluster`.
#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start one, and leave it up.
    Up(Up),
    /// Take down what is up.
    Down,
    /// Show nodes and pods.
    Status {
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Run kubectl as the administrator.
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(clap::Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// What connects the pods.
    #[arg(long, value_enum, default_value_t = Network::Hypha)]
    network: Network,
    /// How Hypha's packets travel between the nodes.
    #[arg(long, value_enum, default_value_t = Way::Tunnel)]
    routing: Way,
}

/// Hypha's `--routing`.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// Wrapped in VXLAN.
    Tunnel,
    /// As they are.
    Native,
}

/// What connects the pods.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// Hypha, built from here and installed from deploy/hypha.yaml.
    Hypha,
    /// The reference plugins (bridge, host-local, portmap) and routes between the nodes.
    Reference,
    /// Nothing: nodes stay NotReady until a network is installed.
    None,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
}

/// Does what was asked for.
///
/// # Errors
///
/// When it is not run as root, or something did not start: the message has the end of its log.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(workspace::is_root(), "a cluster makes network namespaces and mounts: run this as root");
    match &options.command {
        Command::Up(up) => start(up),
        Command::Down => stop(),
        Command::Status { output } => status(*output),
        Command::Kubectl { arguments } => {
            // Replaces us, so that its exit status, its terminal and its signals are its own.
            let error = kept::Kept::find()?.kubectl()?.args(arguments).exec();
            Err(error).context("starting kubectl")
        }
    }
}

fn start(up: &Up) -> anyhow::Result<()> {
    if let Ok(kept) = kept::Kept::find() {
        bail!("{} is up already: `cargo xtask cluster down` removes it", kept.tag());
    }
    packages::ensure_installed()?;
    registry::clean_up_on_signals()?;
    let progress = Progress::start();
    let tell = |step: &str| progress.tell(step);
    let mut spec = ClusterSpec::nodes(up.nodes).prefix(kept::PREFIX);
    match up.network {
        Network::Hypha => {
            progress.tell("building Hypha and its image");
            spec = spec.image(&image::archive()?);
        }
        Network::Reference => spec = spec.reference_network(),
        Network::None => {}
    }
    let cluster = spec.start(&tell)?;
    let connected = connect(&cluster, up, &progress);
    connected.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.diagnosis()))?;
    progress.finish();
    print!("{}", cluster.kubectl(&["get", "nodes", "--output=wide"])?);
    let hints = hints(&cluster)?;
    cluster.keep()?;
    eprintln!("{hints}");
    Ok(())
}

/// Gives the pods their network and waits until it is there.
fn connect(cluster: &Cluster, up: &Up, progress: &Progress) -> anyhow::Result<()> {
    let patience = Duration::from_mins(2);
    if up.network == Network::Hypha {
        progress.tell("applying deploy/hypha.yaml");
        cluster.install_hypha(match up.routing {
            Way::Tunnel => Routing::Tunnel,
            Way::Native => Routing::Native,
        })?;
        cluster.wait_daemon_set("hypha", patience)?;
    }
    if up.network != Network::None {
        progress.tell("waiting until every node is Ready");
        cluster.wait_nodes_ready(patience)?;
    }
    Ok(())
}

fn hints(cluster: &Cluster) -> anyhow::Result<String> {
    Ok(format!(
        "\nTry:\n  \
         cargo xtask cluster kubectl get pods --all-namespaces --output wide\n  \
         cargo xtask cluster kubectl create deployment web --image {} --replicas 4 -- httpd -f -p 8080\n  \
         nsenter --net=/run/netns/{}-gateway env KUBECONFIG={} <any client of Kubernetes>\n  \
         cargo xtask cluster down",
        hypha_lab::cluster::image::TOOLS,
        cluster.tag(),
        cluster.kubeconfig()?.display()
    ))
}

fn stop() -> anyhow::Result<()> {
    let tags = kept::remove()?;
    eprintln!("removed: {}", if tags.is_empty() { "nothing was up".to_owned() } else { tags.join(", ") });
    Ok(())
}

fn status(output: Output) -> anyhow::Result<()> {
    let kept = kept::Kept::find()?;
    let format = if output == Output::Json { "json" } else { "wide" };
    let mut kubectl = kept.kubectl()?;
    let resources = if output == Output::Json { "nodes,pods" } else { "nodes" };
    let status = kubectl.args(["get", resources, "--all-namespaces", "--output", format]).status();
    ensure!(status.context("starting kubectl")?.success(), "{} does not answer", kept.tag());
    if output == Output::Table {
        println!();
        let mut kubectl = kept.kubectl()?;
        let pods = kubectl.args(["get", "pods", "--all-namespaces", "--output", "wide"]).status();
        ensure!(pods.context("starting kubectl")?.success(), "{} does not answer", kept.tag());
    }
    Ok(())
}

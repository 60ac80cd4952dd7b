//! `cargo xtask demo`: two nodes and the world in namespaces on this machine, real traffic, and what became of it.

use anyhow::{Context as _, bail, ensure};
use hypha_lab::{Routing, demo, registry};

use crate::{compile, progress::Progress, test::packages, workspace};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Options {
    /// How packets travel between the nodes.
    #[arg(long, value_enum, default_value_t = Choice::Both)]
    routing: Choice,
    /// Leave the network up, and show what can be done with it.
    #[arg(long)]
    keep: bool,
    /// Take down the networks that --keep has left, and do nothing else.
    #[arg(long, conflicts_with_all = ["routing", "keep", "json"])]
    down: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

/// Which routing to show.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Choice {
    /// Packets as they are.
    Native,
    /// Packets wrapped in VXLAN.
    Tunnel,
    /// One after the other.
    Both,
}

impl Choice {
    fn routings(self) -> &'static [Routing] {
        match self {
            Self::Native => &[Routing::Native],
            Self::Tunnel => &[Routing::Tunnel],
            Self::Both => &Routing::BOTH,
        }
    }
}

/// Builds what is shipped, shows it at work, and fails when anything did not work.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(workspace::is_root(), "the demo makes network namespaces: run it as root");
    if options.down {
        let tags = demo::remove_kept()?;
        eprintln!("removed: {}", if tags.is_empty() { "nothing was up".to_owned() } else { tags.join(", ") });
        return Ok(());
    }
    packages::ensure_installed()?;
    // Other binaries can be named, to look at what a debug build says.
    if std::env::var_os("HYPHA_BIN_DIR").is_none() {
        let binaries = compile::binaries(true)?;
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("HYPHA_BIN_DIR", binaries) };
    }
    registry::clean_up_on_signals()?;
    show(options)
}

fn show(options: &Options) -> anyhow::Result<()> {
    let progress = Progress::start();
    let mut reports = Vec::new();
    let mut failed = false;
    for &routing in options.routing.routings() {
        let demo = demo::run(routing, &|step| progress.tell(step))?;
        failed |= !demo.is_ok();
        if !options.json {
            progress.pause(|| println!("{}", demo::text(&demo)));
        }
        reports.push(demo::json(&demo));
        if options.keep {
            let hints = demo::hints(&demo)?;
            demo.stage.keep()?;
            progress.pause(|| eprintln!("{hints}"));
        }
    }
    progress.finish();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&reports).context("writing JSON")?);
    }
    if failed {
        bail!("not everything worked: the table says what");
    }
    Ok(())
}

//! `hypha cleanup`.

use std::path::PathBuf;

use anyhow::Context;

use super::install;
use crate::daemon::{self, BPF_DIR, CNI_CONF_DIR, CleanupPaths, RUN_DIR};

/// Which agent's traces to remove.
#[derive(Debug, clap::Args)]
pub struct CleanupArgs {
    /// The agent's run directory
    #[arg(long, env = "HYPHA_RUN_DIR", value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,

    /// The directory of its pinned maps and links
    #[arg(long, env = "HYPHA_BPF_DIR", value_name = "DIR", default_value = BPF_DIR)]
    bpf_dir: PathBuf,

    /// The directory of its CNI configuration
    #[arg(long, env = "HYPHA_CNI_CONF_DIR", value_name = "DIR", default_value = CNI_CONF_DIR)]
    cni_conf_dir: PathBuf,

    /// Also remove the CNI shim from this directory
    #[arg(long, env = "HYPHA_CNI_BIN_DIR", value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
}

/// Removes them, and says what was there.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let paths = CleanupPaths {
        run_dir: args.run_dir.clone(),
        bpf_dir: args.bpf_dir.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the asynchronous runtime")?;
    for line in runtime.block_on(daemon::cleanup(&paths))? {
        println!("{line}");
    }
    // Last: until the configuration was gone a runtime might have called it.
    if let Some(bin_dir) = &args.cni_bin_dir {
        for path in install::remove(bin_dir)? {
            println!("removed {}", path.display());
        }
    }
    Ok(())
}

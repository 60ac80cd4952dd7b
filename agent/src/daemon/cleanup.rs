//! The end of Hypha on a node: what `hypha cleanup` removes, and in which order.
//!
//! Each step is safe to repeat, and the run directory, which says that there was an agent, goes last: a cleanup that was
//! killed at any point is ended by the next one.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::Context;

use super::{RunDir, conflist, expedite::Expedite, mounts};
use crate::{datapath, netlink::Netlink};

/// Whose traces to remove.
#[derive(Clone, Debug)]
pub struct CleanupPaths {
    /// Socket and state.
    pub run_dir: PathBuf,
    /// Pins.
    pub bpf_dir: PathBuf,
    /// The runtime's network configurations.
    pub cni_conf_dir: PathBuf,
}

/// Removes every trace of the agent from the node; pods lose their network. Refuses while an agent is running. Returns
/// what was there, a line for each.
///
/// # Errors
///
/// At the first thing that cannot be removed: what is left is then for the next call.
pub async fn cleanup(paths: &CleanupPaths) -> anyhow::Result<Vec<String>> {
    let lock = RunDir::take(&paths.run_dir)?;
    // Restored by the first look at its marker, which is in the run directory.
    mounts::make_settings_writable();
    drop(Expedite::new(&paths.run_dir, false));
    let mut done = Vec::new();
    // First, so that the runtime stops calling.
    if conflist::remove(&paths.cni_conf_dir)? {
        done.push(format!("removed {}", paths.cni_conf_dir.join(conflist::FILE_NAME).display()));
    }
    if paths.bpf_dir.exists() {
        datapath::cleanup(&paths.bpf_dir)?;
        done.push(format!("removed maps and programs pinned in {}", paths.bpf_dir.display()));
    }
    remove_devices(&mut done).await?;
    // The lock's file is in there: whoever starts now makes a new one.
    let gone = fs::remove_dir_all(&paths.run_dir);
    gone.with_context(|| format!("cannot remove {}", paths.run_dir.display()))?;
    drop(lock);
    done.push(format!("removed {}", paths.run_dir.display()));
    Ok(done)
}

async fn remove_devices(done: &mut Vec<String>) -> anyhow::Result<()> {
    let netlink = Netlink::connect().await?;
    for link in netlink.pod_links().await? {
        netlink.delete_pod_link(&link.name).await?;
        done.push(format!("deleted the veth {}", link.name));
    }
    let routes = netlink.sync_routes(&BTreeSet::new()).await?;
    if routes.removed > 0 {
        done.push(format!("deleted {} kernel routes", routes.removed));
    }
    if netlink.delete_overlay().await? {
        done.push("deleted the VXLAN device".into());
    }
    Ok(())
}

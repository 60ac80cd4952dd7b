//! The cluster that the scenarios share: started once, brought to what each of them asks for, and started anew after a
//! failure, whose traces nobody should have to tell from his own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Routing, Station,
    cluster::{Cluster, ClusterSpec, install, progress::to_stderr},
    poll,
};
use libtest_mimic::Trial;

use crate::support::{SOON, trial, watched};

/// How many nodes it has.
pub const NODES: u8 = 3;

/// What the cluster's pods are connected by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// Nothing yet.
    None,
    /// Hypha.
    Hypha(Routing),
}

/// The shared cluster, while there is one.
#[derive(Clone, Default)]
pub struct Stage {
    shared: Arc<Mutex<Option<(Cluster, Network)>>>,
}

impl Stage {
    /// A scenario on the cluster with this network; the cluster is empty of pods before.
    pub fn scenario(
        &self,
        name: &str,
        network: Network,
        body: impl FnOnce(&mut Cluster) -> Result<()> + Send + 'static,
    ) -> Trial {
        let stage = self.clone();
        trial(name, move || stage.play(network, body))
    }

    /// A scenario that leaves another network than it found.
    pub fn changing_scenario(
        &self,
        name: &str,
        (before, after): (Network, Network),
        body: impl FnOnce(&mut Cluster) -> Result<()> + Send + 'static,
    ) -> Trial {
        let stage = self.clone();
        trial(name, move || {
            stage.play(before, body)?;
            stage.note(after);
            Ok(())
        })
    }

    fn play(&self, network: Network, body: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        // Out of the slot as long as it is uncertain: an error drops it.
        let mut cluster = match shared.take() {
            Some((cluster, found)) if found == network => cluster,
            Some((mut cluster, found)) => {
                watched(&mut cluster, |cluster| change(cluster, found, network))?;
                cluster
            }
            None => fresh(network)?,
        };
        watched(&mut cluster, |cluster| {
            clear(cluster)?;
            body(cluster)
        })?;
        *shared = Some((cluster, network));
        Ok(())
    }

    fn note(&self, network: Network) {
        if let Some((_, noted)) = self.shared.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *noted = network;
        }
    }

    /// Takes the cluster down.
    pub fn strike(&self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn fresh(network: Network) -> Result<Cluster> {
    let spec = ClusterSpec::nodes(NODES).image(&install::image_archive()?);
    let mut cluster = spec.start(&to_stderr)?;
    watched(&mut cluster, |cluster| change(cluster, Network::None, network))?;
    Ok(cluster)
}

fn change(cluster: &Cluster, from: Network, to: Network) -> Result<()> {
    if from != Network::None {
        clear(cluster)?;
        cluster.uninstall_hypha(SOON)?;
    }
    if let Network::Hypha(routing) = to {
        cluster.install_hypha(routing)?;
        cluster.wait_daemon_set("hypha", SOON)?;
        cluster.wait_nodes_ready(SOON)?;
    }
    Ok(())
}

/// Deletes what scenarios make, and waits until the agents hold nothing of it.
fn clear(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&[
        "delete",
        "deployments,pods",
        "--all",
        "--namespace=default",
        "--wait=false",
        "--grace-period=1",
    ])?;
    poll::eventually("the scenarios' pods are gone", SOON, || {
        let pods = cluster.get(&["pods"])?;
        let left = pods["items"].as_array().context("no list")?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
}

/// How many endpoints the agents of all nodes hold.
pub fn endpoints(cluster: &Cluster) -> Result<usize> {
    let mut count = 0;
    for machine in cluster.machines() {
        let list = cluster.hypha(machine.name(), &["endpoint", "list", "--output=json"])?;
        let list: serde_json::Value = serde_json::from_str(&list).context("endpoint list is not JSON")?;
        count += list.as_array().context("endpoint list is no list")?.len();
    }
    Ok(count)
}

/// Waits until the agents hold that many.
pub fn wait_endpoints(cluster: &Cluster, wanted: usize, within: Duration) -> Result<()> {
    poll::eventually(&format!("the agents hold {wanted} endpoints"), within, || {
        let found = endpoints(cluster)?;
        ensure!(found == wanted, "they hold {found}");
        Ok(())
    })
}

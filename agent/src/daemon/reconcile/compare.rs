//! What is wanted against what the kernel holds: the part of a pass whose cost grows with the cluster.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{GAP, PassError, Reconciler};
use crate::{
    core::{
        Desired,
        desired::{Compiled, compile},
        facts::Facts,
    },
    daemon::facts,
    datapath::{Changes, Datapath, DatapathError, Role},
};

/// Comparisons for which nobody gave a reason may take one part in so many of the time...
const COST: u32 = 500;
/// ... but come at least this often.
const RAREST: Duration = Duration::from_secs(30);
/// A comparison of what is wanted with what the kernel holds.
#[derive(Debug)]
pub(super) struct Comparison {
    /// How often nodes had changed.
    nodes: u64,
    facts: Facts,
    started: Instant,
    took: Duration,
}

impl Comparison {
    /// Whether another one would find the same, as far as one can know without looking: what is wanted is the same, and
    /// the kernel has not reported changes. It does not report when somebody changes maps, so that is looked for, too: as
    /// often as it may cost.
    pub(super) fn holds(&self, nodes: u64, facts: &Facts) -> bool {
        let due = (self.took * COST).clamp(GAP, RAREST);
        self.started.elapsed() < due && self.nodes == nodes && self.facts == *facts
    }
}

impl Reconciler {
    /// What is wanted, computed anew, against what the kernel holds.
    pub(super) async fn compare(
        &mut self,
        facts: &Facts,
        attachments: BTreeMap<u32, Role>,
    ) -> Result<(), PassError> {
        self.last = None;
        let (agent, nodes, started) = (Arc::clone(&self.agent), self.nodes, Instant::now());
        let Compiled { desired, kernel_routes, problems } = compile(&agent.index().nodes, facts);
        self.say(problems);
        self.bring_datapath(Some(desired), attachments).await?;
        let routes = agent.netlink.sync_routes(&kernel_routes).await?;
        let neighbours = agent.netlink.ensure_neighbours(&facts::neighbours(facts)).await?;
        agent.metrics.changed("routes", routes.added + routes.removed);
        agent.metrics.changed("neighbours", neighbours);
        if routes.added + routes.removed + neighbours > 0 {
            info!(
                added = routes.added,
                removed = routes.removed,
                neighbours,
                "kernel routes brought up to date"
            );
        }
        self.last = Some(Comparison { nodes, facts: facts.clone(), started, took: started.elapsed() });
        Ok(())
    }

    /// Maps first: programs that are attached, or swapped, find them filled.
    pub(super) async fn bring_datapath(
        &self,
        desired: Option<Desired>,
        wanted: BTreeMap<u32, Role>,
    ) -> Result<(), PassError> {
        let bring = move |datapath: &mut Datapath| -> Result<_, DatapathError> {
            let repinned = !datapath.pins_intact();
            if repinned {
                datapath.repin()?;
            }
            let maps = desired.map_or_else(|| Ok(Changes::default()), |desired| datapath.apply(&desired))?;
            Ok((repinned, maps, datapath.attach_all(&wanted)?))
        };
        let (repinned, maps, attachments) = self.agent.datapath.run(bring).await??;
        if repinned {
            warn!("somebody had removed pins: they are back");
            self.agent.metrics.changed("pins", 1);
        }
        if maps.removed > 0 {
            self.agent.leavers.notify_one();
        }
        self.report("maps", maps);
        self.report("attachments", attachments);
        Ok(())
    }

    fn report(&self, what: &'static str, changes: Changes) {
        let Changes { added, updated, removed } = changes;
        self.agent.metrics.changed(what, added + updated + removed);
        if changes != Changes::default() {
            info!(what, added, updated, removed, "datapath brought up to date");
        }
    }
}

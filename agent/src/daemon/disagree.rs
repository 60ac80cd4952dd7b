//! Tells operators when the API server and this node disagree about a pod's addresses, and keep disagreeing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::agent::Agent;
use crate::{
    core::pods::{self, Disagreement, PodKey},
    store::{Phase, Record},
};

/// A kubelet tells the API server of a pod's addresses a moment after the pod has them.
const PATIENCE: Duration = Duration::from_secs(20);
/// The interface whose addresses Kubernetes takes for the pod's.
const POD_INTERFACE: &str = "eth0";

/// The disagreements that are known, and since when.
#[derive(Debug, Default)]
pub struct Disagreements {
    known: BTreeMap<Disagreement, Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    told: bool,
}

impl Disagreements {
    /// Compares every endpoint with its pod's object.
    pub fn look(&mut self, agent: &Agent) {
        self.take(find(agent), Instant::now());
        let told = self.known.values().filter(|known| known.told).count();
        agent.metrics.disagreements.set(told as i64);
    }

    fn take(&mut self, found: Vec<Disagreement>, now: Instant) {
        self.known.retain(|disagreement, known| {
            let stays = found.contains(disagreement);
            if known.told && !stays {
                info!("no longer: {disagreement}");
            }
            stays
        });
        for disagreement in found {
            let text = disagreement.to_string();
            let known = self.known.entry(disagreement).or_insert(Known { since: now, told: false });
            if !known.told && now.duration_since(known.since) >= PATIENCE {
                known.told = true;
                warn!("{text}");
            }
        }
    }
}

fn find(agent: &Agent) -> Vec<Disagreement> {
    let index = agent.index();
    let ledger = agent.ledger();
    let disagreement = |record: &Record| {
        let pod = record.pod.as_ref()?;
        let key = PodKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
        pods::disagreement(&index.pods, &key, pod.uid.as_deref(), &record.addresses)
    };
    let pods = ledger
        .records()
        .filter(|record| record.phase == Phase::Ready && record.attachment.ifname == POD_INTERFACE);
    pods.filter_map(disagreement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disagreement(name: &str) -> Disagreement {
        let pod = PodKey { namespace: "shop".into(), name: name.into() };
        Disagreement { pod, says: vec![[10, 1, 0, 5].into()], has: vec![[10, 1, 0, 6].into()] }
    }

    #[test]
    fn what_lasts_is_told_and_what_passes_is_not() {
        let mut all = Disagreements::default();
        let start = Instant::now();
        let told = |all: &Disagreements| all.known.values().filter(|known| known.told).count();
        all.take(vec![disagreement("a"), disagreement("b")], start);
        assert_eq!(told(&all), 0, "objects follow a little later");
        all.take(vec![disagreement("a")], start + PATIENCE);
        assert_eq!(told(&all), 1);
        all.take(vec![disagreement("b")], start + PATIENCE);
        assert_eq!((told(&all), all.known.len()), (0, 1), "it begins anew");
    }
}

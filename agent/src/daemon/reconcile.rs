//! The loop that keeps the node as it should be: whatever changes, and also when nothing seems to, what is wanted is
//! computed anew and compared with what the kernel holds.

mod compare;
mod learn;
mod publish;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::compare::Comparison;
use super::{
    agent::Agent,
    collector,
    conflist::ConflistError,
    disagree::Disagreements,
    facts::{self, Gathered},
    worker::WorkerGone,
};
use crate::{
    core::{
        desired::Problem,
        facts::Facts,
        objects::{Event, Kind},
    },
    datapath::DatapathError,
    netlink::{Changes as NetworkChanges, Monitor, Netlink, NetlinkError, PodLink, PodLinkInfo},
    source::masq_file::MasqFile,
    store::{Phase, Record},
};

/// How often everything is compared although nothing seems to have changed.
const TICK: Duration = Duration::from_secs(2);
/// The shortest time between two passes: a burst of changes is one.
const GAP: Duration = Duration::from_millis(250);
/// How long facts about the node's own network are believed while the kernel reports no change.
const FACTS_AGE: Duration = Duration::from_secs(30);
/// The same while it reports some: every pod that comes or goes is one. Changes of the node's addresses are not waited
/// for: packets leave with them.
const FACTS_AGE_CHANGED: Duration = Duration::from_secs(1);

/// Why a reconciliation did not come to its end; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Maps and programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The thread behind them.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// The runtime's network configuration.
    #[error(transparent)]
    Conflist(#[from] ConflistError),
}

/// Who says that something has changed.
#[derive(Debug)]
pub struct Inputs {
    /// The source of objects.
    pub events: mpsc::Receiver<Event>,
    /// The kernel.
    pub monitor: Monitor,
    /// The file that tells which prefixes are not masqueraded.
    pub masq_file: Option<watch::Receiver<MasqFile>>,
}

/// Follows the sources and the kernel.
#[derive(Debug)]
pub struct Reconciler {
    agent: Arc<Agent>,
    inputs: Inputs,
    /// Told when the first pass has ended.
    compared: Option<oneshot::Sender<()>>,
    facts: Option<Gathered>,
    /// The kernel reported changes since the facts were gathered.
    stale: Option<Stale>,
    /// Nodes have changed since then.
    renewed: bool,
    /// How often nodes have changed.
    nodes: u64,
    /// The kernel reported changes since the last comparison, or that failed.
    noticed: bool,
    last: Option<Comparison>,
    /// Flows of former owners of addresses have ended.
    settled: bool,
    /// The node's addresses as of the last pass.
    addresses: BTreeSet<IpAddr>,
    /// What the kernel has reported altogether.
    seen: NetworkChanges,
    last_pass: Instant,
    said: Said,
    disagreements: Disagreements,
}

/// How far facts about the node's network may be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    /// Something has changed.
    Somewhere,
    /// The node's addresses or the way to the world have changed, or nobody knows what.
    Addresses,
}

/// What the log knows already.
#[derive(Debug, Default)]
struct Said {
    problems: BTreeSet<Problem>,
    error: Option<String>,
    unlinked: BTreeSet<u32>,
}

impl Reconciler {
    /// Nothing is compared before [`Reconciler::run`], which tells `compared` when it has been once.
    pub fn new(agent: Arc<Agent>, inputs: Inputs, compared: oneshot::Sender<()>) -> Self {
        Self {
            agent,
            inputs,
            compared: Some(compared),
            facts: None,
            stale: None,
            renewed: false,
            nodes: 0,
            noticed: false,
            last: None,
            settled: false,
            addresses: BTreeSet::new(),
            seen: NetworkChanges::default(),
            last_pass: Instant::now(),
            said: Said::default(),
            disagreements: Disagreements::default(),
        }
    }

    /// Runs until `stop` says so.
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = self.learn() => {}
            () = stop.cancelled() => return,
        }
        self.drain();
        self.pass().await;
        if let Some(compared) = self.compared.take() {
            // Nobody may listen any more.
            let _ = compared.send(());
        }
        self.keep(stop).await;
    }

    async fn keep(mut self, stop: CancellationToken) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = FACTS_AGE_CHANGED.saturating_sub(self.last_pass.elapsed());
            let matters = tokio::select! {
                Some(event) = self.inputs.events.recv() => self.take(event),
                Ok(()) = self.inputs.monitor.changed() => true,
                Some(()) = changed(&mut self.inputs.masq_file) => true,
                () = sleep(due), if self.stale.is_some() => true,
                _ = tick.tick() => true,
                () = stop.cancelled() => return,
            };
            if matters {
                sleep(GAP.saturating_sub(self.last_pass.elapsed())).await;
                self.drain();
                self.pass().await;
            }
        }
    }

    /// One comparison of everything; what fails is logged and left to the next one.
    pub async fn pass(&mut self) {
        let result = self.try_pass().await;
        self.last_pass = Instant::now();
        self.agent.metrics.passed(result.is_ok());
        match result {
            Ok(()) => {
                if self.said.error.take().is_some() {
                    info!("the node is as it should be again");
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &PassError) {
        self.noticed = true;
        // Facts may be what was wrong, for instance a device that is gone.
        self.stale = self.stale.max(Some(Stale::Somewhere));
        let text = error.to_string();
        if self.said.error.as_ref() != Some(&text) {
            error!(error = text, "cannot bring the node to its desired state: trying again");
        }
        let mut view = self.agent.view();
        if view.not_ready.is_some() {
            view.not_ready = Some(text.clone());
            self.agent.set_view(view);
        }
        self.said.error = Some(text);
    }

    fn drain(&mut self) {
        while let Ok(event) = self.inputs.events.try_recv() {
            self.take(event);
        }
        let changes = *self.inputs.monitor.borrow_and_update();
        let seen = std::mem::replace(&mut self.seen, changes);
        self.noticed |= changes.all != seen.all;
        if changes.addresses != seen.addresses {
            self.stale = Some(Stale::Addresses);
        } else if changes.all - changes.own != seen.all - seen.own {
            self.stale = self.stale.max(Some(Stale::Somewhere));
        }
        if self.inputs.monitor.has_changed().is_err() {
            warn!("the kernel's notifications ended: subscribing anew");
            self.stale = Some(Stale::Addresses);
            match Netlink::monitor() {
                Ok(monitor) => (self.inputs.monitor, self.seen) = (monitor, NetworkChanges::default()),
                Err(error) => warn!(%error, "cannot subscribe to the kernel's notifications"),
            }
        }
    }

    /// Tells whether the network may have to change.
    fn take(&mut self, event: Event) -> bool {
        let taken = self.agent.index().take(event);
        for error in taken.errors {
            warn!(%error, "unusable object: what was known before stays");
        }
        let matters = taken.changed == Some(Kind::Node);
        if matters {
            // Other nodes' next hops are among the facts.
            self.renewed = true;
            self.nodes += 1;
        }
        matters
    }

    async fn try_pass(&mut self) -> Result<(), PassError> {
        let facts = self.facts().await?;
        let agent = Arc::clone(&self.agent);
        let quiet = agent.wiring.write().await;
        let links = agent.netlink.pod_links().await?;
        let pods = self.wired_pods(&links);
        let facts = Facts {
            pods: pods.iter().filter_map(|(record, _)| record.facts()).collect(),
            exempt_cidrs: self.exempt_cidrs(),
            ..facts
        };
        let attachments = facts::attachments(&facts, &links);
        let noticed = std::mem::take(&mut self.noticed);
        let holds = self.last.as_ref().is_some_and(|last| !noticed && last.holds(self.nodes, &facts));
        if holds {
            self.bring_datapath(None, attachments).await?;
        } else {
            self.compare(&facts, attachments).await?;
        }
        for (record, _) in pods.iter().filter(|(_, up)| !up) {
            self.raise(record).await?;
        }
        drop(quiet);
        if !self.settled {
            // Flows of pods that an earlier agent deleted last: until they have ended no address is given out.
            collector::first(&agent).await;
            self.settled = true;
        }
        self.publish(&facts)?;
        self.disagreements.look(&agent);
        self.tell_former_addresses(&facts.local.all);
        Ok(())
    }

    /// What the operator says, and what the file says at this moment.
    fn exempt_cidrs(&self) -> Vec<IpNet> {
        let mut cidrs = self.agent.config.exempt_cidrs.clone();
        let file = self.inputs.masq_file.as_ref().map(|file| file.borrow().config.exempt.clone());
        cidrs.extend(file.into_iter().flatten());
        cidrs
    }

    /// Flows that leave under an address which is no longer there would wait for answers in vain: the collector ends them.
    fn tell_former_addresses(&mut self, addresses: &[IpAddr]) {
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let gone: Vec<IpAddr> = self.addresses.difference(&addresses).copied().collect();
        self.addresses = addresses;
        if !gone.is_empty() {
            info!(addresses = ?gone, "addresses of the node are gone: ending their flows");
        }
    }

    /// What is known about the node's own network, read from the kernel when it may have changed.
    async fn facts(&mut self) -> Result<Facts, PassError> {
        let age = match self.stale {
            None => FACTS_AGE,
            Some(Stale::Somewhere) => FACTS_AGE_CHANGED,
            Some(Stale::Addresses) => Duration::ZERO,
        };
        if let Some(mut gathered) = self.facts.clone().filter(|facts| facts.at.elapsed() < age)
            && (!self.renewed || gathered.follow_nodes(&self.agent).await?)
        {
            self.renewed = false;
            let facts = gathered.facts.clone();
            self.facts = Some(gathered);
            return Ok(facts);
        }
        // What changes from here on is seen by the next pass.
        (self.stale, self.renewed) = (None, false);
        let gathered = facts::gather(&self.agent).await?;
        let facts = gathered.facts.clone();
        let known = self.facts.as_ref().map(|known| &known.facts.uplinks);
        if known != Some(&facts.uplinks) {
            for uplink in &facts.uplinks {
                info!(device = uplink.name, mtu = uplink.mtu, addresses = ?uplink.addresses, "uplink");
            }
        }
        self.facts = Some(gathered);
        Ok(facts)
    }

    /// The endpoints that are ready and whose veth exists, each with whether the veth is up. An endpoint without veth
    /// stays known until its DEL, but nobody can reach it: its pod is gone, or somebody took its network away.
    fn wired_pods(&mut self, links: &[PodLinkInfo]) -> Vec<(Record, bool)> {
        let up = |record: &Record| {
            let ifindex = record.link?.ifindex;
            links
                .iter()
                .find(|link| link.ifindex == ifindex && link.name == record.host_ifname)
                .map(|it| it.up)
        };
        let agent = Arc::clone(&self.agent);
        let ledger = agent.ledger();
        let (mut pods, mut unlinked) = (Vec::new(), BTreeSet::new());
        for record in ledger.records().filter(|record| record.phase == Phase::Ready) {
            match up(record) {
                Some(up) => pods.push((record.clone(), up)),
                None => {
                    if !self.said.unlinked.contains(&record.id) {
                        let (endpoint, device) = (record.id, &record.host_ifname);
                        info!(endpoint, device, "the endpoint's veth is gone: unreachable until its DEL");
                    }
                    unlinked.insert(record.id);
                }
            }
        }
        self.said.unlinked = unlinked;
        pods
    }

    /// Somebody has set the pod's veth down.
    async fn raise(&self, record: &Record) -> Result<(), NetlinkError> {
        let Some(link) = record.link else { return Ok(()) };
        warn!(endpoint = record.id, device = record.host_ifname, "the endpoint's veth was down");
        self.agent.metrics.changed("pods", 1);
        let existing = PodLink::existing(link.ifindex, link.mac);
        self.agent.netlink.publish_pod_link(existing, &self.agent.pod_wiring(record)).await
    }

    fn say(&mut self, problems: BTreeSet<Problem>) {
        for problem in problems.difference(&self.said.problems) {
            warn!("{problem}");
        }
        for problem in self.said.problems.difference(&problems) {
            info!("no longer: {problem}");
        }
        self.said.problems = problems;
    }
}

/// Waits for the file's next state; `None` when there is none to wait for.
async fn changed(file: &mut Option<watch::Receiver<MasqFile>>) -> Option<()> {
    file.as_mut()?.changed().await.ok()
}

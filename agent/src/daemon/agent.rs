//! What the daemon's tasks share: the ledger, the shells to the kernel, and the latest view of the node.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hypha_cni::queue::Queue;
use ipnet::IpNet;
use tokio::sync::{Notify, RwLock, watch};

use super::{Config, drops::Channels, expedite::Expedite, metrics::Metrics, worker::Worker};
use crate::{
    core::{choice::Choice, index::Index},
    netlink::{Netlink, PodWiring},
    source::{self, masq_file::MasqFile},
    store::{Ledger, Record},
};

/// The running agent.
#[derive(Debug)]
pub struct Agent {
    /// What it was told.
    pub config: Config,
    /// Links, addresses, routes.
    pub netlink: Netlink,
    /// Maps and programs.
    pub datapath: Worker,
    /// Deletes that came while no agent ran.
    pub queue: Queue,
    /// Short waits inside the kernel while calls are under way.
    pub expedite: Expedite,
    /// What it counts.
    pub metrics: Metrics,
    /// Read-held while a call wires or unwires a pod, write-held while a reconciliation compares pods with the kernel:
    /// what it finds is either wanted or on nobody's way.
    pub wiring: RwLock<()>,
    /// Where news about drops go.
    pub channels: Channels,
    /// Addresses have gone whose flows are still to be ended.
    pub leavers: Notify,
    /// How it goes with the source of objects.
    pub source: source::Status,
    ledger: Mutex<Ledger>,
    index: Mutex<Index>,
    view: Mutex<View>,
    ready: watch::Sender<bool>,
}

/// The node as of the last reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Why pods cannot be added; `None` when they can.
    pub not_ready: Option<String>,
    /// The pods' MTU in bytes.
    pub mtu: u32,
    /// Source of the node's own packets to its pods, IPv4.
    pub node_v4: Option<IpAddr>,
    /// Source of the node's own packets to its pods, IPv6.
    pub node_v6: Option<IpAddr>,
    /// How many nodes are known.
    pub nodes: usize,
    /// The node's pod prefixes.
    pub pod_cidrs: Vec<IpNet>,
    /// The uplinks' names.
    pub uplinks: Vec<String>,
    /// Whom new flows to the world appear as.
    pub choices: Vec<Choice>,
    /// The file that tells which prefixes are not masqueraded.
    pub masq_file: Option<MasqFile>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            not_ready: Some("the agent is starting".into()),
            mtu: 1280,
            node_v4: None,
            node_v6: None,
            nodes: 0,
            pod_cidrs: Vec::new(),
            uplinks: Vec::new(),
            choices: Vec::new(),
            masq_file: None,
        }
    }
}

impl Agent {
    /// Puts the parts together.
    pub fn new(
        config: Config,
        netlink: Netlink,
        datapath: Worker,
        ledger: Ledger,
        source: source::Status,
        channels: Channels,
    ) -> Self {
        let queue = Queue::new(&config.run_dir);
        let expedite = Expedite::new(&config.run_dir, config.expedite_rcu);
        Self {
            config,
            netlink,
            datapath,
            queue,
            expedite,
            metrics: Metrics::default(),
            wiring: RwLock::new(()),
            channels,
            leavers: Notify::new(),
            source,
            ledger: Mutex::new(ledger),
            index: Mutex::default(),
            view: Mutex::default(),
            ready: watch::Sender::new(false),
        }
    }

    /// The endpoints. Held for moments only, never across an await.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known from Kubernetes objects. Held for moments only, never across an await.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest view of the node.
    pub fn view(&self) -> View {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the view; returns the one before.
    pub fn set_view(&self, view: View) -> View {
        let ready = view.not_ready.is_none();
        self.ready.send_if_modified(|before| std::mem::replace(before, ready) != ready);
        std::mem::replace(&mut *self.view.lock().unwrap_or_else(PoisonError::into_inner), view)
    }

    /// Whether pods can be added, from now on.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// How an endpoint's interface should be wired.
    pub fn pod_wiring(&self, record: &Record) -> PodWiring {
        let View { node_v4, node_v6, .. } = self.view();
        PodWiring {
            host_ifname: record.host_ifname.clone(),
            container_ifname: record.attachment.ifname.clone(),
            addresses: record.addresses.clone(),
            mtu: record.mtu,
            mac: record.link.map(|link| link.mac),
            node_v4,
            node_v6,
        }
    }
}

//! Follows what the programs tell about drops: counts it, passes it on, says it when an operator has to know, and asks for room
//! when there is none left.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use datapath_ebpf::{DropReason, collect::Remote, flow::ticks_of_seconds, maps::MASQUERADE_PORTS};
use tokio::{
    io::unix::AsyncFd,
    sync::{broadcast, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::agent::Agent;
use crate::datapath::{Dropped, Events, Shortage};

/// How often the log repeats itself about one remote end.
const REPEAT: Duration = Duration::from_secs(60);
/// Remote ends that the log keeps apart; beyond that all others are one.
const APART: usize = 64;
/// Events taken at once before others get their turn.
const BATCH: usize = 256;
/// An event that is older tells about a shortage of the past: nobody was there to read it.
const RECENT: u32 = ticks_of_seconds(2);
/// What a listener may lag behind.
const BACKLOG: usize = 1024;

/// Where events go.
#[derive(Debug)]
pub struct Channels {
    /// To whoever listens.
    pub drops: broadcast::Sender<Dropped>,
    /// To the collector.
    pub shortages: mpsc::Sender<Shortage>,
}

impl Channels {
    /// Also returns the collector's end.
    pub fn new() -> (Self, mpsc::Receiver<Shortage>) {
        let (shortages, wanted) = mpsc::channel(16);
        (Self { drops: broadcast::Sender::new(BACKLOG), shortages }, wanted)
    }
}

/// Opens what the programs tell, to be waited for.
pub fn open(bpf_dir: &Path) -> anyhow::Result<AsyncFd<Events>> {
    let events = Events::open(bpf_dir)?;
    // SAFETY: the ring's descriptor is the same, and open, for as long as the ring is there.
    unsafe { AsyncFd::register(events) }.context("cannot wait for what programs tell")
}

/// Runs until `stop` says so.
pub async fn run(agent: Arc<Agent>, events: AsyncFd<Events>, stop: CancellationToken) {
    let (mut events, mut said) = (events, Said::default());
    loop {
        let mut ready = tokio::select! {
            ready = events.readable_mut() => match ready {
                Ok(ready) => ready,
                Err(error) => return warn!(%error, "cannot follow what programs tell about drops"),
            },
            () = stop.cancelled() => return,
        };
        let mut taken = 0;
        while taken < BATCH
            && let Some(dropped) = ready.get_inner_mut().next()
        {
            take(&agent, &mut said, &dropped);
            taken += 1;
        }
        if taken < BATCH {
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

fn take(agent: &Agent, said: &mut Said, dropped: &Dropped) {
    agent.metrics.flows.told(dropped.reason);
    // Nobody listens: nothing to do.
    let _ = agent.channels.drops.send(*dropped);
    let shortage = match dropped.reason {
        DropReason::ConntrackFull => Shortage::Room,
        DropReason::PortsExhausted => Shortage::Ports(dropped.remote()),
        _ => return,
    };
    said.say(shortage);
    if dropped.age() < RECENT {
        // The collector has enough to do already: whatever it does makes room.
        let _ = agent.channels.shortages.try_send(shortage);
    }
}

/// What the log has been told, and when.
#[derive(Debug, Default)]
struct Said {
    last: BTreeMap<Shortage, Instant>,
}

impl Said {
    fn say(&mut self, shortage: Shortage) {
        let now = Instant::now();
        self.last.retain(|_, last| now.duration_since(*last) < REPEAT);
        if self.last.contains_key(&shortage) || self.last.len() >= APART {
            return;
        }
        self.last.insert(shortage, now);
        match shortage {
            Shortage::Room => warn!(
                "no room for more flows: new connections of pods to the world are refused until others end; `hypha \
                 conntrack list` shows them, --conntrack-max makes room for more"
            ),
            Shortage::Ports(remote) => warn!(
                remote = describe(&remote),
                ports = MASQUERADE_PORTS,
                "every masquerade port towards this remote end is taken: new connections to it are refused until others \
                 end; `hypha nat pools` shows how many are taken; more addresses on the uplink, or at the remote end, \
                 make room"
            ),
        }
    }
}

fn describe(remote: &Remote) -> String {
    SocketAddr::new(IpAddr::from(remote.address), remote.port.get()).to_string()
}

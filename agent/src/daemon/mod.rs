//! The agent's life: what happens at start, in what order, and at the end.
//!
//! Order at start: open the datapath (adopting what is pinned), read the store, end what an agent that was killed had begun,
//! carry out deletes that came while no agent ran. Then the objects are waited for, for as long as it takes: meanwhile
//! packets flow by what is pinned, deletes are carried out and ADDs refused. When all objects are known, reconcile: maps
//! are filled completely before programs are attached or swapped, and kernel routes come last. Then flows of former owners
//! of addresses are ended, and then pods can be added.
//!
//! At the end everything stays in place: programs, maps, devices, routes and the CNI configuration. A restart or an
//! upgrade is nothing that pods notice.

mod agent;
mod cleanup;
mod collector;
mod config;
mod conflist;
mod disagree;
mod drops;
mod expedite;
mod facts;
mod metrics;
mod mounts;
mod preflight;
mod reconcile;
mod worker;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::{
    agent::{Agent, View},
    cleanup::{CleanupPaths, cleanup},
    config::{BPF_DIR, CNI_CONF_DIR, Config, Options, RUN_DIR, Source},
    preflight::{RunDir, mount_bpffs},
    worker::{Worker, WorkerGone},
};
use self::{
    drops::Channels,
    reconcile::{Inputs, Reconciler},
};
use crate::{
    datapath::{self, Settings},
    netlink::Netlink,
    server,
    source::{
        self,
        kubernetes::{Followed, OwnNode},
    },
    store::Ledger,
};

/// How many threads may be in the kernel for the runtime at once: rtnetlink serialises behind one lock anyway.
const BLOCKING_THREADS: usize = 4;
/// How long calls that are under way get to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long a call that comes at start is kept waiting rather than refused.
const SOON: Duration = Duration::from_secs(1);

/// Runs the agent until `SIGTERM` or `SIGINT`.
pub fn run(config: Config) -> anyhow::Result<()> {
    preflight::check_kernel()?;
    preflight::ensure_bpffs(&config.bpf_dir)?;
    mounts::make_settings_writable();
    let _run_dir = RunDir::take(&config.run_dir)?;
    // One thread: calls wait for the kernel, not for a processor.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(live(config));
    runtime.shutdown_background();
    result
}

/// Waits for `SIGTERM` or `SIGINT`.
pub fn pause() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Blocked, or else the first process of a PID namespace would never get them.
    signals.thread_block().context("cannot block signals")?;
    signals.wait().context("cannot wait for a signal")?;
    Ok(())
}

async fn live(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    info!(node = config.node_name, routing = ?config.routing, version = env!("CARGO_PKG_VERSION"), "starting");

    let timeouts = datapath::timeouts(&config.timeouts.seconds());
    let settings = Settings { conntrack_max: config.conntrack_max, timeouts };
    let datapath = Worker::start(&config.bpf_dir, settings).await?;
    let ledger = Ledger::open(&config.run_dir)?;
    let Objects { events, status, writer } = objects(&config).await?;
    let kept = config.run_dir.join("ip-masq-agent");
    let masq_file = config.ip_masq_agent_config.as_deref().map(|path| source::masq_file::watch(path, &kept));
    let masq_file = masq_file.transpose()?;
    // Listening before looking: a change in between is looked at twice rather than missed.
    let monitor = Netlink::monitor()?;
    let netlink = Netlink::connect().await?;
    let (channels, shortages) = Channels::new();
    let drops = drops::open(&config.bpf_dir)?;
    let agent = Arc::new(Agent::new(config, netlink, datapath, ledger, status, channels));
    if let Some(address) = agent.config.metrics_addr {
        metrics::serve(Arc::clone(&agent), address).await?;
    }
    server::recover(&agent).await;
    let listener = server::bind(&agent.config.run_dir)?;
    server::replay(&agent).await;
    let (compared, first) = oneshot::channel();
    let reconciler = Reconciler::new(Arc::clone(&agent), Inputs { events, monitor, masq_file }, compared);
    let serving = tokio::spawn(serve(listener, Arc::clone(&agent), first, stop.clone()));
    let reconciling = tokio::spawn(reconciler.run(stop.clone()));
    let collecting = tokio::spawn(collector::run(Arc::clone(&agent), shortages, stop.clone()));
    tokio::spawn(drops::run(Arc::clone(&agent), drops, stop.clone()));
    if let Some((client, own)) = writer {
        tokio::spawn(source::kubernetes::announce(client, own, agent.readiness(), stop.clone()));
    }

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: ending; the datapath stays in place"),
        _ = interrupt.recv() => info!("SIGINT: ending; the datapath stays in place"),
    }
    stop.cancel();
    let _ = tokio::time::timeout(GRACE, async { tokio::join!(serving, reconciling, collecting) }).await;
    Ok(())
}

/// Where objects come from, followed.
struct Objects {
    events: mpsc::Receiver<source::Event>,
    status: source::Status,
    /// For what the agent writes, where there is somebody to write to.
    writer: Option<(kube::Client, tokio::sync::watch::Receiver<OwnNode>)>,
}

async fn objects(config: &Config) -> anyhow::Result<Objects> {
    match &config.source {
        Source::Dir(path) => {
            let status = source::Status::new("dir", path.display().to_string());
            let events = source::dir::watch(path, status.clone())?;
            Ok(Objects { events, status, writer: None })
        }
        Source::Kubernetes(access) => {
            let Followed { events, status, own, client } =
                source::kubernetes::follow(access, &config.node_name).await?;
            Ok(Objects { events, status, writer: Some((client, own)) })
        }
    }
}

/// Answers calls as soon as the node is as it should be, or when that takes long.
async fn serve(
    listener: UnixListener,
    agent: Arc<Agent>,
    first: oneshot::Receiver<()>,
    stop: CancellationToken,
) {
    tokio::select! {
        _ = tokio::time::timeout(SOON, first) => {}
        () = stop.cancelled() => {}
    }
    info!(socket = %server::socket(&agent.config.run_dir).display(), "serving");
    server::serve(listener, agent, stop).await;
}

//! The agent's life: what happens at start, in what order, and at the end.
//!
//! Order at start: open the datapath (adopting what is pinned), read the store, learn the objects, then reconcile: maps
//! are filled completely before programs are attached or swapped, and kernel routes come last. Then deletes that came
//! while no agent ran, then calls.
//!
//! At the end everything stays in place: programs, maps, devices, routes and the CNI configuration. A restart or an
//! upgrade is nothing that pods notice.

mod agent;
mod cleanup;
mod collector;
mod config;
mod conflist;
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
use tokio::signal::unix::{SignalKind, signal};
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
    server, source,
    store::Ledger,
};

/// How many threads may be in the kernel for the runtime at once: rtnetlink serialises behind one lock anyway.
const BLOCKING_THREADS: usize = 4;
/// How long calls that are under way get to end.
const GRACE: Duration = Duration::from_secs(10);

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
    let Source::Dir(path) = &config.source;
    let events = source::dir::watch(path)?;
    let kept = config.run_dir.join("ip-masq-agent");
    let masq_file = config.ip_masq_agent_config.as_deref().map(|path| source::masq_file::watch(path, &kept));
    let masq_file = masq_file.transpose()?;
    // Listening before looking: a change in between is looked at twice rather than missed.
    let monitor = Netlink::monitor()?;
    let netlink = Netlink::connect().await?;
    let (channels, shortages) = Channels::new();
    let drops = drops::open(&config.bpf_dir)?;
    let agent = Arc::new(Agent::new(config, netlink, datapath, ledger, channels));
    if let Some(address) = agent.config.metrics_addr {
        metrics::serve(Arc::clone(&agent), address).await?;
    }
    let mut reconciler = Reconciler::new(Arc::clone(&agent), Inputs { events, monitor, masq_file });
    reconciler.first_sync().await;
    server::recover(&agent).await;
    reconciler.pass().await;
    collector::first(&agent).await;
    let listener = server::bind(&agent.config.run_dir)?;
    server::replay(&agent).await;
    let serving = tokio::spawn(server::serve(listener, Arc::clone(&agent), stop.clone()));
    let reconciling = tokio::spawn(reconciler.run(stop.clone()));
    let collecting = tokio::spawn(collector::run(Arc::clone(&agent), shortages, stop.clone()));
    tokio::spawn(drops::run(Arc::clone(&agent), drops, stop.clone()));
    info!(socket = %server::socket(&agent.config.run_dir).display(), "serving");

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: ending; the datapath stays in place"),
        _ = interrupt.recv() => info!("SIGINT: ending; the datapath stays in place"),
    }
    stop.cancel();
    let _ = tokio::time::timeout(GRACE, async { tokio::join!(serving, reconciling, collecting) }).await;
    Ok(())
}

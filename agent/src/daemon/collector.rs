//! Ends flows: at intervals, soon after an address has gone, and more often while there is little room.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{agent::Agent, worker::WorkerGone};
use crate::datapath::{Cause, Collection, Datapath, DatapathError, Shortage, Sweep, is_high, now};

/// How often flows that have ended are removed.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while timeouts are shortened because there are many flows.
const INTERVAL_CROWDED: Duration = Duration::from_secs(2);
/// Every so many collections look for what should not be there at all.
const AUDIT_EVERY: u32 = 6;
/// How long to wait for more addresses to go: pods are often deleted in bursts.
const BURST: Duration = Duration::from_millis(50);
/// The shortest time between two emergencies: what a flood opens has to be idle for a second before it can go.
const EMERGENCY_GAP: Duration = Duration::from_secs(1);
/// The share of the time that collections may take while there are many flows: one part in so many.
const SHARE_CROWDED: u32 = 50;
/// The share of the time that collections after deletions may take: one part in so many.
const SHARE: u32 = 5;

/// Ends what an earlier agent has left: flows of pods that it deleted last. Until then no address is given out.
pub async fn first(agent: &Agent) {
    collect(agent, Sweep::Audit).await;
}

/// Runs until `stop` says so.
pub async fn run(agent: Arc<Agent>, mut shortages: mpsc::Receiver<Shortage>, stop: CancellationToken) {
    let (mut round, mut walk, mut last) = (0_u32, Walk::default(), Instant::now());
    let mut emergency = last;
    loop {
        let crowded = INTERVAL_CROWDED.max(walk.took * SHARE_CROWDED);
        let interval = if walk.crowded { crowded.min(INTERVAL) } else { INTERVAL };
        let sweep = tokio::select! {
            () = sleep_until(last + interval) => {
                round = round.wrapping_add(1);
                if round.is_multiple_of(AUDIT_EVERY) { Sweep::Audit } else { Sweep::Idle }
            }
            () = agent.leavers.notified() => {
                sleep(BURST.max((walk.took * SHARE).saturating_sub(last.elapsed()))).await;
                Sweep::Owners
            }
            Some(shortage) = next(&mut shortages, emergency + EMERGENCY_GAP) => {
                make_room(&agent, shortage, &mut shortages).await;
                emergency = Instant::now();
                continue;
            }
            () = stop.cancelled() => return,
        };
        walk = collect(&agent, sweep).await;
        last = Instant::now();
    }
}

/// The next shortage, not before `earliest`.
async fn next(shortages: &mut mpsc::Receiver<Shortage>, earliest: Instant) -> Option<Shortage> {
    sleep_until(earliest).await;
    shortages.recv().await
}

/// An emergency: packets are dropped because there is no room.
async fn make_room(agent: &Agent, first: Shortage, more: &mut mpsc::Receiver<Shortage>) {
    let mut all = BTreeSet::from([first]);
    while let Ok(shortage) = more.try_recv() {
        all.insert(shortage);
    }
    let made = agent.datapath.run(move |datapath| -> Result<_, DatapathError> {
        let walks: Result<Vec<_>, _> = all.into_iter().map(|shortage| datapath.make_room(shortage)).collect();
        Ok((walks?, datapath.occupancy()))
    });
    match made.await {
        Ok(Ok((walks, (flows, max)))) => {
            let evicted: u64 = walks.iter().flatten().map(|found| found.ended_by(Cause::Evicted)).sum();
            walks.iter().flatten().for_each(|found| agent.metrics.flows.count_ended(found));
            info!(evicted, flows, max, "made room for new flows");
        }
        Ok(Err(error)) => warn!(%error, "cannot make room for new flows"),
        Err(WorkerGone) => {}
    }
    // What was reported meanwhile may be over by now.
    while more.try_recv().is_ok() {}
}

/// What a collection tells about the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    took: Duration,
    /// There are so many flows that they have to end sooner.
    crowded: bool,
}

async fn collect(agent: &Agent, sweep: Sweep) -> Walk {
    let timed = move |datapath: &mut Datapath| -> Result<_, DatapathError> {
        // Nobody left, and nothing is due: another collection has seen to it meanwhile.
        if sweep == Sweep::Owners && !datapath.has_leavers() {
            return Ok(None);
        }
        let started = Instant::now();
        let found = datapath.collect(sweep, now())?;
        Ok(Some((found, started.elapsed(), datapath.occupancy())))
    };
    match agent.datapath.run(timed).await {
        Ok(Ok(Some((found, took, (flows, max))))) => {
            agent.metrics.flows.collected(&found, took, max);
            report(sweep, &found, took);
            return Walk { took, crowded: is_high(flows, max) };
        }
        Ok(Err(error)) => warn!(%error, "cannot collect flows that have ended"),
        Ok(Ok(None)) | Err(WorkerGone) => {}
    }
    Walk::default()
}

fn report(sweep: Sweep, found: &Collection, took: Duration) {
    let (seen, ended, us) = (found.seen, found.removed(), took.as_micros());
    debug!(?sweep, seen, ended, us, "collected flows that have ended");
    if found.halves() > 0 {
        info!(flows = found.halves(), "removed halves of flows, whose other half was gone");
    }
}

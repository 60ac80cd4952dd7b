//! Agents that start while there is no API server: what is there goes on, and nothing is made up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hypha_lab::{Family, Protocol, Routing, Station, poll, shell, traffic::probe::Probe};
use libtest_mimic::Trial;

use crate::support::{AFTER_OUTAGE, Cluster, pods, scenario, status, talk};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    vec![scenario(
        "start: without an API server pods go on, and ADD waits for it",
        || Cluster::start(2, Routing::Native),
        without_server,
    )]
}

fn without_server(cluster: &mut Cluster) -> Result<()> {
    let [a, c] = pods(cluster)?;
    let gone = cluster.lab.node(0).add_pod("gone")?;
    talk(&a, &c)?;
    let probe = Probe::start(&a, &c, Family::V4, Protocol::Udp)?;
    cluster.plane.stop_api()?;
    let node = cluster.lab.node(0).clone();
    node.stop_agent()?;
    node.launch_agent()?;

    let said = poll::eventually("the agent says what it waits for", Duration::from_secs(20), || {
        let refused = node.cni_status()?.failure()?;
        ensure!(refused.0 == 50, "{refused:?}");
        let said = status(&node)?;
        ensure!(said["source"]["watches"][0]["error"].is_string(), "{said}");
        Ok(said)
    })?;
    ensure!(said["ready"] == false && said["endpoints"] == 2, "{said}");
    let refusal = node.pod("early").prepare()?;
    let reply = refusal.verb("ADD")?;
    let details = reply.body["details"].as_str().unwrap_or_default().to_owned();
    let (code, _) = reply.failure()?;
    ensure!(code == 11, "ADD was refused with {code}: {details}");
    ensure!(details.contains("waiting for the Node objects and Pod objects of https://"), "{details}");
    ensure!(details.contains("refused"), "{details}");

    talk(&a, &c).context("while the agent waits")?;
    gone.delete().context("DEL while the agent waits")?;

    let asked = Instant::now();
    node.stop_agent()?;
    ensure!(asked.elapsed() < Duration::from_secs(2), "SIGTERM took {:?}", asked.elapsed());
    node.launch_agent()?;
    talk(&a, &c).context("after another restart")?;
    let routes = shell::ip(node.netns(), "route show proto 72")?;
    ensure!(routes.contains(&cluster.lab.node(1).pod_cidr(Family::V4)), "routes were removed: {routes}");

    cluster.plane.start_api()?;
    poll::eventually("the agent serves", AFTER_OUTAGE, || node.cni_status()?.success())?;
    let late = node.add_pod("late")?;
    talk(&late, &c)?;
    probe.wait_for_more(20)?;
    probe.finish()?.ensure_nothing_lost("while the agent waited and came back")
}

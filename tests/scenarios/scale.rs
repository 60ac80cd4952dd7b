//! Many pods, and many at once.

use std::{collections::BTreeSet, panic, sync::Arc, thread};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Protocol, Routing, Station, maps::Maps, shell, traffic::exchange,
};
use libtest_mimic::Trial;

use crate::support::scenario;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    vec![
        scenario("scale::two_hundred_pods_on_a_node", spec(), two_hundred_pods),
        scenario("scale::fifty_adds_and_deletes_at_once", spec(), fifty_at_once),
    ]
}

/// Adds pods from several threads.
fn add_pods(node: &Arc<Node>, count: usize, threads: usize) -> Result<Vec<Pod>> {
    let names: Vec<_> = (0..count).map(|number| format!("p{number}")).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = names
            .chunks(count.div_ceil(threads))
            .map(|names| {
                scope.spawn(|| names.iter().map(|name| node.add_pod(name)).collect::<Result<Vec<_>>>())
            })
            .collect();
        let pods =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|e| panic::resume_unwind(e)));
        Ok(pods.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// Deletes all pods from as many threads.
fn delete_all_at_once(pods: Vec<Pod>) -> Result<()> {
    let workers: Vec<_> = pods.into_iter().map(|pod| thread::spawn(|| pod.delete())).collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a delete panicked"))??;
    }
    Ok(())
}

fn ensure_distinct_addresses(pods: &[Pod]) -> Result<()> {
    let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
    ensure!(addresses.len() == 2 * pods.len(), "{} addresses for {} pods", addresses.len(), pods.len());
    Ok(())
}

/// The endpoints of pods (not of the node) that the maps hold.
fn endpoints(node: &Node) -> Result<usize> {
    Ok(Maps::of(node.bpf_dir()).endpoints()?.iter().filter(|(_, endpoint)| endpoint.ifindex != 0).count())
}

/// Host ends of pods' links.
fn pod_links(node: &Node) -> Result<usize> {
    let links = shell::ip(node.netns(), "-br link show type veth")?;
    Ok(links.lines().filter(|line| line.starts_with("hy")).count())
}

fn two_hundred_pods(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let pods = add_pods(node, 200, 4)?;
    ensure_distinct_addresses(&pods)?;
    ensure!(endpoints(node)? == 400, "{} endpoints for 200 dual-stack pods", endpoints(node)?);
    for pair in pods.windows(2) {
        for family in Family::BOTH {
            exchange::exchange(&pair[0], &pair[1], family, Protocol::Icmp)?;
        }
    }
    let resident = node.agent_resident_kib()?;
    ensure!(resident < 64 << 10, "the agent takes {resident} KiB with 200 pods");
    node.kill_agent()?;
    node.start_agent()?;
    for pod in pods.iter().step_by(20) {
        pod.check()?.success().with_context(|| format!("CHECK of {pod}"))?;
    }
    delete_all_at_once(pods)?;
    ensure!(endpoints(node)? == 0, "{} endpoints left", endpoints(node)?);
    ensure!(pod_links(node)? == 0, "{} links left", pod_links(node)?);
    Ok(())
}

fn fifty_at_once(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    for _ in 0..2 {
        let pods = add_pods(node, 50, 50)?;
        ensure_distinct_addresses(&pods)?;
        let world = lab.world();
        for pod in pods.iter().skip(1).step_by(7) {
            exchange::exchange(pod, world, Family::V4, Protocol::Icmp)?;
            exchange::exchange(pod, &pods[0], Family::V6, Protocol::Icmp)?;
        }
        delete_all_at_once(pods)?;
        ensure!(endpoints(node)? == 0, "{} endpoints left", endpoints(node)?);
        ensure!(pod_links(node)? == 0, "{} links left", pod_links(node)?);
    }
    Ok(())
}

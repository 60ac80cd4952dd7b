//! The CNI calls about endpoints.
//!
//! ADD: address, record, veth (host end down), programs, host end up, map entries. The map entries come last, and among them host
//! ports: what is not complete cannot be reached. DEL goes the other way round, and so does an ADD that fails.

use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use datapath_ebpf::addr::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use hypha_cni::protocol::{Add, Added, Attachment, Check, Deleted, Gc, Kept, PortMapping};
use ipnet::IpNet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{error::CallError, locks::Locks};
use crate::{
    core::{desired::pod_endpoint, host_ports},
    daemon::Agent,
    datapath::{Datapath, DatapathError, Role},
    netlink::{PodLink, PodLinkInfo},
    store::{Link, NamespaceId, Phase, Record, host_ifname},
};

/// How long an ADD may take before it is undone: below the shim's patience, which is below the kubelet's.
const ADD_DEADLINE: Duration = Duration::from_secs(25);

/// Wires an interface. Called again for one that is wired it returns the same, having repaired what was missing.
pub async fn add(agent: &Agent, locks: &Locks, add: Add, netns: Option<OwnedFd>) -> Result<Added, CallError> {
    let netns = netns.ok_or(CallError::NoNamespace)?;
    let namespace = NamespaceId::of(&netns).map_err(CallError::Namespace)?;
    let _one = locks.lock(&add.attachment).await;
    let _wiring = agent.wiring.read().await;
    let _short = agent.expedite.begin();
    let view = agent.view();
    if let Some(reason) = view.not_ready {
        return Err(CallError::NotReady(reason));
    }
    let known = agent.ledger().get(&add.attachment).cloned();
    if let Some(live) = known.as_ref().filter(|known| is_asked_for(known, &add, namespace))
        && agent.netlink.inspect_pod(netns.as_fd(), &agent.pod_wiring(live)).await.is_ok()
    {
        let link = live.link.map(|link| PodLink::existing(link.ifindex, link.mac));
        return finish(agent, live.clone(), link).await.map(|record| added(&record));
    }
    host_ports::check_node(&add.port_mappings, agent.config.routing).map_err(CallError::HostPort)?;
    let record = agent.ledger().reserve(&add, namespace, view.mtu)?;
    let result = timeout(ADD_DEADLINE, bring_up(agent, known, record, &netns)).await;
    match result.unwrap_or(Err(CallError::Deadline(ADD_DEADLINE.as_secs()))) {
        Ok(record) => {
            // A delete of an earlier life must not end this one.
            if let Err(error) = agent.queue.remove(&add.attachment) {
                warn!(%error, "cannot forget a queued delete of an endpoint that is being added");
            }
            Ok(added(&record))
        }
        Err(error) => {
            if let Err(error) = remove(agent, &add.attachment).await {
                warn!(%error, "cannot undo a failed ADD completely: its DEL will try again");
            }
            Err(error)
        }
    }
}

/// Whether an earlier ADD has made just what this one asks for.
fn is_asked_for(known: &Record, add: &Add, namespace: NamespaceId) -> bool {
    let same_addresses = |asked: &Vec<IpNet>| {
        asked.len() == known.addresses.len() && asked.iter().all(|it| known.addresses.contains(&it.addr()))
    };
    known.phase == Phase::Ready
        && known.namespace == namespace
        && add.mtu.is_none_or(|mtu| mtu == known.mtu)
        && add.addresses.as_ref().is_none_or(same_addresses)
        && add.port_mappings == known.port_mappings
}

/// `known` is what was recorded before `record`.
async fn bring_up(
    agent: &Agent,
    known: Option<Record>,
    record: Record,
    netns: &OwnedFd,
) -> Result<Record, CallError> {
    if let Some(known) = known {
        withdraw(agent, &known).await?;
    }
    let link = agent.netlink.create_pod_link(netns.as_fd(), &agent.pod_wiring(&record)).await?;
    let made = Link { ifindex: link.host_ifindex, mac: link.mac };
    let record = Record { link: Some(made), ..record };
    agent.ledger().update(record.clone())?;
    finish(agent, record, Some(link)).await
}

/// From a veth that exists to an endpoint that can be reached. Every step may have been done before.
async fn finish(agent: &Agent, record: Record, link: Option<PodLink>) -> Result<Record, CallError> {
    let wiring = agent.pod_wiring(&record);
    let (Some(facts), Some(link)) = (record.facts(), link) else { return Err(CallError::Unknown) };
    agent.datapath.run(move |datapath| datapath.attach(facts.ifindex, Role::Pod)).await??;
    agent.netlink.publish_pod_link(link, &wiring).await?;
    let record = Record { phase: Phase::Ready, ..record };
    agent.ledger().update(record.clone())?;
    let endpoint = pod_endpoint(&facts);
    let publish = move |datapath: &mut Datapath| {
        facts.addresses.iter().try_for_each(|address| datapath.publish((*address).into(), &endpoint))?;
        datapath.publish_host_ports(&host_ports::entries(&facts).collect::<Vec<_>>())
    };
    agent.datapath.run(publish).await??;
    Ok(record)
}

fn added(record: &Record) -> Added {
    let gateway = |address: &IpAddr| match address {
        IpAddr::V4(_) => IpAddr::from(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::from(GATEWAY_V6),
    };
    Added {
        host_ifname: record.host_ifname.clone(),
        host_mac: GATEWAY_MAC.to_string(),
        container_ifname: record.attachment.ifname.clone(),
        mac: record.link.map(|link| link.mac.to_string()).unwrap_or_default(),
        mtu: record.mtu,
        addresses: record.addresses.iter().copied().map(IpNet::from).collect(),
        gateways: record.addresses.iter().map(gateway).collect(),
    }
}

/// Removes an interface's wiring; one that is gone or was never there is a success, too.
pub async fn del(agent: &Agent, locks: &Locks, attachment: &Attachment) -> Result<Deleted, CallError> {
    let _one = locks.lock(attachment).await;
    let _wiring = agent.wiring.read().await;
    let _short = agent.expedite.begin();
    Ok(Deleted { addresses: remove(agent, attachment).await? })
}

/// Compares an interface with what ADD made of it.
pub async fn check(
    agent: &Agent,
    locks: &Locks,
    check: Check,
    netns: Option<OwnedFd>,
) -> Result<(), CallError> {
    let netns = netns.ok_or(CallError::NoNamespace)?;
    let _one = locks.lock(&check.attachment).await;
    let record = agent.ledger().get(&check.attachment).cloned();
    let record = record.filter(|record| record.phase == Phase::Ready).ok_or(CallError::Unknown)?;
    let mut expected: Vec<IpAddr> = check.addresses.iter().map(IpNet::addr).collect();
    expected.sort_unstable();
    if expected != record.addresses {
        return Err(CallError::Addresses { held: record.addresses, expected });
    }
    check_host_ports(&record, check.port_mappings)?;
    Ok(agent.netlink.inspect_pod(netns.as_fd(), &agent.pod_wiring(&record)).await?)
}

fn check_host_ports(record: &Record, expected: Option<Vec<PortMapping>>) -> Result<(), CallError> {
    let text = |mappings: &[PortMapping]| {
        let one = |mapping: &PortMapping| format!("{mapping} to {}", mapping.container_port);
        format!("[{}]", mappings.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    match expected.filter(|expected| *expected != record.port_mappings) {
        None => Ok(()),
        Some(expected) => {
            Err(CallError::HostPorts { held: text(&record.port_mappings), expected: text(&expected) })
        }
    }
}

/// Removes every endpoint of a network that the runtime no longer knows; returns how many. One that cannot be removed
/// does not keep the others.
pub async fn gc(agent: &Agent, locks: &Locks, gc: Gc) -> Result<usize, CallError> {
    let is_kept = |attachment: &Attachment| {
        let Attachment { container_id, ifname, .. } = attachment;
        gc.keep.iter().any(|Kept { container_id: id, ifname: name }| id == container_id && name == ifname)
    };
    let attachments: Vec<Attachment> = {
        let ledger = agent.ledger();
        let ours = ledger.records().map(|record| &record.attachment).filter(|it| it.network == gc.network);
        ours.filter(|attachment| !is_kept(attachment)).cloned().collect()
    };
    let (mut removed, mut failed) = (0, None);
    for attachment in attachments {
        match del(agent, locks, &attachment).await {
            Ok(_) => removed += 1,
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Ends what an agent that was killed had begun: an ADD that nobody waits for any more, or a DEL. And removes endpoints
/// whose veth is gone: their pod's namespace ended while no agent ran, and its DEL may never come.
pub async fn recover(agent: &Agent) {
    let links = agent.netlink.pod_links().await;
    let links = links.map_err(|error| warn!(%error, "cannot look for endpoints whose pod is gone")).ok();
    let is_linked = |record: &Record| {
        let found = |link: &PodLinkInfo| {
            link.name == record.host_ifname && record.link.is_some_and(|known| known.ifindex == link.ifindex)
        };
        links.as_ref().is_none_or(|links| links.iter().any(found))
    };
    let why = |record: &Record| match record.phase {
        Phase::Ready if is_linked(record) => None,
        Phase::Ready => Some("removing an endpoint whose veth is gone"),
        Phase::Wiring | Phase::Removing => Some("removing an unfinished endpoint"),
    };
    let condemned: Vec<(Record, &str)> =
        agent.ledger().records().filter_map(|record| Some((record.clone(), why(record)?))).collect();
    for (record, why) in condemned {
        let Attachment { container_id, ifname, .. } = &record.attachment;
        info!(container = container_id, ifname, addresses = ?record.addresses, "{why}");
        if let Err(error) = remove(agent, &record.attachment).await {
            warn!(%error, "cannot remove an endpoint: its DEL will try again");
        }
    }
}

/// Carries out the deletes that the shim queued while no agent ran.
pub async fn replay(agent: &Agent) {
    let queued = agent.queue.list().unwrap_or_else(|error| {
        warn!(%error, "cannot read the queue of deletes");
        Vec::new()
    });
    for entry in queued {
        match entry {
            Ok(del) => replay_one(agent, &del.attachment).await,
            Err(error) => warn!(%error, "unusable entry in the queue of deletes"),
        }
    }
}

async fn replay_one(agent: &Agent, attachment: &Attachment) {
    let container = &attachment.container_id;
    match remove(agent, attachment).await {
        Ok(addresses) => info!(container, ?addresses, "carried out a delete that came while no agent ran"),
        // It stays in the queue for the next agent.
        Err(error) => return warn!(container, %error, "cannot carry out a queued delete"),
    }
    if let Err(error) = agent.queue.remove(attachment) {
        warn!(container, %error, "cannot forget a queued delete that was carried out");
    }
}

/// Removes whatever there is of an endpoint: first nobody reaches it, last its addresses are free.
async fn remove(agent: &Agent, attachment: &Attachment) -> Result<Vec<IpAddr>, CallError> {
    let record = agent.ledger().get(attachment).cloned();
    if let Some(record) = record {
        let removing = Record { phase: Phase::Removing, ..record };
        // A full disk must not keep anything from going: going is what makes room.
        if let Err(error) = agent.ledger().update(removing.clone()) {
            warn!(%error, "cannot record that an endpoint is being removed");
        }
        withdraw(agent, &removing).await?;
    }
    // By name, also when nothing is recorded: a lost record must not leave a device behind.
    agent.netlink.delete_pod_link(&host_ifname(attachment)).await?;
    Ok(agent.ledger().release(attachment)?)
}

async fn withdraw(agent: &Agent, record: &Record) -> Result<(), CallError> {
    let (id, addresses, has_host_ports) =
        (record.id, record.addresses.clone(), !record.port_mappings.is_empty());
    let withdraw = move |datapath: &mut Datapath| -> Result<(), DatapathError> {
        if has_host_ports {
            datapath.withdraw_host_ports(id)?;
        }
        addresses.into_iter().try_for_each(|address| datapath.withdraw(address.into()))
    };
    agent.datapath.run(withdraw).await??;
    agent.leavers.notify_one();
    Ok(())
}

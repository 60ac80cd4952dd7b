//! The kernel's links, addresses, routes and neighbours, by rtnetlink; network namespaces and sysctls with them.
//!
//! [`Netlink`] is what the rest of the agent sees. Every operation is one blocking function over one [`socket`] of its
//! own, run on a thread that may block; those that visit a pod run on a thread of their own ([`netns`]).
//!
//! | file | what |
//! |---|---|
//! | `socket` | requests, dumps and errors of the protocol |
//! | `message` | requests and answers shared by the others |
//! | `pod`, `container`, `inspect` | a pod's veth: make and publish; its end in the pod; compare |
//! | `overlay` | the VXLAN device |
//! | `routes` | the agent's routes in the main table, by diff |
//! | `uplink`, `main_table` | uplinks, own addresses, next hops; who names a source |
//! | `monitor` | notice of changes |
//! | `netns`, `sysctl` | entering a namespace; kernel settings |
//!
//! Ownership is told by: the name and MAC of a pod's host end, the overlay device's name, and routing protocol 72 of a
//! route. Nothing else is ever changed or removed.

mod container;
mod error;
mod inspect;
mod main_table;
mod message;
mod monitor;
pub mod netns;
mod overlay;
mod pod;
mod routes;
mod socket;
pub mod sysctl;
mod uplink;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use datapath_ebpf::Mac;
use tokio::task;

pub use self::{
    error::NetlinkError,
    inspect::PodMismatch,
    monitor::{Changes, Monitor},
    overlay::OVERLAY_IFNAME,
    pod::{PodLink, PodLinkInfo, PodWiring},
    routes::{HYPHA_RT_PROTO, RouteChanges},
};
use self::{
    message::{Neighbour, replace_neighbour},
    monitor::LinkWatch,
    socket::Socket,
};
pub use crate::core::facts::{
    KernelRoute, LocalAddresses, NamedSource, NextHop, RouteTarget, SourceReason, UplinkInfo,
};

/// The kernel's network configuration of the node.
///
/// The node's network namespace is that of the runtime's threads: start the whole agent inside it.
#[derive(Clone, Debug)]
pub struct Netlink {
    /// Only [`Self::connect`] makes one.
    _private: (),
}

impl Netlink {
    /// Makes sure that the kernel answers in the calling thread's network namespace.
    pub async fn connect() -> Result<Self, NetlinkError> {
        blocking("connect", |_| Ok(Self { _private: () })).await
    }

    /// Makes the veth with its container end configured and up in `netns`, and the host end still down. Leaves nothing
    /// behind when it fails; replaces the host end of an earlier attempt.
    pub async fn create_pod_link(
        &self,
        netns: BorrowedFd<'_>,
        w: &PodWiring,
    ) -> Result<PodLink, NetlinkError> {
        let (netns, w) = (owned(netns)?, w.clone());
        netns::on_own_thread("create pod link", move |thread| pod::create(thread, &netns, &w)).await
    }

    /// Brings the host end up with its neighbours and routes. For a veth made earlier ([`PodLink::existing`]) it
    /// repairs what is missing of these.
    pub async fn publish_pod_link(&self, link: PodLink, w: &PodWiring) -> Result<(), NetlinkError> {
        let w = w.clone();
        blocking("publish pod link", move |socket| pod::publish(socket, link, &w)).await
    }

    /// Deletes the veth; `Ok(false)` when it was not there.
    ///
    /// Returns when no namespace has the device any more. That is well before the kernel answers the request (1 ms
    /// against 20 ms), which it does when the last RCU callback has freed the memory; a thread stays behind for that.
    pub async fn delete_pod_link(&self, host_ifname: &str) -> Result<bool, NetlinkError> {
        let mut watch = LinkWatch::start()?;
        let name = host_ifname.to_owned();
        tokio::select! {
            answered = blocking("delete pod link", move |socket| socket.delete_link(&name)) => answered,
            () = watch.gone(host_ifname) => Ok(true),
        }
    }

    /// Compares a pod's wiring with what it should be; the error names the first difference.
    pub async fn inspect_pod(&self, netns: BorrowedFd<'_>, w: &PodWiring) -> Result<(), PodMismatch> {
        let (netns, w) = (owned(netns)?, w.clone());
        netns::on_own_thread("inspect pod", move |thread| Ok(inspect::inspect(thread, &netns, &w))).await?
    }

    /// The host ends of pods' veths.
    pub async fn pod_links(&self) -> Result<Vec<PodLinkInfo>, NetlinkError> {
        blocking("list pod links", pod::list).await
    }

    /// The devices that lead to other nodes and the world: those named in `wanted`; else those that hold one of
    /// `node_addresses`; else those of the default routes. Never empty.
    pub async fn uplinks(
        &self,
        wanted: &[String],
        node_addresses: &[IpAddr],
    ) -> Result<Vec<UplinkInfo>, NetlinkError> {
        let (wanted, node_addresses) = (wanted.to_vec(), node_addresses.to_vec());
        blocking("find uplinks", move |socket| uplink::uplinks(socket, &wanted, &node_addresses)).await
    }

    /// Makes the settings of the node as a whole that have no counterpart for a single device.
    pub async fn prepare_node(&self, uplinks: &[UplinkInfo]) -> Result<(), NetlinkError> {
        let names: Vec<String> = uplinks.iter().map(|uplink| uplink.name.clone()).collect();
        blocking("prepare node", move |_| sysctl::prepare_node(&names)).await
    }

    /// The addresses of the node's own devices that are neither link-local nor loopback.
    pub async fn local_addresses(&self) -> Result<LocalAddresses, NetlinkError> {
        blocking("list addresses", uplink::local_addresses).await
    }

    /// How the kernel reaches each address; without those that it has no route to and those of the node itself.
    pub async fn routes_to(&self, ips: Vec<IpAddr>) -> Result<BTreeMap<IpAddr, NextHop>, NetlinkError> {
        blocking("look up routes", move |socket| uplink::routes_to(socket, &ips)).await
    }

    /// Makes or repairs the VXLAN device and returns its ifindex.
    pub async fn ensure_overlay(&self, mtu: u32) -> Result<u32, NetlinkError> {
        blocking("ensure overlay", move |socket| overlay::ensure(socket, mtu)).await
    }

    /// Deletes the VXLAN device; `Ok(false)` when it was not there.
    pub async fn delete_overlay(&self) -> Result<bool, NetlinkError> {
        blocking("delete overlay", |socket| socket.delete_link(OVERLAY_IFNAME)).await
    }

    /// Makes the agent's own routes (by routing protocol) equal to `wanted`, pods' routes ([`PodWiring::routes`])
    /// included. Tries all of them, and fails with the first that the kernel refuses.
    pub async fn sync_routes(&self, wanted: &BTreeSet<KernelRoute>) -> Result<RouteChanges, NetlinkError> {
        let wanted = wanted.clone();
        blocking("synchronise routes", move |socket| routes::sync(socket, &wanted)).await
    }

    /// Makes the permanent neighbour entries (device, address) -> MAC that are missing or differ; returns how many.
    pub async fn ensure_neighbours(
        &self,
        wanted: &BTreeMap<(u32, IpAddr), Mac>,
    ) -> Result<usize, NetlinkError> {
        let wanted = wanted.clone();
        blocking("ensure neighbours", move |socket| ensure_neighbours(socket, &wanted)).await
    }

    /// Reports changes of links, addresses, routes and neighbours in the calling thread's network namespace, until the
    /// receiver is dropped.
    pub fn monitor() -> Result<Monitor, NetlinkError> {
        monitor::monitor()
    }
}

/// Runs `work` with a socket of its own where blocking is allowed. `what` names it in errors.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&mut Socket) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, NetlinkError> {
    let run = move || work(&mut Socket::open()?);
    task::spawn_blocking(run).await.map_err(|_| NetlinkError::Thread { what })?
}

/// The namespace must stay open for as long as the thread that visits it, whatever becomes of the caller.
fn owned(netns: BorrowedFd<'_>) -> Result<OwnedFd, NetlinkError> {
    netns.try_clone_to_owned().map_err(|source| NetlinkError::Netns { action: "open", path: None, source })
}

fn ensure_neighbours(
    socket: &mut Socket,
    wanted: &BTreeMap<(u32, IpAddr), Mac>,
) -> Result<usize, NetlinkError> {
    let present = socket.neighbours(None)?;
    let present: BTreeMap<(u32, IpAddr), &Neighbour> =
        present.iter().filter(|it| it.permanent).map(|it| ((it.ifindex, it.ip), it)).collect();
    let missing = wanted.iter().filter(|(key, mac)| present.get(*key).is_none_or(|it| it.mac != **mac));
    let requests: Vec<_> =
        missing.map(|((ifindex, ip), mac)| replace_neighbour(*ifindex, *ip, *mac)).collect();
    socket.run(&requests)?;
    Ok(requests.len())
}

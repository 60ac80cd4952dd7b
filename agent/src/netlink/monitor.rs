//! Notice of changes to links, addresses, routes and neighbours.
//!
//! A notice says only that something changed, and whether that can touch the addresses that flows have: what the node
//! looks like now is read anew, from the kernel. So notices may be merged, and when the kernel had to drop some
//! (`ENOBUFS`) that too is just a change.

use std::{future::pending, io};

use nix::errno::Errno;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::sync::watch;
use tracing::warn;

use super::{NetlinkError, message::Link, routes::HYPHA_RT_PROTO};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
/// Where `struct ifaddrmsg` has the address's scope, counted from the message's start.
const ADDRESS_SCOPE_OFFSET: usize = 16 + 3;
/// Scopes from this one on do not reach beyond the link.
const RT_SCOPE_LINK: u8 = 253;
/// Where `struct rtmsg` has the length of the destination's prefix.
const ROUTE_LENGTH_OFFSET: usize = 16 + 1;
/// Where `struct rtmsg` has the routing protocol.
const ROUTE_PROTOCOL_OFFSET: usize = 16 + 5;
/// Most of a message is of no interest here; the rest is cut off.
const RECEIVE_BUFFER: usize = 4096;

/// The groups that [`monitor`] listens to.
const NOTABLE: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// How many changes there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of any kind.
    pub all: u64,
    /// Of the node's addresses and default routes.
    pub addresses: u64,
    /// Removals of the agent's own routes, which tell nothing about the node's network.
    pub own: u64,
}

/// Counts changes; closed when the kernel no longer tells.
pub type Monitor = watch::Receiver<Changes>;

/// Counts changes in the calling thread's network namespace until the receiver is dropped. Must be called in a tokio
/// runtime. Changes made before this returns are not counted: start it first, then read the state.
pub fn monitor() -> Result<Monitor, NetlinkError> {
    let socket = subscribe(&NOTABLE).map_err(NetlinkError::Open)?;
    let (sender, receiver) = watch::channel(Changes::default());
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            error = forward(&socket, &sender) => warn!(%error, "no longer notified of network changes"),
        }
    });
    Ok(receiver)
}

/// A socket in the calling thread's network namespace that receives the notices of these groups from now on.
fn subscribe(groups: &[MulticastGroup]) -> io::Result<TokioSocket> {
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
    Ok(socket)
}

/// Returns only with the error that ends it.
async fn forward(socket: &TokioSocket, sender: &watch::Sender<Changes>) -> io::Error {
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    loop {
        buffer.clear();
        let kind = match socket.recv(&mut buffer).await {
            Ok(()) => kind(&buffer),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Kind::Address,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Kind::Nothing,
            Err(error) => return error,
        };
        if kind != Kind::Nothing {
            sender.send_modify(|changes| {
                changes.all += 1;
                changes.addresses += u64::from(kind == Kind::Address);
                changes.own += u64::from(kind == Kind::Own);
            });
        }
    }
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What can only be the agent's own doing (routes added), and what tells nothing (neighbours coming and changing
    /// state: the agent's entries are permanent, only their removal matters).
    Nothing,
    /// A route of the agent is gone: by itself, or by somebody who should not.
    Own,
    /// Anything that is not among the others: what comes and goes with every pod.
    Other,
    /// An address of the node that others can reach, or a default route.
    Address,
}

fn kind(notice: &[u8]) -> Kind {
    let Ok(header) = NetlinkBuffer::new_checked(notice) else { return Kind::Address };
    let byte = |offset: usize| notice.get(offset).copied().unwrap_or_default();
    match header.message_type() {
        RTM_NEWNEIGH => Kind::Nothing,
        RTM_NEWADDR | RTM_DELADDR if byte(ADDRESS_SCOPE_OFFSET) < RT_SCOPE_LINK => Kind::Address,
        RTM_NEWROUTE if byte(ROUTE_PROTOCOL_OFFSET) == HYPHA_RT_PROTO => Kind::Nothing,
        RTM_DELROUTE if byte(ROUTE_PROTOCOL_OFFSET) == HYPHA_RT_PROTO => Kind::Own,
        RTM_NEWROUTE | RTM_DELROUTE if byte(ROUTE_LENGTH_OFFSET) == 0 => Kind::Address,
        _ => Kind::Other,
    }
}

/// Learns of the end of devices.
pub(super) struct LinkWatch {
    socket: TokioSocket,
}

impl LinkWatch {
    /// Watches from now on.
    pub fn start() -> Result<Self, NetlinkError> {
        let socket = subscribe(&[MulticastGroup::Link]).map_err(NetlinkError::Open)?;
        Ok(Self { socket })
    }

    /// Returns when the device is gone; never, when the notice of it was lost.
    pub async fn gone(&mut self, name: &str) {
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer).await {
                Ok(()) if ends(&buffer, name) => return,
                Err(error) if error.raw_os_error() != Some(Errno::ENOBUFS as i32) => pending().await,
                _ => {}
            }
        }
    }
}

/// Whether this is the notice that the device `name` is gone (and not just no longer a bridge's port).
fn ends(notice: &[u8], name: &str) -> bool {
    match NetlinkMessage::deserialize(notice).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message))) => {
            message.header.interface_family == AddressFamily::Unspec && Link::from(message).name == name
        }
        _ => false,
    }
}

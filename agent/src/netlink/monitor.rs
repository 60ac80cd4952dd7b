//! Notice of changes to links, addresses, routes and neighbours.
//!
//! The notice says only that something changed: what the node looks like now is read anew, from the kernel. So notices
//! may be merged, and when the kernel had to drop some (`ENOBUFS`) that too is just a change.

use std::{future::pending, io};

use nix::errno::Errno;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::sync::mpsc;
use tracing::warn;

use super::{NetlinkError, message::Link, routes::HYPHA_RT_PROTO};

const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
/// Where `struct rtmsg` has the routing protocol, counted from the message's start.
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

/// What [`monitor`] saw change; several changes may be reported as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change;

/// Reports changes in the calling thread's network namespace until the receiver is dropped. Must be called in a tokio
/// runtime. Changes made before this returns are not reported: start it first, then read the state.
pub fn monitor() -> Result<mpsc::Receiver<Change>, NetlinkError> {
    let socket = subscribe(&NOTABLE).map_err(NetlinkError::Open)?;
    // One waiting notice stands for any number of changes.
    let (sender, receiver) = mpsc::channel(1);
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
async fn forward(socket: &TokioSocket, sender: &mpsc::Sender<Change>) -> io::Error {
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    loop {
        buffer.clear();
        let notable = match socket.recv(&mut buffer).await {
            Ok(()) => is_notable(&buffer),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => return error,
        };
        if notable {
            // Full means that a notice is waiting already.
            sender.try_send(Change).ok();
        }
    }
}

/// Leaves out what can only be the agent's own doing (routes added) and what tells nothing (neighbours coming and
/// changing state: the agent's entries are permanent, only their removal matters).
fn is_notable(message: &[u8]) -> bool {
    let Ok(header) = NetlinkBuffer::new_checked(message) else { return true };
    match header.message_type() {
        RTM_NEWNEIGH => false,
        RTM_NEWROUTE => message.get(ROUTE_PROTOCOL_OFFSET) != Some(&HYPHA_RT_PROTO),
        _ => true,
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

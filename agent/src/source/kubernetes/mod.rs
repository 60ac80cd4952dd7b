//! Objects from the API server: one watch per kind, all of them feeding one channel of [`Event`]s.
//!
//! | file | what |
//! |---|---|
//! | `access` | where the server is and who we are; the client |
//! | `observe` | what is asked and answered, for operators |
//! | `follow` | one kind: list, watch, errors |
//! | `own_node` | what the agent writes: its own Node's condition and taint |
//!
//! What a role must allow: `list` and `watch` on `nodes` and `pods`; `patch` on `nodes` (to take the taint
//! `hypha.dev/agent-not-ready` away) and on `nodes/status` (to set the condition `NetworkUnavailable`). Without the
//! patches the agent works all the same, and says so once.

pub mod access;
mod follow;
mod observe;
mod own_node;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tracing::info;

use self::follow::{Follower, Observer};
pub use self::{
    access::{Access, AccessError},
    own_node::{OwnNode, announce},
};
use super::{Event, Status};

/// How many events may wait for the index.
const WAITING: usize = 64;

/// The API server, followed.
pub struct Followed {
    /// What happens to the objects.
    pub events: mpsc::Receiver<Event>,
    /// How it goes.
    pub status: Status,
    /// This node's own object as far as the agent may have to change it.
    pub own: watch::Receiver<OwnNode>,
    /// For changing it.
    pub client: Client,
}

/// Follows the API server for the node of this name until nobody listens any more. Fails only when what is configured
/// cannot be used; a server that does not answer is waited for.
pub async fn follow(access: &Access, node: &str) -> Result<Followed, AccessError> {
    let server = access.config().await?.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let status = Status::new("kubernetes", server.clone());
    let client = access.client(&status).await?;
    info!(server, credentials = %access, "following the API server");
    let (events, receiver) = mpsc::channel(WAITING);
    let (seen, own) = watch::channel(OwnNode::default());
    let name = node.to_owned();
    let look: Observer = Box::new(move |object: &Node| {
        if object.metadata.name.as_ref() == Some(&name) {
            seen.send_if_modified(|own| own.see(object));
        }
    });
    let follower = |observer| Follower {
        access: access.clone(),
        node: node.to_owned(),
        events: events.clone(),
        status: status.clone(),
        observer,
    };
    tokio::spawn(follower(look).run::<Node>(client.clone()));
    tokio::spawn(follower(Box::new(|_| {})).run::<Pod>(client.clone()));
    Ok(Followed { events: receiver, status, own, client })
}

#[cfg(test)]
mod tests;

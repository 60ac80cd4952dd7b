//! Everything known from Kubernetes objects, whatever their source: one [`Table`](super::table::Table) per kind, changed by
//! [`Event`]s.
//!
//! ```text
//! source ── Apply / Delete / Reset(kind) ──> Index ── nodes ──> desired state of the datapath
//!                                                  └─ pods ───> states of endpoints
//! ```
//!
//! A new kind is one [`Kind`], one [`Model`](super::table::Model) and one arm in each match of this file.

use std::collections::BTreeSet;

use super::{
    nodes::{NodeError, Nodes},
    objects::{Event, Key, Kind, Object},
    pods::{PodError, PodKey, Pods},
    table::Reset,
};

/// The objects of all kinds.
#[derive(Debug, Default)]
pub struct Index {
    /// Every node.
    pub nodes: Nodes,
    /// The pods of this node.
    pub pods: Pods,
    listed: BTreeSet<Kind>,
}

/// Why a single object cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ObjectError {
    /// A node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A pod.
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// What an event changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The kind that is other than before, as far as the agent uses it.
    pub changed: Option<Kind>,
    /// What was wrong with single objects; what was known about them before stays.
    pub errors: Vec<ObjectError>,
}

impl Index {
    /// Takes what happened at the source.
    pub fn take(&mut self, event: Event) -> Taken {
        match event {
            Event::Apply(Object::Node(node)) => applied(Kind::Node, self.nodes.apply(&node)),
            Event::Apply(Object::Pod(pod)) => applied(Kind::Pod, self.pods.apply(&pod)),
            Event::Delete(key) => self.delete(key),
            Event::Reset(kind, objects) => self.reset(kind, &objects),
        }
    }

    /// Whether the source has told all objects of every kind once.
    pub fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }

    /// The kinds that the source has not told about yet.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| !self.listed.contains(kind))
    }

    /// Whether the source has told all objects of a kind once.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// How many objects of a kind are known.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
        }
    }

    fn delete(&mut self, key: Key) -> Taken {
        let Key { kind, namespace, name } = key;
        let deleted = match kind {
            Kind::Node => self.nodes.delete(&name),
            Kind::Pod => self.pods.delete(&PodKey { namespace, name }),
        };
        Taken { changed: deleted.then_some(kind), errors: Vec::new() }
    }

    fn reset(&mut self, kind: Kind, objects: &[Object]) -> Taken {
        self.listed.insert(kind);
        match kind {
            Kind::Node => listed(kind, self.nodes.reset(objects.iter().filter_map(Object::as_node))),
            Kind::Pod => listed(kind, self.pods.reset(objects.iter().filter_map(Object::as_pod))),
        }
    }
}

fn applied<E: Into<ObjectError>>(kind: Kind, result: Result<bool, E>) -> Taken {
    match result {
        Ok(changed) => Taken { changed: changed.then_some(kind), errors: Vec::new() },
        Err(error) => Taken { changed: None, errors: vec![error.into()] },
    }
}

fn listed<E: Into<ObjectError>>(kind: Kind, reset: Reset<E>) -> Taken {
    let errors = reset.errors.into_iter().map(Into::into).collect();
    Taken { changed: reset.changed.then_some(kind), errors }
}

#[cfg(test)]
mod tests;

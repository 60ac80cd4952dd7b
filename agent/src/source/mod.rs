//! Where Kubernetes objects come from: a stream of [`Event`]s, the same whatever the origin is. And the one setting that
//! follows a file ([`masq_file`]).

pub mod dir;
pub mod masq_file;
mod notices;
pub mod parse;

use std::fmt;

use k8s_openapi::api::core::v1::Node;

/// An object of a kind that the agent uses.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A `v1` Node.
    Node(Box<Node>),
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The kind, as in the object.
    pub kind: &'static str,
    /// `metadata.namespace`, empty for objects of the cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() { write!(f, "{kind} {name}") } else { write!(f, "{kind} {namespace}/{name}") }
    }
}

impl Object {
    /// What identifies it.
    pub fn key(&self) -> Key {
        let (kind, metadata) = match self {
            Self::Node(node) => ("Node", &node.metadata),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key { kind, namespace: text(&metadata.namespace), name: text(&metadata.name) }
    }
}

/// What happened at the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(Key),
    /// These are all objects there are. The first event of a stream.
    Reset(Vec<Object>),
}

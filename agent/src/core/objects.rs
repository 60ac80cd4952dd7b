//! Kubernetes objects on their way from a source to the [`super::index`]: the kinds that the agent uses, stripped to what
//! it uses of them.

use std::fmt;

use k8s_openapi::{
    api::core::v1::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// A kind of objects that the agent uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Node, Self::Pod];

    /// As in an object's `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object of a kind that the agent uses. Made by `From`, which strips it: what is not used never gets further than
/// the parser.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A `v1` Node: name, pod CIDRs, addresses.
    Node(Box<Node>),
    /// A `v1` Pod: name, uid, whether it is being deleted, phase, addresses.
    Pod(Box<Pod>),
}

/// What identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The kind.
    pub kind: Kind,
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
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
        }
    }

    /// The node that it is.
    pub fn as_node(&self) -> Option<&Node> {
        if let Self::Node(node) = self { Some(node) } else { None }
    }

    /// The pod that it is.
    pub fn as_pod(&self) -> Option<&Pod> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }

    /// What identifies it.
    pub fn key(&self) -> Key {
        let metadata = match self {
            Self::Node(node) => &node.metadata,
            Self::Pod(pod) => &pod.metadata,
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key { kind: self.kind(), namespace: text(&metadata.namespace), name: text(&metadata.name) }
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Self {
        let spec = node.spec.map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..NodeSpec::default()
        });
        let status =
            node.status.map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
        let metadata = ObjectMeta { name: node.metadata.name, ..ObjectMeta::default() };
        Self::Node(Box::new(Node { metadata, spec, status }))
    }
}

impl From<Pod> for Object {
    fn from(pod: Pod) -> Self {
        let ObjectMeta { name, namespace, uid, deletion_timestamp, .. } = pod.metadata;
        let spec = pod.spec.map(|spec| PodSpec {
            host_network: spec.host_network,
            node_name: spec.node_name,
            ..PodSpec::default()
        });
        let status = pod.status.map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..PodStatus::default()
        });
        let metadata = ObjectMeta { name, namespace, uid, deletion_timestamp, ..ObjectMeta::default() };
        Self::Pod(Box::new(Pod { metadata, spec, status }))
    }
}

/// What happened at the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(Key),
    /// These are all objects of one kind. The first event about each kind.
    Reset(Kind, Vec<Object>),
}

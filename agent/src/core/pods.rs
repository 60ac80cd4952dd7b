//! The index of this node's Pod objects: what Kubernetes says about the pods whose interfaces the agent wires.

use std::{fmt, net::IpAddr};

use k8s_openapi::api::core::v1::Pod;

use super::table::{Model, Table};

/// The name of a pod, unique at any time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// What a Pod object says that the agent uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodModel {
    /// `metadata.uid`: tells a pod from a later one of its name.
    pub uid: String,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs`, sorted.
    pub addresses: Vec<IpAddr>,
    /// Whether it uses the node's network: it has no endpoint then.
    pub host_network: bool,
    /// `spec.nodeName`.
    pub node: String,
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepted, not all containers started.
    Pending,
    /// On its node, at least one container started or starting.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one of them badly.
    Failed,
    /// Its node does not tell.
    Unknown,
}

/// What becomes of the pod of an endpoint, as Kubernetes sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// It exists.
    Known(Phase),
    /// It is being deleted.
    Terminating,
    /// There is no such pod any more: the runtime will delete the endpoint, or has forgotten to.
    Gone,
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Known(Phase::Pending) => "pending",
            Self::Known(Phase::Running) => "running",
            Self::Known(Phase::Succeeded) => "succeeded",
            Self::Known(Phase::Failed) => "failed",
            Self::Known(Phase::Unknown) => "unknown",
            Self::Terminating => "terminating",
            Self::Gone => "gone",
        })
    }
}

/// Why a Pod object cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PodError {
    /// Nothing to know it by.
    #[error("a Pod object has no metadata.name or no metadata.namespace")]
    NoName,
    /// An address that is none.
    #[error("pod {namespace}/{name}: status.podIPs has {value:?}, which is no address")]
    Address {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// What was found.
        value: String,
    },
}

/// Every pod of this node that is known.
pub type Pods = Table<PodModel>;

impl Model for PodModel {
    type Object = Pod;
    type Key = PodKey;
    type Error = PodError;

    fn key_of(object: &Pod) -> Option<PodKey> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Some(PodKey { namespace: given(&object.metadata.namespace)?, name: given(&object.metadata.name)? })
    }

    fn read(object: &Pod) -> Result<(PodKey, Self), PodError> {
        let key = Self::key_of(object).ok_or(PodError::NoName)?;
        let status = object.status.as_ref();
        let listed = status.and_then(|status| status.pod_ips.as_ref()).filter(|ips| !ips.is_empty());
        let mut texts: Vec<&String> = listed.into_iter().flatten().map(|pod_ip| &pod_ip.ip).collect();
        if texts.is_empty() {
            texts.extend(status.and_then(|status| status.pod_ip.as_ref()));
        }
        let addresses: Result<Vec<IpAddr>, PodError> =
            texts.into_iter().map(|text| parse_address(&key, text)).collect();
        let mut addresses = addresses?;
        addresses.sort_unstable();
        let spec = object.spec.as_ref();
        let model = Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            terminating: object.metadata.deletion_timestamp.is_some(),
            phase: phase(status.and_then(|status| status.phase.as_deref())),
            addresses,
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        };
        Ok((key, model))
    }
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        // An object without status was just made.
        _ => Phase::Pending,
    }
}

fn parse_address(key: &PodKey, text: &str) -> Result<IpAddr, PodError> {
    let PodKey { namespace, name } = key.clone();
    let parsed = text.parse().map(|address: IpAddr| address.to_canonical());
    parsed.map_err(|_| PodError::Address { namespace, name, value: text.to_owned() })
}

impl PodModel {
    /// Whether this is the pod that an endpoint was made for. A runtime that tells no uid is believed by the name.
    pub fn is(&self, uid: Option<&str>) -> bool {
        uid.is_none_or(|uid| self.uid.is_empty() || self.uid == uid)
    }

    /// Whether it has ended: its addresses are then nobody's, whatever the object says.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// What becomes of a pod.
pub fn state(pods: &Pods, key: &PodKey, uid: Option<&str>) -> PodState {
    match pods.get(key).filter(|pod| pod.is(uid)) {
        None => PodState::Gone,
        Some(pod) if pod.terminating => PodState::Terminating,
        Some(pod) => PodState::Known(pod.phase),
    }
}

/// The API server believes that a pod has an address that its endpoint does not have: whoever is sent there by a Service
/// reaches nobody, or somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disagreement {
    /// The pod.
    pub pod: PodKey,
    /// What its object says.
    pub says: Vec<IpAddr>,
    /// What its endpoint has.
    pub has: Vec<IpAddr>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod: PodKey { namespace, name }, says, has } = self;
        write!(
            f,
            "the API server says that pod {namespace}/{name} has {says:?}, but it has {has:?}: Services lead astray; \
             delete the pod if that lasts"
        )
    }
}

/// Whether an endpoint has what the object of its pod says. Objects follow a little later.
pub fn disagreement(pods: &Pods, key: &PodKey, uid: Option<&str>, has: &[IpAddr]) -> Option<Disagreement> {
    let pod = pods.get(key).filter(|pod| pod.is(uid) && !pod.host_network && !pod.has_ended())?;
    let astray = pod.addresses.iter().any(|address| !has.contains(address));
    astray.then(|| Disagreement { pod: key.clone(), says: pod.addresses.clone(), has: has.to_vec() })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn pod(name: &str, uid: &str, addresses: &[&str]) -> Pod {
        let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "uid": uid},
            "spec": {"containers": []}, "status": {"phase": "Running", "podIPs": ips},
        }))
        .unwrap()
    }

    fn key(name: &str) -> PodKey {
        PodKey { namespace: "shop".into(), name: name.into() }
    }

    #[test]
    fn what_becomes_of_a_pod_is_told_in_a_word() {
        let mut pods = Pods::default();
        pods.apply(&pod("a", "1", &[])).unwrap();
        let mut ending = pod("b", "2", &[]);
        ending.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-21T00:00:00Z")).unwrap();
        pods.apply(&ending).unwrap();
        let mut done = pod("c", "3", &[]);
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        pods.apply(&done).unwrap();
        for (what, name, uid, expected) in [
            ("running", "a", Some("1"), "running"),
            ("no uid known", "a", None, "running"),
            ("another pod of that name", "a", Some("0"), "gone"),
            ("being deleted", "b", Some("2"), "terminating"),
            ("ended", "c", Some("3"), "succeeded"),
            ("never heard of", "x", None, "gone"),
        ] {
            assert_eq!(state(&pods, &key(name), uid).to_string(), expected, "{what}");
        }
    }

    #[test]
    fn an_address_that_the_endpoint_lacks_leads_astray() {
        let mut pods = Pods::default();
        pods.apply(&pod("a", "1", &["10.1.0.5", "fd00::5"])).unwrap();
        pods.apply(&pod("new", "1", &[])).unwrap();
        let mut ended = pod("ended", "1", &["10.1.0.9"]);
        ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
        pods.apply(&ended).unwrap();
        let mut host = pod("host", "1", &["192.0.2.1"]);
        host.spec.as_mut().unwrap().host_network = Some(true);
        pods.apply(&host).unwrap();
        for (what, name, uid, has, expected) in [
            ("the same", "a", "1", &["10.1.0.5", "fd00::5"][..], false),
            ("one differs", "a", "1", &["10.1.0.6", "fd00::5"], true),
            ("one is missing", "a", "1", &["10.1.0.5"], true),
            ("another pod of that name", "a", "2", &["10.1.0.6"], false),
            ("no addresses yet", "new", "1", &["10.1.0.6"], false),
            ("its addresses are nobody's", "ended", "1", &["10.1.0.6"], false),
            ("on the node's network", "host", "1", &["10.1.0.6"], false),
            ("unknown", "x", "1", &["10.1.0.6"], false),
        ] {
            let has: Vec<IpAddr> = has.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(disagreement(&pods, &key(name), Some(uid), &has).is_some(), expected, "{what}");
        }
    }

    #[test]
    fn addresses_of_both_families_are_sorted_and_old_objects_have_one() {
        let (_, model) = PodModel::read(&pod("a", "1", &["fd00::5", "10.1.0.5"])).unwrap();
        assert_eq!(model.addresses, ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        let mut old = pod("a", "1", &[]);
        old.status.as_mut().unwrap().pod_ip = Some("10.1.0.6".into());
        assert_eq!(PodModel::read(&old).unwrap().1.addresses, ["10.1.0.6".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_bad_object_is_named_and_harms_nobody() {
        let mut pods = Pods::default();
        pods.apply(&pod("a", "1", &["10.1.0.5"])).unwrap();
        let error = pods.apply(&pod("a", "1", &["ten"])).unwrap_err();
        assert!(error.to_string().contains("shop/a"), "{error}");
        assert_eq!(pods.apply(&pod("", "1", &[])), Err(PodError::NoName));
        assert_eq!(pods.get(&key("a")).unwrap().addresses.len(), 1, "the last good state stays");
    }
}

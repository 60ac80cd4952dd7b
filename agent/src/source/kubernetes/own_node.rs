//! What the agent writes to the API server, and only that: on its own Node the condition `NetworkUnavailable`, which it
//! sets to `False` once pods can be added, and the taint `hypha.dev/agent-not-ready`, which it takes away then.
//!
//! Both are written when they are not so, also when somebody resets them later, and never when they are.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::access::reason;

/// The taint that keeps pods away from a node until its agent is ready. Whoever provisions nodes may set it.
pub const TAINT: &str = "hypha.dev/agent-not-ready";
/// The condition that others wait for before they send pods to a node.
const CONDITION: &str = "NetworkUnavailable";
/// The condition's reason.
const REASON: &str = "HyphaIsUp";
/// Who writes, as the API server records it.
const MANAGER: &str = "hypha";
/// How long to wait after a failure: it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What of the own Node object the agent may have to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNode {
    /// The object's name, once it was seen.
    name: Option<String>,
    /// Which state of the object this is; the larger the later.
    version: u64,
    /// Whether the condition says that the network is there.
    available: bool,
    /// The places of the agent's taint in the list.
    taints: Vec<usize>,
}

impl OwnNode {
    /// Looks at the object as it is now; tells whether anything is other than before.
    pub fn see(&mut self, node: &Node) -> bool {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        let available = |it: &k8s_openapi::api::core::v1::NodeCondition| {
            it.type_ == CONDITION && it.status == "False" && it.reason.as_deref() == Some(REASON)
        };
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let version = node.metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
        let seen = Self {
            name: node.metadata.name.clone(),
            version: version.unwrap_or(self.version),
            available: conditions.into_iter().flatten().any(available),
            taints: taints
                .into_iter()
                .flatten()
                .enumerate()
                .filter(|(_, taint)| taint.key == TAINT)
                .map(|(place, _)| place)
                .collect(),
        };
        self.version = seen.version;
        let changed = *self != seen;
        *self = seen;
        changed
    }

    /// The later of two states. What the watch brings may be older than the answer to a patch.
    fn later(self, other: &Self) -> Self {
        if other.version > self.version { other.clone() } else { self }
    }

    /// What is to be written, in order.
    fn writes(&self) -> Vec<Write> {
        let condition = (!self.available).then_some(Write::Condition);
        let taint = (!self.taints.is_empty()).then(|| Write::Taint(self.taints.clone()));
        condition.into_iter().chain(taint).collect()
    }
}

/// One patch of the own Node object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Write {
    /// The condition says that the network is there.
    Condition,
    /// The taint goes.
    Taint(Vec<usize>),
}

impl Write {
    fn what(&self) -> &'static str {
        match self {
            Self::Condition => "the condition NetworkUnavailable=False",
            Self::Taint(_) => "the removal of the taint hypha.dev/agent-not-ready",
        }
    }

    /// The right that a role must grant for it.
    fn right(&self) -> &'static str {
        match self {
            Self::Condition => "patch on nodes/status",
            Self::Taint(_) => "patch on nodes",
        }
    }

    /// Returns the object as it is then.
    async fn send(&self, api: &Api<Node>, name: &str) -> kube::Result<Node> {
        let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match self {
            Self::Condition => {
                let patch = Patch::Strategic(condition(Timestamp::now()));
                api.patch_status(name, &parameters, &patch).await
            }
            Self::Taint(places) => {
                let patch = serde_json::from_value(removal(places)).map_err(kube::Error::SerdeError)?;
                api.patch(name, &parameters, &Patch::<()>::Json(patch)).await
            }
        }
    }
}

/// Conditions are merged by their type: others' stay.
fn condition(now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": CONDITION, "status": "False", "reason": REASON,
        "message": "Hypha is running on this node",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}

/// Taints are one list, which others write, too: the patch fails when the taint is no longer where it was seen.
fn removal(places: &[usize]) -> Value {
    let steps = places.iter().rev().flat_map(|place| {
        let path = format!("/spec/taints/{place}");
        [
            json!({"op": "test", "path": format!("{path}/key"), "value": TAINT}),
            json!({"op": "remove", "path": path}),
        ]
    });
    Value::Array(steps.collect())
}

/// Writes what is to be written whenever `ready` says so, until `stop`.
pub async fn announce(
    client: Client,
    mut own: watch::Receiver<OwnNode>,
    mut ready: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let api: Api<Node> = Api::all(client);
    let mut pause = PAUSE.0;
    let mut said = None;
    let mut written = OwnNode::default();
    loop {
        let seen = own.borrow_and_update().clone().later(&written);
        let is_ready = *ready.borrow_and_update();
        let result = match &seen.name {
            Some(name) if is_ready => write(&api, name, &seen.writes(), &mut written).await,
            _ => Ok(()),
        };
        let retry = result.is_err();
        match result {
            Ok(()) => (pause, said) = (PAUSE.0, None),
            Err(error) if said.as_ref() != Some(&error) => {
                warn!(error, "cannot tell the API server that this node's network is there: trying again");
                said = Some(error);
            }
            Err(_) => {}
        }
        tokio::select! {
            Ok(()) = own.changed() => {}
            Ok(()) = ready.changed() => {}
            () = sleep(pause), if retry => pause = (pause * 2).min(PAUSE.1),
            () = stop.cancelled() => return,
        }
    }
}

async fn write(api: &Api<Node>, name: &str, writes: &[Write], written: &mut OwnNode) -> Result<(), String> {
    for write in writes {
        match write.send(api, name).await {
            Ok(node) => {
                written.see(&node);
                info!(node = name, "wrote {}", write.what());
            }
            // Somebody else was faster: the watch brings what it looks like now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Err(format!("{}; the agent's role needs {}", status.message, write.right()));
            }
            Err(error) => return Err(format!("{}: {}", write.what(), reason(&error))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(condition: Option<(&str, &str)>, taints: &[&str]) -> Node {
        let conditions: Vec<_> = condition
            .iter()
            .map(|(status, reason)| json!({"type": CONDITION, "status": status, "reason": reason}))
            .collect();
        let taints: Vec<_> = taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "a"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn nothing_is_written_that_is_so_already() {
        for (what, node, expected) in [
            ("all is well", node(Some(("False", REASON)), &["other"]), vec![]),
            ("no condition", node(None, &[]), vec![Write::Condition]),
            ("the network is missing", node(Some(("True", "NoRoute")), &[]), vec![Write::Condition]),
            ("another's condition", node(Some(("False", "RouteCreated")), &[]), vec![Write::Condition]),
            ("tainted", node(Some(("False", REASON)), &["other", TAINT]), vec![Write::Taint(vec![1])]),
            (
                "tainted twice",
                node(None, &[TAINT, "x", TAINT]),
                vec![Write::Condition, Write::Taint(vec![0, 2])],
            ),
        ] {
            let mut own = OwnNode::default();
            assert!(own.see(&node), "{what}");
            assert!(!own.see(&node), "{what}: the same again");
            assert_eq!(own.writes(), expected, "{what}");
        }
    }

    #[test]
    fn an_answer_is_not_undone_by_an_older_event() {
        let state = |version: &str, taints: &[&str]| {
            let mut node = node(Some(("False", REASON)), taints);
            node.metadata.resource_version = Some(version.into());
            let mut own = OwnNode::default();
            own.see(&node);
            own
        };
        let (event, answer, later) = (state("9", &[TAINT]), state("10", &[]), state("11", &[TAINT]));
        assert_eq!(event.later(&answer).writes(), []);
        assert_eq!(later.later(&answer).writes(), [Write::Taint(vec![0])], "somebody set it again");
    }

    #[test]
    fn a_taint_is_removed_only_where_it_was_seen() {
        let expected = json!([
            {"op": "test", "path": "/spec/taints/2/key", "value": TAINT},
            {"op": "remove", "path": "/spec/taints/2"},
            {"op": "test", "path": "/spec/taints/0/key", "value": TAINT},
            {"op": "remove", "path": "/spec/taints/0"},
        ]);
        assert_eq!(removal(&[0, 2]), expected, "from the end, so that places stay what they were");
    }

    #[test]
    fn times_are_as_the_api_server_reads_them() {
        let patch = condition(Timestamp::from_second(1_700_000_000).unwrap());
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2023-11-14T22:13:20Z");
    }
}

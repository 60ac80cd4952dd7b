//! Patches by an agent's own kind of token: of a service account, issued to a pod on one node.

use anyhow::{Context, Result, ensure};
use hypha_lab::{Family, cluster::ControlPlane, shell};
use serde_json::{Value, json};

use crate::objects::file;

const NODE: &str = "node1";
const TAINT: &str = "hypha.dev/agent-not-ready";
/// One that the API server itself puts on a new node.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// One patch, and what must become of it.
struct Case {
    name: &'static str,
    token: Token,
    node: &'static str,
    status: bool,
    patch: Value,
    /// What a refusal must say; empty when the patch is to be taken.
    refusal: &'static str,
}

#[derive(Clone, Copy)]
enum Token {
    /// Of the agent on [`NODE`].
    Agent,
    /// Of the same service account, bound to nothing: somebody made it by hand.
    Loose,
}

fn condition(kind: &str, reason: &str) -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({"status": {"conditions": [{
        "type": kind, "status": "False", "reason": reason, "message": "",
        "lastHeartbeatTime": time, "lastTransitionTime": time,
    }]}})
}

fn taints(keys: &[&str]) -> Value {
    let taints: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({"spec": {"taints": taints}})
}

fn cases() -> Vec<Case> {
    let ok = "";
    let spec = "may not change a Node's spec";
    let status = "may not change a Node's status";
    let metadata = "may not change a Node's metadata";
    let own =
        |name, status, patch, refusal| Case { name, token: Token::Agent, node: NODE, status, patch, refusal };
    vec![
        own("its condition", true, condition("NetworkUnavailable", "HyphaIsUp"), ok),
        own("the same again", true, condition("NetworkUnavailable", "HyphaIsUp"), ok),
        own("its taint", false, taints(&["another", NOT_READY]), ok),
        own("no change", false, taints(&["another", NOT_READY]), ok),
        Case {
            node: "node2",
            ..own(
                "another node's condition",
                true,
                condition("NetworkUnavailable", "x"),
                "agent of node node1 may change its own",
            )
        },
        Case {
            node: "node2",
            ..own("another node's taint", false, taints(&[]), "agent of node node1 may change its own")
        },
        Case {
            token: Token::Loose,
            ..own(
                "a token without a node",
                true,
                condition("NetworkUnavailable", "x"),
                "its token names none",
            )
        },
        own("readiness", true, condition("Ready", "x"), status),
        own(
            "addresses",
            true,
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}}),
            status,
        ),
        own("less capacity", true, json!({"status": {"capacity": {"cpu": null}}}), status),
        own("a status field that was not there", true, json!({"status": {"phase": "Running"}}), status),
        own("another's taint", false, taints(&[NOT_READY]), spec),
        own("a taint more", false, taints(&["another", NOT_READY, "third"]), spec),
        own("its taint again", false, taints(&["another", NOT_READY, TAINT]), spec),
        own("unschedulable", false, json!({"spec": {"unschedulable": true}}), spec),
        own("a provider", false, json!({"spec": {"providerID": "x"}}), spec),
        own("a label", false, json!({"metadata": {"labels": {"a": "b"}}}), metadata),
        own("a label through the status", true, json!({"metadata": {"labels": {"a": "b"}}}), metadata),
        own("an annotation", false, json!({"metadata": {"annotations": {"a": "b"}}}), metadata),
        own("a finalizer", false, json!({"metadata": {"finalizers": ["hypha.dev/x"]}}), metadata),
    ]
}

/// On a control plane with two nodes and the manifest applied.
pub fn run(plane: &ControlPlane) -> Result<()> {
    for name in [NODE, "node2"] {
        plane.apply(&node(name).to_string())?;
    }
    plane.apply(&file("hypha.yaml")?)?;
    let agents = agent_token(plane)?;
    let loose = plane.token("kube-system", "hypha")?;
    wait_for_policy(plane, &agents)?;
    for case in cases() {
        let token = match case.token {
            Token::Agent => &agents,
            Token::Loose => &loose,
        };
        let answer = patch(plane, token, &case)?;
        let message = answer["message"].as_str().unwrap_or_default();
        let as_expected = match case.refusal {
            "" => answer["kind"] == "Node",
            refusal => answer["code"] == 403 && message.contains(refusal),
        };
        ensure!(as_expected, "{}: {} {message}", case.name, answer["kind"]);
    }
    let left = plane.kubectl(&["get", "node", NODE, "--output=jsonpath={.spec.taints[*].key}"])?;
    ensure!(left == format!("another {NOT_READY}"), "taints left: {left}");
    others_are_not_asked(plane)
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}, {"key": "another", "effect": "NoSchedule"}]},
        "status": {"capacity": {"cpu": "2"}, "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

/// As a kubelet gets it for the agent's pod.
fn agent_token(plane: &ControlPlane) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "agent", "namespace": "kube-system"},
        "spec": {
            "nodeName": NODE, "serviceAccountName": "hypha", "automountServiceAccountToken": false,
            "containers": [{"name": "agent", "image": "hypha:dev"}],
        },
    });
    plane.apply(&pod.to_string())?;
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent"];
    let arguments = [&["create", "token", "hypha", "--namespace=kube-system"], &bound[..]].concat();
    Ok(plane.kubectl(&arguments)?.trim().to_owned())
}

/// An API server learns of a policy some moments after it was made.
fn wait_for_policy(plane: &ControlPlane, token: &str) -> Result<()> {
    let wait = std::time::Duration::from_secs(30);
    hypha_lab::poll::eventually("the admission policy is in force", wait, || {
        let patch = json!({"metadata": {"labels": {"probe": "x"}}});
        let case =
            Case { name: "probe", token: Token::Agent, node: "node2", status: false, patch, refusal: "x" };
        let answer = self::patch(plane, token, &case)?;
        ensure!(answer["code"] == 403, "{answer}");
        Ok(())
    })
}

/// By curl: kubectl would want to read `nodes/status` first, which an agent may not.
fn patch(plane: &ControlPlane, token: &str, case: &Case) -> Result<Value> {
    let resource = if case.status { format!("{}/status", case.node) } else { case.node.to_owned() };
    let mut curl = plane.netns().command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--request", "PATCH", "--cacert"]);
    curl.arg(plane.authority().certificate_file());
    // A strategic patch merges conditions by their type, as agents do; a plain one replaces lists.
    let kind = if case.status { "strategic-merge-patch" } else { "merge-patch" };
    curl.args(["--header", &format!("Content-Type: application/{kind}+json")]);
    curl.args(["--header", &format!("Authorization: Bearer {token}"), "--data", &case.patch.to_string()]);
    curl.arg(format!("{}/api/v1/nodes/{resource}", plane.url(Family::V4)));
    let answer = shell::text(&mut curl).with_context(|| case.name)?;
    serde_json::from_str(&answer).with_context(|| format!("{}: no JSON: {answer}", case.name))
}

/// The policy has failurePolicy Fail: it must not be in the way of those it is not about.
fn others_are_not_asked(plane: &ControlPlane) -> Result<()> {
    plane.kubectl(&["label", "node", "node2", "seen=yes"])?;
    plane.kubectl(&["taint", "node", "node2", "another-"]).map(drop)
}

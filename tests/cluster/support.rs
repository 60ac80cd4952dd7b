//! How a scenario becomes a test, and the objects that scenarios make.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use hypha_lab::cluster::{Cluster, image::TOOLS};
use libtest_mimic::{Completion, Failed, Trial};
use nix::unistd::geteuid;
use serde_json::{Value, json};

/// How long anything may take that a cluster does in seconds.
pub const SOON: Duration = Duration::from_mins(2);

/// A test that needs root, and is skipped without.
pub fn trial(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root"));
        }
        run().map(|()| Completion::Completed).map_err(|error| {
            let text = format!("{error:#}");
            // At once: all of it takes minutes, and who watches wants to know now.
            eprintln!("{text}");
            Failed::from(text)
        })
    })
}

/// Runs a body on a cluster; a panic in it becomes an error, and an error gets the cluster's state.
pub fn watched(cluster: &mut Cluster, body: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let outcome = catch_unwind(AssertUnwindSafe(|| body(cluster)));
    let outcome = outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        bail!("panicked: {}", text.unwrap_or_default())
    });
    outcome.map_err(|error| anyhow!("{error:#}\n{}", cluster.diagnosis()))
}

/// What a pod of the tests runs: an HTTP server that its readiness depends on, asked by the kubelet.
pub fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "web",
            "image": TOOLS,
            "command": ["httpd", "-f", "-p", "8080", "-h", "/www"],
            "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
        }],
    })
}

/// A pod on a certain node, labelled `app=<name>`.
pub fn pod_on(node: &str, name: &str) -> Value {
    let mut spec = pod_spec();
    // Chosen here and not by the scheduler, which knows nothing of what a test wants.
    spec["nodeName"] = json!(node);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": spec,
    })
}
/// A Deployment of such pods, labelled `app=<name>`.
pub fn deployment(name: &str, replicas: usize, spec: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

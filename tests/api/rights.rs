//! A role that is too small: the agent says which right it lacks, and goes on as soon as it has it.

use anyhow::{Result, ensure};
use hypha_lab::{Routing, poll};
use libtest_mimic::Trial;

use crate::support::{AFTER_OUTAGE, Cluster, MANIFEST, scenario, status, wait_for_log};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    vec![scenario(
        "rights: what is missing is named, and found when it comes",
        || Cluster::prepare(1, Routing::Native),
        missing,
    )]
}

fn missing(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node(0).clone();
    let role = |rules: &str| {
        let patch = format!("{{\"rules\": {rules}}}");
        cluster.plane.kubectl(&["patch", "clusterrole", "hypha", "--type", "merge", "-p", &patch])
    };
    role(r#"[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]"#)?;
    node.launch_agent()?;
    wait_for_log(&node, "needs the verbs list and watch on pods", AFTER_OUTAGE)?;
    poll::eventually("the status says so, too", AFTER_OUTAGE, || {
        let watches = &status(&node)?["source"]["watches"];
        ensure!(watches[0]["listed"] == true, "nodes are not listed: {watches}");
        let error = watches[1]["error"].as_str().unwrap_or_default();
        ensure!(error.contains("pods is forbidden"), "{watches}");
        Ok(())
    })?;

    // Reading is enough to serve; writing is not possible, and said once.
    role(r#"[{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"]}]"#)?;
    poll::eventually("the agent serves", AFTER_OUTAGE, || node.cni_status()?.success())?;
    wait_for_log(&node, "the agent's role needs patch on nodes/status", AFTER_OUTAGE)?;
    node.add_pod("a")?.delete()?;

    cluster.plane.apply(MANIFEST)?;
    poll::eventually("the node is announced", AFTER_OUTAGE * 2, || {
        let object = cluster.object(&node)?;
        let conditions = object["status"]["conditions"].to_string();
        ensure!(conditions.contains("HyphaIsUp"), "{conditions}");
        Ok(())
    })
}

//! The control plane itself: what the API-server tests lean on.

use anyhow::{Context, Result, bail, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Routing, Station,
    cluster::{ControlPlane, ControlPlaneSpec, audit},
    shell,
};
use libtest_mimic::Trial;

use crate::support::trial;

/// All of them share one control plane, because each takes a fraction of what its start does.
pub fn scenarios() -> Vec<Trial> {
    vec![trial(
        "control plane: one beside a lab's nodes lives through what happens to control planes",
        || {
            let lab = LabSpec::nodes(2, Routing::Native).without_agents().build()?;
            let plane = ControlPlaneSpec::default().start_in_lab(&lab)?;
            life(&lab, &plane).map_err(|error| anyhow::anyhow!("{error:#}\n{}", plane.diagnosis()))
        },
    )]
}

fn life(lab: &Lab, plane: &ControlPlane) -> Result<()> {
    nodes_reach_it(lab, plane)?;
    objects_outlive_a_crash(lab, plane)?;
    users_are_told_apart(plane)?;
    plane.rotate_serving_certificate().context("rotation")?;
    nodes_reach_it(lab, plane).context("after the rotation")?;
    compaction_makes_old_versions_go(plane)?;
    a_pause_is_felt(lab, plane)?;
    requests_are_counted(plane)
}

/// From every node, by both families, with the certificate checked.
fn nodes_reach_it(lab: &Lab, plane: &ControlPlane) -> Result<()> {
    for node in lab.nodes() {
        for family in Family::BOTH {
            let said = ask(lab, node.name(), plane, family, 20)?;
            ensure!(said.contains("v1.36"), "{} by {family}: {said}", node.name());
        }
    }
    Ok(())
}

fn ask(lab: &Lab, node: &str, plane: &ControlPlane, family: Family, seconds: u32) -> Result<String> {
    let node = lab.nodes().iter().find(|candidate| candidate.name() == node).context("no such node")?;
    let mut curl = node.netns().command("curl");
    curl.args(["--fail", "--silent", "--show-error", "--max-time", &seconds.to_string(), "--cacert"]);
    curl.arg(plane.authority().certificate_file()).arg(format!("{}/version", plane.url(family)));
    shell::text(&mut curl)
}

fn objects_outlive_a_crash(lab: &Lab, plane: &ControlPlane) -> Result<()> {
    for node in lab.nodes() {
        plane.apply(&node.object().to_string())?;
    }
    plane.kill_api()?;
    ensure!(plane.kubectl(&["get", "nodes"]).is_err(), "a killed API server answers");
    plane.start_api()?;
    let names = plane.kubectl(&["get", "nodes", "--output", "name"])?;
    ensure!(names == "node/node1\nnode/node2\n", "{names}");
    Ok(())
}

/// A node's certificate and a service account's token are known for what they are, and may not what they may not.
fn users_are_told_apart(plane: &ControlPlane) -> Result<()> {
    plane.kubectl(&["create", "serviceaccount", "reader"])?;
    let node = plane.kubeconfig("system:node:node1", Some("system:nodes"))?;
    let account = plane.service_account_kubeconfig("default", "reader")?;
    for (config, user) in [(node, "system:node:node1"), (account, "system:serviceaccount:default:reader")] {
        let config = config.display().to_string();
        let said = plane.kubectl(&[
            "--kubeconfig",
            &config,
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ])?;
        ensure!(said == user, "{said} instead of {user}");
        ensure!(
            plane.kubectl(&["--kubeconfig", &config, "delete", "node", "node2"]).is_err(),
            "{user} may delete nodes"
        );
    }
    Ok(())
}

fn compaction_makes_old_versions_go(plane: &ControlPlane) -> Result<()> {
    let old = plane.kubectl(&["get", "--raw", "/api/v1/nodes?limit=1"])?;
    let old: serde_json::Value = serde_json::from_str(&old)?;
    let version = old["metadata"]["resourceVersion"].as_str().context("a list has a version")?;
    for round in 0..3 {
        plane.kubectl(&["label", "--overwrite", "node", "node1", &format!("round={round}")])?;
    }
    ensure!(plane.compact()? > version.parse()?, "nothing to compact");
    plane.restart_api()?;
    let watch = format!("/api/v1/nodes?watch=1&timeoutSeconds=2&resourceVersion={version}");
    match plane.kubectl(&["get", "--raw", &watch]) {
        // The answer is 200, and its only event an error.
        Ok(said) if said.contains("\"code\":410") => Ok(()),
        Err(error) if error.to_string().contains("too old resource version") => Ok(()),
        Ok(said) => bail!("a watch from {version} got {said}"),
        Err(error) => Err(error),
    }
}

fn a_pause_is_felt(lab: &Lab, plane: &ControlPlane) -> Result<()> {
    plane.pause_api()?;
    let during = ask(lab, "node1", plane, Family::V4, 2);
    plane.resume_api()?;
    ensure!(during.is_err(), "a paused API server answers");
    plane.wait_ready()
}

fn requests_are_counted(plane: &ControlPlane) -> Result<()> {
    let counts = audit::count(&plane.requests_of("kubectl")?);
    ensure!(counts.get("create nodes") == Some(&2), "two nodes were applied: {counts:?}");
    ensure!(counts.get("patch nodes") == Some(&3), "three labels are patches: {counts:?}");
    Ok(())
}

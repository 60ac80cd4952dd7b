//! etcd: how it is started, and what a test does to it behind the API server's back.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Program, Programs, process::Process};
use crate::{netns::Netns, poll, shell};

const CLIENTS: &str = "http://127.0.0.1:2379";
const PEERS: &str = "http://127.0.0.1:2380";

/// Describes an etcd that keeps its data below `dir`.
pub(super) fn process(programs: &Programs, dir: &Path) -> Result<Process> {
    let data = dir.join("etcd-data").display().to_string();
    let arguments = [
        "--name=lab",
        &format!("--data-dir={data}"),
        // Nothing of a lab survives the machine.
        "--unsafe-no-fsync",
        "--log-level=warn",
        &format!("--listen-client-urls={CLIENTS}"),
        &format!("--advertise-client-urls={CLIENTS}"),
        &format!("--listen-peer-urls={PEERS}"),
        &format!("--initial-advertise-peer-urls={PEERS}"),
        &format!("--initial-cluster=lab={PEERS}"),
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    Ok(Process::new("etcd", programs.path(Program::Etcd)?, arguments, dir.join("etcd.log")))
}

/// Where clients in its namespace find it.
pub(super) fn endpoint() -> &'static str {
    CLIENTS
}

/// Forgets every revision but the newest, as etcd's regular compaction does after five minutes; returns that revision.
pub(super) fn compact(netns: &Netns) -> Result<i64> {
    let range = json!({ "key": STANDARD.encode("/"), "keys_only": true, "limit": 1 });
    let answer = post(netns, "kv/range", &range)?;
    let revision = answer["header"]["revision"].as_str().context("etcd's answer has no revision")?;
    post(netns, "kv/compaction", &json!({ "revision": revision, "physical": true }))?;
    revision.parse().context("etcd's revision is no number")
}

/// Waits until it answers.
pub(super) fn wait_ready(process: &mut Process, netns: &Netns) -> Result<()> {
    poll::eventually("etcd answers", Duration::from_secs(30), || {
        if let Err(ended) = process.ensure_running() {
            return Ok(Err(ended));
        }
        post(netns, "maintenance/status", &json!({})).map(|_| Ok(()))
    })?
}

/// One call of its JSON gateway.
fn post(netns: &Netns, call: &str, body: &Value) -> Result<Value> {
    let mut curl = netns.command("curl");
    curl.args(["--fail", "--silent", "--show-error", "--data", &body.to_string()]);
    let answer = shell::text(curl.arg(format!("{CLIENTS}/v3/{call}")))?;
    serde_json::from_str(&answer).with_context(|| format!("etcd's answer to {call} is not JSON"))
}

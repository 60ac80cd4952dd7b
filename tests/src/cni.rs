//! Calls CNI plugins as a container runtime does: parameters in the environment, configuration on standard input.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{netns::Netns, shell};

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// `CNI_COMMAND`: ADD, DEL, CHECK, GC, STATUS or VERSION.
    pub command: &'a str,
    /// `CNI_CONTAINERID`; empty where the verb has none.
    pub container_id: &'a str,
    /// `CNI_NETNS`; `None` leaves it unset.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty where the verb has none.
    pub ifname: &'a str,
    /// `CNI_ARGS`; empty leaves it unset.
    pub args: &'a str,
    /// Network configuration.
    pub config: &'a Value,
}

/// What a plugin answered.
#[derive(Debug)]
pub struct Reply {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output as JSON; null when it wrote nothing.
    pub body: Value,
    /// Standard error.
    pub stderr: String,
    /// From the exec to the end of the process.
    pub elapsed: Duration,
}

impl Reply {
    /// The result, or the error that the plugin answered with.
    pub fn success(self) -> Result<Value> {
        if !self.status.success() {
            bail!("plugin failed ({}): {}\n{}", self.status, self.body, self.stderr);
        }
        Ok(self.body)
    }

    /// Code and message of the error that the plugin must have answered with.
    pub fn failure(self) -> Result<(u64, String)> {
        if self.status.success() {
            bail!("plugin succeeded where it must fail: {}", self.body);
        }
        let code = self.body["code"].as_u64();
        let msg = self.body["msg"].as_str();
        match (code, msg) {
            (Some(code), Some(msg)) if self.body["cniVersion"].is_string() => Ok((code, msg.to_owned())),
            _ => bail!("not an error as the CNI specification wants it: {}\n{}", self.body, self.stderr),
        }
    }
}

/// Runs `plugin` in the runtime's namespace, which is the node's.
pub fn call(runtime: &Netns, plugin: &Path, path: &str, call: &Call<'_>) -> Result<Reply> {
    let mut command = runtime.command(plugin);
    command.env_clear().env("CNI_COMMAND", call.command).env("CNI_PATH", path);
    if !call.container_id.is_empty() {
        command.env("CNI_CONTAINERID", call.container_id);
    }
    if !call.ifname.is_empty() {
        command.env("CNI_IFNAME", call.ifname);
    }
    if !call.args.is_empty() {
        command.env("CNI_ARGS", call.args);
    }
    if let Some(netns) = &call.netns {
        command.env("CNI_NETNS", netns);
    }
    let config = serde_json::to_vec(call.config).context("cannot write the network configuration")?;
    let start = Instant::now();
    let output = shell::run(&mut command, &config)?;
    let elapsed = start.elapsed();
    let body = match output.stdout.as_slice() {
        b"" => Value::Null,
        text => serde_json::from_slice(text)
            .with_context(|| format!("{} wrote no JSON: {}", plugin.display(), shell::said(&output)))?,
    };
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Reply { status: output.status, body, stderr, elapsed })
}

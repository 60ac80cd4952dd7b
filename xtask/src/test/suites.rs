//! The workspace's test binaries, and which phase each belongs to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::compile;

/// From cheap to expensive, which is the order they run in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Phase {
    /// Unit and property tests: no root.
    Unit,
    /// One part of ours and the real kernel: packets through the programs by `BPF_PROG_TEST_RUN`, netlink in namespaces.
    Programs,
    /// Real agents and real traffic between namespaces.
    Lab,
    /// Real Kubernetes: a control plane, nodes with containerd and kubelet, Hypha installed from its manifest.
    Cluster,
}

impl Phase {
    /// Whether it loads programs or makes namespaces.
    pub fn needs_root(self) -> bool {
        self != Self::Unit
    }

    /// How long one binary may take: several times of what it takes on two busy cores.
    pub fn limit(self) -> Duration {
        Duration::from_mins(match self {
            Self::Unit | Self::Programs => 10,
            Self::Lab => 40,
            // Building Kubernetes takes ten minutes of it where nothing is cached.
            Self::Cluster => 45,
        })
    }
}

/// One binary with tests in it.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Suite {
    /// When it runs.
    pub phase: Phase,
    /// The package and the target.
    pub name: String,
    executable: PathBuf,
    directory: PathBuf,
}

impl Suite {
    /// Runs it as `cargo test` would, in its package's directory.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command
    }

    /// How many tests it holds that match `filter`, without running any.
    pub fn count(&self, filter: Option<&str>) -> anyhow::Result<usize> {
        let output = self.command().args(filter).arg("--list").stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("listing the tests of {}", self.name))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.ends_with(": test")).count())
    }
}

/// Compiles every test and returns the binaries in the order they run in.
pub fn compile() -> anyhow::Result<Vec<Suite>> {
    let output = compile::cargo()
        .args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "compiling the tests failed ({})", output.status);
    let messages = String::from_utf8(output.stdout).context("reading cargo's messages")?;
    let mut suites: Vec<Suite> = messages.lines().filter_map(suite).collect();
    suites.sort();
    Ok(suites)
}

/// What a line of `--message-format=json` says, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The test binary that a message announces, if it announces one.
fn suite(message: &str) -> Option<Suite> {
    let message: Message = serde_json::from_str(message).ok()?;
    let target = message.target?;
    if !message.profile?.test {
        return None;
    }
    let directory = message.manifest_path?.parent()?.to_path_buf();
    let package = directory.file_name().map(Path::new)?.display();
    let kind = target.kind.first()?;
    let phase = match (kind.as_str(), target.name.as_str()) {
        ("test", "lab") => Phase::Lab,
        ("test", "api" | "cluster" | "deploy") => Phase::Cluster,
        ("test", "netlink" | "programs") => Phase::Programs,
        _ => Phase::Unit,
    };
    Some(Suite {
        phase,
        name: format!("{package} ({kind} {})", target.name),
        executable: message.executable?,
        directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, name: &str, test: bool) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": "/src/agent/Cargo.toml",
            "target": {"kind": [kind], "name": name},
            "profile": {"test": test},
            "executable": format!("/target/debug/deps/{name}-1"),
        })
        .to_string()
    }

    #[test]
    fn each_binary_lands_in_its_phase() {
        let phase = |kind, name| suite(&message(kind, name, true)).unwrap().phase;
        assert_eq!(phase("lib", "hypha_agent"), Phase::Unit);
        assert_eq!(phase("test", "cli"), Phase::Unit);
        assert_eq!(phase("test", "programs"), Phase::Programs);
        assert_eq!(phase("test", "lab"), Phase::Lab);
        assert_eq!(phase("test", "cluster"), Phase::Cluster);
        assert_eq!(suite(&message("lib", "hypha_agent", true)).unwrap().name, "agent (lib hypha_agent)");
    }

    #[test]
    fn what_is_no_test_is_ignored() {
        assert_eq!(suite(&message("bin", "hypha", false)), None);
        assert_eq!(suite(r#"{"reason":"build-finished","success":true}"#), None);
    }
}

//! The harness, shown on the reference plugins: whatever fails here is not Hypha's.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Protocol, Station,
    cluster::{Cluster, ClusterSpec, progress::to_stderr},
    registry::Registration,
    shell,
    traffic::exchange::exchange,
};
use libtest_mimic::Trial;

use crate::support::{SOON, pod_on, trial, watched};

/// Environment variable that makes this program start a cluster, print its tag and wait to be killed.
pub const HOLD: &str = "HYPHA_CLUSTER_HOLD";

/// What a program with [`HOLD`] does.
pub fn hold_a_cluster() -> ExitCode {
    match ClusterSpec::nodes(1).reference_network().prefix("held").start(&to_stderr) {
        Ok(cluster) => {
            println!("{}", cluster.tag());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One cluster for all of it, and one that loses its owner.
pub fn scenarios() -> Vec<Trial> {
    vec![
        trial("harness: what a killed owner has left of a cluster is removed by the next", a_killed_owner),
        trial(
            "harness: a cluster on the reference plugins runs pods, and its daemons and nodes come and go",
            || {
                let mut cluster = ClusterSpec::nodes(2).reference_network().start(&to_stderr)?;
                watched(&mut cluster, |cluster| {
                    cluster.wait_nodes_ready(SOON)?;
                    pods_talk(cluster, "node1", "node2")?;
                    daemons_restart(cluster)?;
                    a_node_goes(cluster)
                })
            },
        ),
    ]
}

fn pods_talk(cluster: &Cluster, here: &str, there: &str) -> Result<()> {
    for (name, node) in [("a", here), ("b", there)] {
        cluster.plane().apply(&pod_on(node, name).to_string())?;
    }
    let a = cluster.wait_pods("app=a", 1, SOON)?.remove(0);
    let b = cluster.wait_pods("app=b", 1, SOON)?.remove(0);
    for family in Family::BOTH {
        let seen = exchange(&a, &b, family, Protocol::Tcp)?;
        ensure!(seen == a.address(family), "{seen} instead of {}", a.address(family));
    }
    Ok(())
}

fn daemons_restart(cluster: &Cluster) -> Result<()> {
    let machine = cluster.machine("node1")?;
    machine.stop_kubelet()?;
    machine.stop_containerd()?;
    machine.start_containerd()?;
    machine.start_kubelet()?;
    cluster.plane().apply(&pod_on("node1", "late").to_string())?;
    cluster.wait_pods("app=late", 1, SOON).map(drop)
}

fn a_node_goes(cluster: &mut Cluster) -> Result<()> {
    cluster.remove_node("node2")?;
    cluster.kubectl(&["delete", "node", "node2"])?;
    let fresh = cluster.add_nodes(1)?;
    ensure!(fresh[0].name() == "node3", "it is called {}", fresh[0].name());
    let nodes = cluster.kubectl(&["get", "nodes", "--output=name"])?;
    ensure!(nodes == "node/node1\nnode/node3\n", "{nodes}");
    Ok(())
}

fn a_killed_owner() -> Result<()> {
    let mut owner = Command::new(env::current_exe()?).env(HOLD, "1").stdout(Stdio::piped()).spawn()?;
    let mut tag = String::new();
    BufReader::new(owner.stdout.take().context("a pipe")?).read_line(&mut tag)?;
    let tag = tag.trim();
    owner.kill()?;
    owner.wait()?;
    ensure!(!traces(tag)?.is_empty(), "nothing was left of {tag}: was there ever a cluster?");
    let _next = Registration::claim("next")?;
    let left = traces(tag)?;
    ensure!(left.is_empty(), "left of {tag}:\n{}", left.join("\n"));
    Ok(())
}

/// Everything on this machine that carries a tag: namespaces, cgroups, files, pins, mounts and processes.
fn traces(tag: &str) -> Result<Vec<String>> {
    ensure!(tag.starts_with("held-"), "{tag:?} is no tag");
    let find = format!(
        "ls -d /run/netns/{tag}* /sys/fs/cgroup/{tag}* /sys/fs/cgroup/*/{tag}* /run/hypha-lab/{tag} \
         /sys/fs/bpf/{tag} 2>/dev/null; grep {tag} /proc/mounts; grep -lsa {tag} /proc/[0-9]*/cmdline"
    );
    let output = shell::run(Command::new("sh").args(["-c", &find]), b"")?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    // The processes that look have the tag in their own command lines, and are gone when we look after them.
    Ok(lines
        .lines()
        .filter(|line| Path::new(line).exists() || line.contains(' '))
        .map(str::to_owned)
        .collect())
}

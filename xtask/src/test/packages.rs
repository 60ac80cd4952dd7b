//! Debian packages that the lab and the benchmarks lean on.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::workspace;

/// A program, the package that has it, and what we want it for.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const TOOLS: [Tool; 17] = [
    Tool { program: "bpftool", package: "bpftool", purpose: "map dumps as an operator sees them" },
    Tool {
        // The program may be there and not be static.
        program: "/var/lib/dpkg/info/busybox-static.list",
        package: "busybox-static",
        purpose: "the clusters' container images",
    },
    Tool { program: "curl", package: "curl", purpose: "HTTP between pods" },
    Tool { program: "ethtool", package: "ethtool", purpose: "switching offloads" },
    Tool {
        program: "go",
        package: "golang-go",
        purpose: "building Kubernetes' own programs; it knows where newer releases of itself are",
    },
    Tool { program: "ip", package: "iproute2", purpose: "namespaces and links of the lab" },
    Tool { program: "iperf3", package: "iperf3", purpose: "bulk traffic" },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "the masquerade that ours is measured against, and packets that get lost",
    },
    Tool { program: "nsenter", package: "util-linux", purpose: "agents inside the lab's namespaces" },
    Tool { program: "ping", package: "iputils-ping", purpose: "ICMP echo" },
    Tool { program: "ps", package: "procps", purpose: "what the agents use" },
    Tool { program: "runc", package: "runc", purpose: "containers of the clusters" },
    Tool { program: "tcpdump", package: "tcpdump", purpose: "captures for failed scenarios" },
    Tool { program: "tracepath", package: "iputils-tracepath", purpose: "path MTU as a pod sees it" },
    Tool { program: "traceroute", package: "traceroute", purpose: "hops as a pod sees them" },
    Tool { program: "unzip", package: "unzip", purpose: "the Go toolchain, where it has to be fetched" },
    Tool {
        program: "/usr/lib/cni/bridge",
        package: "containernetworking-plugins",
        purpose: "the reference CNI plugins",
    },
];

/// Installs what is missing and says what and why.
///
/// # Errors
///
/// When something is missing and we are not root, or there is no apt-get, or it fails.
pub fn ensure_installed() -> anyhow::Result<()> {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !is_installed(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        eprintln!("missing: {} ({}: {})", tool.package, tool.program, tool.purpose);
    }
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package).collect();
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    if !workspace::is_root() {
        bail!("only root can install packages: run `apt-get install {list}` first");
    }
    eprintln!("installing {list}");
    // A fresh machine has no package lists, an old one has stale ones: both are cured by an update, which takes long.
    if !apt(&["install"], &packages)? {
        apt(&["update"], &BTreeSet::new())?;
        if !apt(&["install"], &packages)? {
            bail!("apt-get could not install {list}: its messages are above");
        }
    }
    Ok(())
}

fn apt(verb: &[&str], packages: &BTreeSet<&str>) -> anyhow::Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--yes", "--no-install-recommends"]).args(verb).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    let status = command
        .status()
        .context("starting apt-get (elsewhere than on Debian, install the tools yourself)")?;
    Ok(status.success())
}

fn is_installed(program: &str) -> bool {
    // Administrators' tools live where the PATH of a user may not look.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    program.starts_with('/') && Path::new(program).exists()
        || path.split(':').any(|directory| Path::new(directory).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_in_the_path_and_at_absolute_places() {
        assert!(is_installed("sh"));
        assert!(is_installed("/bin/sh"));
        assert!(!is_installed("/bin/no-such-program"));
        assert!(!is_installed("no-such-program"));
    }
}

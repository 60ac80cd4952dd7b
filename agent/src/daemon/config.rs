//! The daemon's configuration: flags, then `HYPHA_*` variables, then the file of `--config`, then defaults.

mod source;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::Deserialize;

use self::source::{Said, Surroundings};
pub use self::source::{Source, SourceName};
use crate::core::{
    facts::Routing,
    timeouts::{self, ClassTimeout, Timeouts},
};

/// Where the agent keeps socket and state by default.
pub const RUN_DIR: &str = "/run/hypha";
/// Where maps and links are pinned by default.
pub const BPF_DIR: &str = "/sys/fs/bpf/hypha";
/// Where container runtimes look for network configurations by default.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// How many flows are tracked at most by default.
pub const CONNTRACK_MAX: u32 = 524_288;
/// Fewer would not do for one busy pod.
const CONNTRACK_MAX_LEAST: u32 = 1_024;
/// More would take gigabytes for the maps' bucket arrays alone.
const CONNTRACK_MAX_MOST: u32 = 16_777_216;

/// What can be set; the file of `--config` is YAML with the flags' names as keys.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Name of this node's Node object [default: the host name]
    #[arg(long, env = "HYPHA_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where Kubernetes objects come from: kubernetes, the API server; or dir:PATH, a directory of YAML or JSON files
    /// [default: kubernetes in a pod with a service account, or with a --kubeconfig]
    #[arg(long, env = "HYPHA_SOURCE", value_name = "SOURCE")]
    pub source: Option<SourceName>,

    /// Kubeconfig file for the API server [default: KUBECONFIG, else the pod's service account]
    #[arg(long, env = "HYPHA_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the API server for the pod's service account, such as https://192.0.2.1:6443: needed where nothing
    /// provides the service `kubernetes` before the agent runs [default: as the pod's environment says]
    #[arg(long, env = "HYPHA_KUBERNETES_API", value_name = "URL")]
    pub kubernetes_api: Option<String>,

    /// How pods on other nodes are reached [default: tunnel]
    #[arg(long, env = "HYPHA_ROUTING", value_enum)]
    pub routing: Option<Routing>,

    /// Device that leads to other nodes and the world; repeatable [default: found by the node's addresses]
    #[arg(long, env = "HYPHA_DEVICE", value_name = "IF", value_delimiter = ',')]
    pub device: Vec<String>,

    /// Whether pods' packets to the world take the node's address [default: true]
    #[arg(long, env = "HYPHA_MASQUERADE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub masquerade: Option<bool>,

    /// Prefix that is never masqueraded, besides the cluster's own; repeatable
    #[arg(long, env = "HYPHA_EXEMPT_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub exempt_cidr: Vec<IpNet>,

    /// File of an ip-masq-agent (nonMasqueradeCIDRs, masqLinkLocal, resyncInterval): more prefixes that are never
    /// masqueraded, read again when it changes
    #[arg(long, env = "HYPHA_IP_MASQ_AGENT_CONFIG", value_name = "FILE")]
    pub ip_masq_agent_config: Option<PathBuf>,

    /// How long flows of a class may be idle, as CLASS=DURATION; repeatable. Classes and defaults: tcp-opening 60s,
    /// tcp-established 2h4m, tcp-closing 30s, udp-new 30s, udp-stream 3m, icmp 30s, other 10m
    #[arg(long, env = "HYPHA_CONNTRACK_TIMEOUT", value_name = "CLASS=DURATION", value_delimiter = ',')]
    #[serde(deserialize_with = "timeouts::from_map")]
    pub conntrack_timeout: Vec<ClassTimeout>,

    /// How many flows are tracked at most [default: 524288]
    #[arg(long, env = "HYPHA_CONNTRACK_MAX", value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(CONNTRACK_MAX_LEAST)..=i64::from(CONNTRACK_MAX_MOST)))]
    pub conntrack_max: Option<u32>,

    /// Whether the kernel's RCU grace periods are shortened while pods are wired [default: true]
    #[arg(long, env = "HYPHA_EXPEDITE_RCU", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub expedite_rcu: Option<bool>,

    /// MTU of the pods in bytes [default: the uplink's, less the encapsulation]
    #[arg(long, env = "HYPHA_MTU", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    pub mtu: Option<u32>,

    /// Directory for the socket and the state [default: /run/hypha]
    #[arg(long, env = "HYPHA_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory in a BPF file system for maps and links [default: /sys/fs/bpf/hypha]
    #[arg(long, env = "HYPHA_BPF_DIR", value_name = "DIR")]
    pub bpf_dir: Option<PathBuf>,

    /// Directory to write the CNI network configuration to [default: /etc/cni/net.d]
    #[arg(long, env = "HYPHA_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// Address to serve /metrics, /healthz and /readyz on [default: none]
    #[arg(long, env = "HYPHA_METRICS_ADDR", value_name = "ADDR")]
    pub metrics_addr: Option<SocketAddr>,

    /// YAML file with any of these options
    #[arg(long, env = "HYPHA_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node's own Node object.
    pub node_name: String,
    /// Where objects come from.
    pub source: Source,
    /// How pods on other nodes are reached.
    pub routing: Routing,
    /// The uplinks; empty to find them.
    pub devices: Vec<String>,
    /// Whether pods' packets to the world take the node's address.
    pub masquerade: bool,
    /// Prefixes that are never masqueraded.
    pub exempt_cidrs: Vec<IpNet>,
    /// The file that adds to them.
    pub ip_masq_agent_config: Option<PathBuf>,
    /// How long flows may be idle.
    pub timeouts: Timeouts,
    /// How many flows are tracked at most.
    pub conntrack_max: u32,
    /// Whether RCU grace periods are shortened while pods are wired.
    pub expedite_rcu: bool,
    /// MTU of the pods when it is not to be found.
    pub mtu: Option<u32>,
    /// Socket and state.
    pub run_dir: PathBuf,
    /// Pins.
    pub bpf_dir: PathBuf,
    /// The runtime's network configurations.
    pub cni_conf_dir: PathBuf,
    /// Where to serve metrics.
    pub metrics_addr: Option<SocketAddr>,
}

impl Options {
    /// Adds the file of `--config` and the defaults.
    pub fn resolve(self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        let said = Said {
            source: self.source.or(file.source),
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            api: self.kubernetes_api.or(file.kubernetes_api),
        };
        let source = said.resolve(Surroundings::find())?;
        let node_name = match self.node_name.or(file.node_name) {
            Some(name) => name,
            None => host_name()?,
        };
        Ok(Config {
            node_name,
            source,
            routing: self.routing.or(file.routing).unwrap_or(Routing::Tunnel),
            devices: or(self.device, file.device),
            masquerade: self.masquerade.or(file.masquerade).unwrap_or(true),
            exempt_cidrs: or(self.exempt_cidr, file.exempt_cidr),
            ip_masq_agent_config: self.ip_masq_agent_config.or(file.ip_masq_agent_config),
            // The file first: of two settings for one class the later holds.
            timeouts: Timeouts::with(file.conntrack_timeout.into_iter().chain(self.conntrack_timeout)),
            conntrack_max: self.conntrack_max.or(file.conntrack_max).unwrap_or(CONNTRACK_MAX),
            expedite_rcu: self.expedite_rcu.or(file.expedite_rcu).unwrap_or(true),
            mtu: self.mtu.or(file.mtu),
            run_dir: self.run_dir.or(file.run_dir).unwrap_or_else(|| RUN_DIR.into()),
            bpf_dir: self.bpf_dir.or(file.bpf_dir).unwrap_or_else(|| BPF_DIR.into()),
            cni_conf_dir: self.cni_conf_dir.or(file.cni_conf_dir).unwrap_or_else(|| CNI_CONF_DIR.into()),
            metrics_addr: self.metrics_addr.or(file.metrics_addr),
        })
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read --config {}", path.display()))?;
        let options: Self = serde_saphyr::from_str(&text)
            .with_context(|| format!("--config {} is not a valid configuration", path.display()))?;
        if let Some(mtu) = options.mtu.filter(|mtu| !(1280..=65535).contains(mtu)) {
            bail!("--config {}: mtu is {mtu}, it must be from 1280 to 65535", path.display());
        }
        let range = CONNTRACK_MAX_LEAST..=CONNTRACK_MAX_MOST;
        if let Some(max) = options.conntrack_max.filter(|max| !range.contains(max)) {
            let (least, most) = range.into_inner();
            bail!("--config {}: conntrack-max is {max}, it must be from {least} to {most}", path.display());
        }
        Ok(options)
    }
}

fn or<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() { second } else { first }
}

/// As the kubelet names its node: in lower case.
fn host_name() -> anyhow::Result<String> {
    let system = nix::sys::utsname::uname().context("cannot read the host name: give --node-name")?;
    let name = system.nodename().to_str().context("the host name is not text: give --node-name")?;
    Ok(name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn resolve(line: &[&str]) -> anyhow::Result<Config> {
        Line::try_parse_from([&["hypha"], line].concat())?.options.resolve()
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = resolve(&["--source", "dir:/objects", "--node-name", "a"]).unwrap();
        assert_eq!(
            config,
            Config {
                node_name: "a".into(),
                source: Source::Dir("/objects".into()),
                routing: Routing::Tunnel,
                devices: Vec::new(),
                masquerade: true,
                exempt_cidrs: Vec::new(),
                ip_masq_agent_config: None,
                timeouts: Timeouts::default(),
                conntrack_max: 524_288,
                expedite_rcu: true,
                mtu: None,
                run_dir: "/run/hypha".into(),
                bpf_dir: "/sys/fs/bpf/hypha".into(),
                cni_conf_dir: "/etc/cni/net.d".into(),
                metrics_addr: None,
            }
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hypha.yaml");
        let text = "source: dir:/file\nrouting: native\nmasquerade: false\ndevice: [eth0, eth1]\nmtu: 1400\n\
                    exempt-cidr: [10.0.0.0/8]\nip-masq-agent-config: /etc/config/masq\nmetrics-addr: 127.0.0.1:9000\nnode-name: file\n";
        fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let config = resolve(&["--config", file, "--device", "eth9", "--masquerade=true"]).unwrap();
        assert_eq!((config.routing, config.mtu), (Routing::Native, Some(1400)));
        assert_eq!((config.devices, config.masquerade), (vec!["eth9".to_owned()], true));
        assert_eq!(config.exempt_cidrs, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.ip_masq_agent_config, Some("/etc/config/masq".into()));
        assert_eq!(config.node_name, "file");
    }

    /// What the manifest sets, and with its examples, which are comments, too: the agent refuses what it does not know.
    #[test]
    fn the_manifest_is_understood() {
        let manifest = include_str!("../../../deploy/hypha.yaml");
        let (_, options) = manifest.split_once("\n  hypha.yaml: |\n").unwrap();
        let (options, _) = options.split_once("\n---\n").unwrap();
        let is_example = |line: &&str| {
            line.trim()
                .strip_prefix("# ")
                .and_then(|rest| rest.split_once(": "))
                .is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        };
        let examples: Vec<&str> = options.lines().filter(is_example).collect();
        assert_eq!(examples.len(), 5, "{examples:?}");
        let uncommented = options
            .lines()
            .map(|line| if is_example(&line) { line.replacen("# ", "", 1) } else { line.into() });
        for text in [options.to_owned(), uncommented.collect::<Vec<_>>().join("\n")] {
            let read: Options = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read.routing, Some(Routing::Tunnel));
            assert_eq!(read.metrics_addr.map(|address| address.port()), Some(9872));
        }
    }

    #[test]
    fn conntrack_settings_of_file_and_flags_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hypha.yaml");
        let text = "source: dir:/file\nconntrack-timeout: {icmp: 5s, udp-new: 10s}\nconntrack-max: 2048\n";
        fs::write(&path, text).unwrap();
        let line = ["--config", path.to_str().unwrap(), "--conntrack-timeout", "icmp=7s"];
        let config =
            resolve(&[&line[..], &["--conntrack-timeout=tcp-opening=9s,other=1m"]].concat()).unwrap();
        assert_eq!(config.timeouts.seconds(), [9, 7440, 30, 10, 180, 7, 60]);
        assert_eq!(config.conntrack_max, 2048);
        let flags = [&line[..], &["--conntrack-max=4096"]].concat();
        assert_eq!(resolve(&flags).unwrap().conntrack_max, 4096);
    }

    #[test]
    fn mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hypha.yaml");
        let file = path.to_str().unwrap();
        for (line, text, expected) in [
            (&[][..], "", "no source"),
            (&["--source", "/objects"], "", "dir:PATH"),
            (&["--source", "kubernetes:x"], "", "dir:PATH"),
            (&["--mtu", "100"], "", "100 is not in 1280..=65535"),
            (&["--routing", "pigeon"], "", "native"),
            (&["--config", file], "sources: dir:/x\n", "sources"),
            (&["--config", file], "mtu: 9\n", "from 1280 to 65535"),
            (&["--conntrack-timeout", "icmp"], "", "CLASS=DURATION"),
            (&["--conntrack-max", "5"], "", "5 is not in 1024..=16777216"),
            (&["--config", file], "conntrack-timeout: {gre: 5s}\n", "no class of flows"),
            (&["--config", file], "conntrack-max: 5\n", "from 1024 to 16777216"),
            (&["--config", "/nonexistent"], "", "/nonexistent"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", resolve(line).unwrap_err());
            assert!(error.contains(expected), "{line:?} {text:?}: {error}");
        }
    }
}

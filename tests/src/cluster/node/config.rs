//! The files and flags of a node's daemons.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    binaries::REFERENCE_PLUGINS,
    cluster::{ControlPlane, image::PAUSE},
    topology::UplinkPlan,
};

/// What the node sees as `/run/node`.
pub(super) fn write(
    files: &Path,
    name: &str,
    cgroup: &str,
    uplink: UplinkPlan,
    plane: &ControlPlane,
) -> Result<()> {
    let authority = plane.authority();
    let server = authority.server(name, &[uplink.v4.into(), uplink.v6.into()], &[name])?;
    let kubeconfig = plane.kubeconfig(&format!("system:node:{name}"), Some("system:nodes"))?;
    let kubeconfig = fs::read_to_string(&kubeconfig).context("cannot read the node's kubeconfig")?;
    for (file, text) in [
        ("ca.crt", authority.certificate()),
        ("kubelet.crt", &server.certificate),
        ("kubelet.key", &server.key),
        ("kubeconfig", &kubeconfig),
        ("kubelet.yaml", &kubelet(cgroup)),
        ("containerd.toml", &containerd()),
        // Nobody resolves names in a cluster without DNS; the kubelet wants the file.
        ("resolv.conf", "nameserver 203.0.113.10\n"),
    ] {
        let path = files.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// JSON, which is YAML too.
fn kubelet(cgroup: &str) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Machines with version 1 of cgroups are fine for tests.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "enforceNodeAllocatable": ["pods"],
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/run/node/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": "/run/node/kubelet.crt",
        "tlsPrivateKeyFile": "/run/node/kubelet.key",
        "clusterDomain": "cluster.local",
        "clusterDNS": ["10.96.0.10"],
        "resolvConf": "/run/node/resolv.conf",
        "failSwapOn": false,
        // The machine's settings are shown with the values that it wants: see the node's init.
        "protectKernelDefaults": true,
        // Lowering it takes a capability that a container or a small VM may lack.
        "oomScoreAdj": 0,
        "maxPods": 110,
        "imageGCHighThresholdPercent": 100,
        // The node's disk is the machine's memory.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "nodeStatusUpdateFrequency": "5s",
    })
    .to_string()
}

fn containerd() -> String {
    format!(
        "version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
  # Lowering the score takes a capability that the machine may lack.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/opt/cni/bin', '{REFERENCE_PLUGINS}']
  conf_dir = '/etc/cni/net.d'
"
    )
}

pub(super) fn containerd_flags() -> Vec<String> {
    vec!["--config=/run/node/containerd.toml".to_owned()]
}

pub(super) fn kubelet_flags(name: &str, uplink: UplinkPlan) -> Vec<String> {
    vec![
        "--config=/run/node/kubelet.yaml".to_owned(),
        "--kubeconfig=/run/node/kubeconfig".to_owned(),
        format!("--hostname-override={name}"),
        format!("--node-ip={},{}", uplink.v4, uplink.v6),
    ]
}

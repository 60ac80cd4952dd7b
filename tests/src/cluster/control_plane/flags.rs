//! What the processes of a control plane are started with.

use std::path::Path;

use super::{PORT, Site};
use crate::cluster::{etcd, pki::Authority};

/// Where ClusterIPs come from.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Where nodes' podCIDRs come from.
pub const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/56";

/// kube-apiserver. Without controllers nobody makes the service accounts that admission would ask every Pod for.
pub(super) fn api_server(site: &Site, authority: &Authority, controllers: bool) -> Vec<String> {
    let file = |name: &str| authority.file(name).display().to_string();
    let dir = site.dir.display();
    let mut flags = vec![
        format!("--etcd-servers={}", etcd::endpoint()),
        "--bind-address=::".to_owned(),
        format!("--advertise-address={}", site.v4),
        format!("--secure-port={PORT}"),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--endpoint-reconciler-type=lease".to_owned(),
        "--profiling=false".to_owned(),
        format!("--audit-policy-file={dir}/audit-policy.yaml"),
        format!("--audit-log-path={dir}/audit.log"),
    ];
    if !controllers {
        flags.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    flags
}

/// kube-controller-manager.
pub(super) fn controller_manager(kubeconfig: &Path, authority: &Authority) -> Vec<String> {
    let file = |name: &str| authority.file(name).display().to_string();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={CLUSTER_CIDRS}"),
        "--node-cidr-mask-size-ipv4=24".to_owned(),
        "--node-cidr-mask-size-ipv6=64".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        format!("--service-account-private-key-file={}", file("sa.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

/// kube-scheduler.
pub(super) fn scheduler(kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

//! Three ways to the same objects.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    cluster::{ControlPlane, Program, Programs, progress},
    shell,
};
use serde_json::Value;

use crate::objects::{completed, directory, ensure_same, file};

/// On a control plane that is asked only, and stores nothing.
pub fn run(plane: &ControlPlane) -> Result<()> {
    let manifest = completed(plane, &file("hypha.yaml")?)?;
    let of_images = images(&manifest["DaemonSet hypha"]);
    ensure!(of_images == ["hypha:dev"; 2], "{of_images:?}");
    let cleanup = completed(plane, &file("cleanup.yaml")?)?;
    ensure!(cleanup.len() == 1, "{:?}", cleanup.keys());

    let kustomized = plane.kubectl(&["kustomize", &directory().display().to_string()])?;
    ensure_same("manifest and kustomization", &manifest, &completed(plane, &kustomized)?)?;

    let helm = Helm::find()?;
    ensure_same("manifest and chart", &manifest, &completed(plane, &helm.render(&[])?)?)?;
    every_value_has_its_place(plane, &helm)?;
    mistakes_in_values_are_refused(&helm)
}

fn images(daemonset: &Value) -> Vec<String> {
    let spec = &daemonset["spec"]["template"]["spec"];
    let containers =
        ["initContainers", "containers"].map(|key| spec[key].as_array().cloned().unwrap_or_default());
    containers
        .concat()
        .iter()
        .map(|container| container["image"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Another installation: each value shows where it belongs, and the API server takes the result.
fn every_value_has_its_place(plane: &ControlPlane, helm: &Helm) -> Result<()> {
    let objects = completed(
        plane,
        &helm.render(&[
            "--set=image.repository=registry.example/hypha,image.tag=v9,image.pullPolicy=Always",
            "--set=imagePullSecrets={key}",
            "--set=config.routing=native,config.kubernetes-api=https://192.0.2.1:6443",
            "--set=config.metrics-addr=[::]:1234",
            "--set=bpffs.mount=true,admissionPolicy.enabled=false,maxUnavailable=3",
            "--set=hostPaths.cniBin=/var/lib/bin,hostPaths.cniConf=/var/lib/net.d",
            "--set=resources.limits.memory=1Gi,nodeSelector.role=worker",
            "--set=podLabels.team=net,podAnnotations.note=a",
            "--set=extraEnv[0].name=HYPHA_LOG,extraEnv[0].value=debug",
        ])?,
    )?;
    ensure!(
        !objects.keys().any(|name| name.starts_with("ValidatingAdmissionPolicy")),
        "{:?}",
        objects.keys()
    );
    let options = &objects["ConfigMap hypha"]["data"]["hypha.yaml"];
    ensure!(options["routing"] == "native" && options["masquerade"] == true, "{options}");
    let daemonset = &objects["DaemonSet hypha"];
    let of_images = images(daemonset);
    ensure!(of_images == ["registry.example/hypha:v9"; 3], "{of_images:?}");
    for (pointer, expected) in [
        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", "3"),
        ("/spec/template/metadata/labels/team", "\"net\""),
        ("/spec/template/metadata/annotations/note", "\"a\""),
        ("/spec/template/spec/imagePullSecrets/0/name", "\"key\""),
        ("/spec/template/spec/nodeSelector/role", "\"worker\""),
        ("/spec/template/spec/initContainers/0/securityContext/privileged", "true"),
        ("/spec/template/spec/initContainers/0/volumeMounts/0/mountPropagation", "\"Bidirectional\""),
        ("/spec/template/spec/containers/0/resources/limits/memory", "\"1Gi\""),
        ("/spec/template/spec/containers/0/resources/requests/memory", "\"64Mi\""),
        ("/spec/template/spec/containers/0/env/1/value", "\"debug\""),
        ("/spec/template/spec/containers/0/ports/0/hostPort", "1234"),
        ("/spec/template/spec/containers/0/readinessProbe/httpGet/port", "1234"),
    ] {
        let found = daemonset.pointer(pointer).map(Value::to_string);
        ensure!(found.as_deref() == Some(expected), "{pointer} is {found:?}, not {expected}");
    }
    let volumes = daemonset["spec"]["template"]["spec"]["volumes"].to_string();
    ensure!(volumes.contains("/var/lib/bin") && volumes.contains("/var/lib/net.d"), "{volumes}");
    Ok(())
}

fn mistakes_in_values_are_refused(helm: &Helm) -> Result<()> {
    for (values, named) in [
        ("rooting=native", "rooting"),
        ("config.routing=pigeon", "routing"),
        ("config.mtu=100", "mtu"),
        ("config.node-name=one", "node-name"),
        ("config.metrics-addr=off", "metrics-addr"),
        ("hostPaths.cniBin=relative", "cniBin"),
        ("admissionPolicy.enabled=maybe", "enabled"),
    ] {
        let refused = helm.render(&[&format!("--set={values}")]);
        let told = refused.as_ref().is_err_and(|error| format!("{error:#}").contains(named));
        ensure!(told, "--set {values}: {refused:?}");
    }
    Ok(())
}

struct Helm {
    program: PathBuf,
}

impl Helm {
    fn find() -> Result<Self> {
        let programs = Programs::ensure(&[Program::Helm], &progress::to_stderr)?;
        Ok(Self { program: programs.path(Program::Helm)? })
    }

    fn render(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["template", "hypha"]).arg(directory().join("chart/hypha"));
        // Without a cluster, Helm takes itself for the oldest one that it knows.
        command.args(["--namespace=kube-system", "--kube-version=1.30.0"]).args(arguments);
        shell::text(&mut command).context("helm template")
    }
}

//! Objects as the API server would store them: every default filled in, nothing of it left that differs from time to time.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use hypha_lab::cluster::ControlPlane;
use serde_json::Value;

/// By kind and name.
pub type Objects = BTreeMap<String, Value>;

/// What the server adds to an object's metadata.
const SERVERS: [&str; 5] = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];
/// What the chart adds to a pod's annotations, and a manifest that people edit cannot.
const CHECKSUM: &str = "checksum/config";

/// `deploy/` of the workspace.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// One of its files.
pub fn file(name: &str) -> Result<String> {
    let path = directory().join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Has the server check and complete `manifest`, without storing anything.
pub fn completed(plane: &ControlPlane, manifest: &str) -> Result<Objects> {
    let arguments = ["create", "--dry-run=server", "--validate=strict", "--output=json", "-f", "-"];
    let answer = plane.kubectl_with_input(&arguments, manifest)?;
    let documents = serde_json::Deserializer::from_str(&answer).into_iter::<Value>();
    let mut objects = Objects::new();
    for document in documents {
        let document = document.context("kubectl does not answer in JSON")?;
        let items = match document.get("items").and_then(Value::as_array) {
            Some(items) => items.clone(),
            None => vec![document],
        };
        for mut item in items {
            simplify(&mut item)?;
            let name = format!("{} {}", item["kind"], item["metadata"]["name"]).replace('"', "");
            ensure!(objects.insert(name.clone(), item).is_none(), "{name} is there twice");
        }
    }
    Ok(objects)
}

fn simplify(object: &mut Value) -> Result<()> {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| !SERVERS.contains(&key.as_str()));
    }
    for metadata in ["/metadata", "/spec/template/metadata"] {
        let Some(metadata) = object.pointer_mut(metadata).and_then(Value::as_object_mut) else { continue };
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| key != CHECKSUM && !key.starts_with("deprecated.daemonset"));
        }
        if metadata.get("annotations").is_some_and(|annotations| annotations == &serde_json::json!({})) {
            metadata.remove("annotations");
        }
    }
    // YAML within YAML: what it says counts, not its comments.
    if let Some(options) = object.pointer_mut("/data/hypha.yaml") {
        let text = options.as_str().context("hypha.yaml is no text")?;
        *options = serde_saphyr::from_str(text).context("hypha.yaml is no YAML")?;
    }
    Ok(())
}

/// Fails with what differs.
pub fn ensure_same(what: &str, left: &Objects, right: &Objects) -> Result<()> {
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    ensure!(names(left) == names(right), "{what}: {:?} and {:?}", names(left), names(right));
    for (name, object) in left {
        let mut differences = Vec::new();
        compare("", object, &right[name], &mut differences);
        ensure!(differences.is_empty(), "{what}: {name} differs at {}", differences.join("; "));
    }
    Ok(())
}

fn compare(path: &str, left: &Value, right: &Value, differences: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let value =
                    |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}.{key}"), &value(a), &value(b), differences);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{index}]"), a, b, differences);
            }
        }
        _ if left != right => differences.push(format!("{path}: {left} and {right}")),
        _ => {}
    }
}

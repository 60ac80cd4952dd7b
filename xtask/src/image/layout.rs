//! The archive around a layer: an OCI image layout, with the one file more that older Docker engines look for.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tar::EntryType;

use super::layer::{Layer, digest, header};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an image says about itself.
pub struct Description {
    /// Its full name: `host/path:tag`.
    pub reference: String,
    /// Hypha's version.
    pub version: String,
    /// The commit.
    pub revision: Option<String>,
    /// The commit's time, RFC 3339.
    pub created: Option<String>,
}

/// The name as registries and the kubelet spell it out: `hypha:dev` is `docker.io/library/hypha:dev`.
pub fn reference(name: &str) -> anyhow::Result<String> {
    let (path, tag) = name
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .with_context(|| format!("--name {name}: give a tag too, such as hypha:dev"))?;
    let is_plain = |text: &str, extra: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
    };
    ensure!(is_plain(path, "./-_:"), "--name {name}: a name has lower case letters, digits and . / - _ only");
    ensure!(
        is_plain(&tag.to_ascii_lowercase(), ".-_"),
        "--name {name}: a tag has letters, digits and . - _ only"
    );
    Ok(match path.split_once('/') {
        None => format!("docker.io/library/{path}:{tag}"),
        Some((host, _)) if !host.contains(['.', ':']) && host != "localhost" => {
            format!("docker.io/{path}:{tag}")
        }
        Some(_) => format!("{path}:{tag}"),
    })
}

/// The archive and the digest of its manifest.
pub fn write(layer: &Layer, description: &Description) -> anyhow::Result<(Vec<u8>, String)> {
    let config = config(layer, description).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer.packed)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(MANIFEST, &manifest);
    let tag = description.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] = json!({
        "io.containerd.image.name": description.reference,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let docker = json!([{
        "Config": blob(&config),
        "RepoTags": [description.reference.trim_start_matches("docker.io/library/")],
        "Layers": [blob(&layer.packed)],
    }]);
    let mut files = vec![
        ("oci-layout".to_owned(), json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        ("manifest.json".to_owned(), docker.to_string().into_bytes()),
        (blob(&config), config),
        (blob(&layer.packed), layer.packed.clone()),
        (blob(&manifest), manifest.clone()),
    ];
    files.sort();
    Ok((archive(&files)?, digest(&manifest)))
}

/// How the image runs, and what it is made of.
fn config(layer: &Layer, description: &Description) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": "hypha",
        "org.opencontainers.image.description": "Kubernetes network with an eBPF dataplane: agent and CNI plugin",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": description.version,
    });
    let mut config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/hypha"],
            "Env": ["PATH=/usr/bin"],
            "User": "0:0",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
    });
    if let Some(revision) = &description.revision {
        labels["org.opencontainers.image.revision"] = json!(revision);
    }
    if let Some(created) = &description.created {
        config["created"] = json!(created);
    }
    config["config"]["Labels"] = labels;
    config
}

/// The machine's architecture by Go's name: we build for the machine we are on.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn blob(content: &[u8]) -> String {
    format!("blobs/{}", digest(content).replace(':', "/"))
}

fn archive(files: &[(String, Vec<u8>)]) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = header(EntryType::Regular, content.len());
        header.set_mode(0o644);
        let written = builder.append_data(&mut header, path, content.as_slice());
        written.with_context(|| format!("packing {path}"))?;
    }
    builder.into_inner().context("ending the archive")
}

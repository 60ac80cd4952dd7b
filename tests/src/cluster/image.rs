//! Container images without a registry: an OCI archive with one layer, of the machine's static busybox.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The image of the pods that tests make: a shell and busybox's tools. What it runs by itself is sleep.
pub const TOOLS: &str = "hypha.test/tools:1";
/// What holds a pod's namespaces. containerd is told this name, and the same image stands behind it.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// From Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// Ends at once when it is asked to: a shell that waits runs its trap, one that sleeps does not.
const SLEEP: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";
/// What `httpd -h /www` serves.
pub const PAGE: &str = "hello\n";
const APPLETS: [&str; 12] =
    ["sh", "sleep", "httpd", "wget", "nc", "ip", "ping", "cat", "ls", "echo", "mkdir", "hostname"];

/// Writes the archive with both images, which differ in name only.
pub(super) fn write_tools(path: &Path) -> Result<()> {
    let busybox =
        fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX} (package busybox-static)"))?;
    let layer = layer(&busybox)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sh", "-c", SLEEP],
            "Env": ["PATH=/bin"],
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    })
    .to_string()
    .into_bytes();
    let named = |name: &str| {
        let mut entry = descriptor("manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        entry
    };
    let index = json!({ "schemaVersion": 2, "manifests": [named(TOOLS), named(PAUSE)] });
    let mut archive = Builder::new(Vec::new());
    add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut archive, "index.json", 0o644, index.to_string().as_bytes())?;
    for blob in [&layer, &config, &manifest] {
        add(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    let archive = archive.into_inner().context("cannot end the archive")?;
    fs::write(path, archive).with_context(|| format!("cannot write {}", path.display()))
}

fn layer(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "tmp/", "www/"] {
        let mut header = header(EntryType::Directory, 0o755, 0);
        layer.append_data(&mut header, directory, &[][..]).context("cannot add a directory")?;
    }
    add(&mut layer, "bin/busybox", 0o755, busybox)?;
    add(&mut layer, "www/index.html", 0o644, PAGE.as_bytes())?;
    for applet in APPLETS {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").context("cannot add a link")?;
    }
    layer.into_inner().context("cannot end the layer")
}

fn add(archive: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len());
    archive.append_data(&mut header, name, content).with_context(|| format!("cannot add {name}"))
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": digest(content),
        "size": content.len(),
    })
}

fn digest(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

//! Images are unpacked as a container runtime would.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::layer::{Entry, digest, is_dynamic, pack};
use super::layout::{Description, reference, write};

fn entries() -> Vec<Entry> {
    // The order is not the archive's.
    ["usr/bin/hypha-cni", "usr/bin/hypha"]
        .map(|path| Entry { path: path.to_owned(), content: path.repeat(1000).into_bytes() })
        .into()
}

fn description() -> Description {
    Description {
        reference: "docker.io/library/hypha:dev".to_owned(),
        version: "1.2.3".to_owned(),
        revision: Some("c0ffee".to_owned()),
        created: None,
    }
}

fn image() -> (Vec<u8>, String) {
    write(&pack(&entries()).unwrap(), &description()).unwrap()
}

type Unpacked = BTreeMap<String, (Vec<u8>, tar::Header)>;

fn unpack(archive: &[u8]) -> Unpacked {
    let mut archive = tar::Archive::new(archive);
    let entry = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), (content, entry.header().clone()))
    };
    archive.entries().unwrap().map(entry).collect()
}

/// What a descriptor points at, its size and digest checked.
fn follow<'a>(files: &'a Unpacked, descriptor: &Value) -> &'a [u8] {
    let named = descriptor["digest"].as_str().unwrap();
    let (content, _) = &files[&format!("blobs/{}", named.replace(':', "/"))];
    assert_eq!(digest(content), named);
    assert_eq!(descriptor["size"], content.len());
    content
}

fn document(content: &[u8]) -> Value {
    serde_json::from_slice(content).unwrap()
}

#[test]
fn every_digest_leads_to_what_it_names() {
    let (archive, named) = image();
    let files = unpack(&archive);
    assert_eq!(document(&files["oci-layout"].0), json!({ "imageLayoutVersion": "1.0.0" }));
    let index = document(&files["index.json"].0);
    assert_eq!(
        index["manifests"][0]["annotations"]["io.containerd.image.name"],
        "docker.io/library/hypha:dev"
    );
    assert_eq!(index["manifests"][0]["digest"], named);
    let manifest = document(follow(&files, &index["manifests"][0]));
    let config = document(follow(&files, &manifest["config"]));
    let mut layer = Vec::new();
    GzDecoder::new(follow(&files, &manifest["layers"][0])).read_to_end(&mut layer).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.revision"], "c0ffee");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
}

#[test]
fn the_layer_holds_the_files_and_nothing_of_who_made_it() {
    let layer = pack(&entries()).unwrap();
    let mut tar = Vec::new();
    GzDecoder::new(layer.packed.as_slice()).read_to_end(&mut tar).unwrap();
    let files = unpack(&tar);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["usr/", "usr/bin/", "usr/bin/hypha", "usr/bin/hypha-cni"]);
    assert_eq!(files["usr/bin/hypha"].0, "usr/bin/hypha".repeat(1000).into_bytes());
    for (path, (_, header)) in &files {
        let of =
            (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap(), header.mode().unwrap());
        assert_eq!(of, (0, 0, 0, 0o755), "{path}");
    }
}

#[test]
fn the_same_files_give_the_same_bytes() {
    assert_eq!(image(), image());
}

#[test]
fn older_docker_engines_find_their_way_too() {
    let (archive, _) = image();
    let files = unpack(&archive);
    let docker = document(&files["manifest.json"].0);
    assert_eq!(docker[0]["RepoTags"], json!(["hypha:dev"]));
    for path in [&docker[0]["Config"], &docker[0]["Layers"][0]] {
        assert!(files.contains_key(path.as_str().unwrap()), "{path}");
    }
}

#[test]
fn names_are_spelled_out_as_the_kubelet_does() {
    for (name, expected) in [
        ("hypha:dev", "docker.io/library/hypha:dev"),
        ("someone/hypha:0.1", "docker.io/someone/hypha:0.1"),
        ("registry.example/hypha:0.1", "registry.example/hypha:0.1"),
        ("localhost/hypha:A_b", "localhost/hypha:A_b"),
        ("registry.example:5000/net/hypha:x", "registry.example:5000/net/hypha:x"),
    ] {
        assert_eq!(reference(name).unwrap(), expected);
    }
    for name in ["hypha", "registry.example:5000/hypha", "Hypha:dev", ":dev", "hypha:", "hypha:a b"] {
        let error = reference(name).unwrap_err().to_string();
        assert!(error.contains("--name"), "{name}: {error}");
    }
}

#[test]
fn what_needs_a_loader_is_told_from_what_does_not() {
    let here = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // Tests are built for the machine's own libc.
    assert_eq!(is_dynamic(&here).unwrap(), cfg!(target_env = "gnu"));
    assert!(is_dynamic(b"no executable").is_err());
}

//! Rules about what others rely on: the layout of pinned maps, and where dependencies come from.

use super::tree::Tree;

/// What the maps look like, as the datapath's snapshot test records it.
const SNAPSHOTS: &str = "datapath-ebpf/";
/// Every layout version there ever was, with the digest of its snapshot: lines of `<LAYOUT> <digest>`.
const HISTORY: &str = "datapath-ebpf/layouts";
const LAYOUT_SOURCE: &str = "datapath-ebpf/src/maps.rs";
const LAYOUT_CONSTANT: &str = "pub const LAYOUT: u32 = ";
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The snapshot of the map layouts is the one that the current `LAYOUT` was given to.
///
/// Pinned maps outlive the agent: whoever changes a layout must give it a new number, or the next agent would read old
/// bytes as new ones.
pub fn layouts(tree: &Tree) -> Vec<String> {
    let constant = tree.get(LAYOUT_SOURCE).and_then(|text| text.split_once(LAYOUT_CONSTANT));
    let Some(version) = constant.and_then(|(_, rest)| rest.split(';').next()) else {
        return vec![format!("{LAYOUT_SOURCE}: no `{LAYOUT_CONSTANT}…`")];
    };
    let snapshots: Vec<&str> = tree.files(SNAPSHOTS, ".snap").map(|(_, text)| contents(text)).collect();
    if snapshots.is_empty() {
        return vec![format!("{SNAPSHOTS}: no snapshot of the map layouts")];
    }
    let current = format!("{version} {:016x}", digest(&snapshots));
    if tree.get(HISTORY).unwrap_or_default().lines().any(|line| line == current) {
        return Vec::new();
    }
    vec![format!(
        "{HISTORY}: no line `{current}`: the layout of a map changed. Raise LAYOUT in {LAYOUT_SOURCE}, then add the line \
         that this check asks for (replace a line only if its version never left this machine)"
    )]
}

/// Every dependency is one that anybody can fetch.
pub fn registries(tree: &Tree) -> Vec<String> {
    let lock = tree.get("Cargo.lock").unwrap_or_default().lines();
    let sources =
        lock.filter_map(|line| line.strip_prefix("source = ")).map(|source| source.trim_matches('"'));
    let foreign = sources.filter(|source| *source != CRATES_IO).map(|source| format!("Cargo.lock: {source}"));
    let replaced =
        tree.files(".cargo/", "").filter(|(_, text)| text.contains("[source") || text.contains("[registr"));
    let replaced = replaced
        .map(|(path, _)| format!("{path}: replaces or adds a registry: keep that in your home directory"));
    foreign.chain(replaced).collect()
}

/// A snapshot without insta's header, which names the file and expression but not the layout.
fn contents(snapshot: &str) -> &str {
    snapshot.splitn(3, "---\n").last().unwrap_or(snapshot)
}

/// FNV-1a: it has to notice an edit, not to resist anybody.
fn digest(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: &str = "datapath-ebpf/src/snapshots/layouts.snap";

    fn history() -> String {
        format!("1 {:016x}\n", digest(&["Endpoint 16 bytes\n"]))
    }

    fn found(version: u32, snapshot: &str) -> Vec<String> {
        let source = format!("{LAYOUT_CONSTANT}{version};\n");
        layouts(&Tree::from([
            (LAYOUT_SOURCE, source.as_str()),
            (SNAPSHOT, snapshot),
            (HISTORY, history().as_str()),
        ]))
    }

    #[test]
    fn an_unchanged_layout_passes_whatever_insta_writes_above_it() {
        assert_eq!(found(1, "---\nsource: src/maps.rs\n---\nEndpoint 16 bytes\n"), [] as [String; 0]);
        assert_eq!(found(1, "---\nsource: elsewhere.rs\n---\nEndpoint 16 bytes\n"), [] as [String; 0]);
    }

    #[test]
    fn a_changed_layout_needs_a_new_version_and_a_new_line() {
        assert_eq!(found(1, "---\n---\nEndpoint 20 bytes\n").len(), 1);
        assert_eq!(found(2, "---\n---\nEndpoint 20 bytes\n").len(), 1);
        assert_eq!(found(2, "---\n---\nEndpoint 16 bytes\n").len(), 1);
    }

    #[test]
    fn foreign_registries_are_found() {
        let lock = format!("source = \"{CRATES_IO}\"\nsource = \"git+https://example.org/x\"\n");
        let tree =
            Tree::from([("Cargo.lock", lock.as_str()), (".cargo/config.toml", "[source.crates-io]\n")]);
        assert_eq!(registries(&tree).len(), 2);
    }
}

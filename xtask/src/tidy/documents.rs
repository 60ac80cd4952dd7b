//! Rules about the documents.

use std::collections::BTreeSet;

use super::tree::Tree;

const LONGEST_ARCHITECTURE: usize = 250;
const COMMANDS: [&str; 2] =
    ["rustup toolchain install && cargo xtask demo", "rustup toolchain install && cargo xtask test"];
/// How a map is declared in the datapath; its name follows.
const DECLARATION: &str = "btf_map(name = \"";

/// `docs/maps.md` names every map of the datapath.
pub fn maps(tree: &Tree) -> Vec<String> {
    let sources = tree.files("datapath-ebpf/src/", ".rs");
    let names: BTreeSet<&str> = sources
        .flat_map(|(_, text)| text.split(DECLARATION).skip(1).filter_map(|rest| rest.split('"').next()))
        .collect();
    if names.is_empty() {
        return vec![format!(
            "datapath-ebpf/src: no `{DECLARATION}…` found: this rule looks for the wrong thing"
        )];
    }
    missing(tree, "docs/maps.md", names.into_iter().map(|name| format!("`{name}`")))
}

/// ARCHITECTURE.md stays short and names every package and every top-level module of the agent.
pub fn architecture(tree: &Tree) -> Vec<String> {
    const PATH: &str = "ARCHITECTURE.md";
    let mut findings = missing(tree, PATH, modules(tree).into_iter());
    let length = tree.get(PATH).unwrap_or_default().lines().count();
    if length > LONGEST_ARCHITECTURE {
        findings.push(format!("{PATH}: {length} lines, at most {LONGEST_ARCHITECTURE}"));
    }
    findings
}

/// README.md shows how to try it and how to test it.
pub fn readme(tree: &Tree) -> Vec<String> {
    missing(tree, "README.md", COMMANDS.iter().map(|command| (*command).to_owned()))
}

/// Directories with a `Cargo.toml` and directories below `agent/src`, as paths from the root.
fn modules(tree: &Tree) -> BTreeSet<String> {
    let packages = tree.files("", "/Cargo.toml").filter_map(|(path, _)| path.strip_suffix("/Cargo.toml"));
    let folders = tree.files("agent/src/", ".rs").filter_map(|(path, _)| {
        let below = path.strip_prefix("agent/src/")?;
        Some(&path[..path.len() - below.len() + below.find('/')?])
    });
    packages.chain(folders).map(str::to_owned).collect()
}

/// The texts that a document should contain but does not.
fn missing(tree: &Tree, path: &str, wanted: impl Iterator<Item = String>) -> Vec<String> {
    match tree.get(path) {
        None => vec![format!("{path}: missing")],
        Some(text) => wanted
            .filter(|want| !text.contains(want))
            .map(|want| format!("{path}: does not name {want}"))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undocumented_map_is_found() {
        let source = "#[btf_map(name = \"routes\", pin_by_name)]\n#[btf_map(name = \"nat\", pin_by_name)]\n";
        let tree = Tree::from([
            ("datapath-ebpf/src/steps/tables.rs", source),
            ("docs/maps.md", "`routes` natters\n"),
        ]);
        assert_eq!(maps(&tree), ["docs/maps.md: does not name `nat`"]);
    }

    #[test]
    fn a_rule_that_finds_no_maps_at_all_says_so() {
        assert_eq!(maps(&Tree::from([("docs/maps.md", "")])).len(), 1);
    }

    #[test]
    fn architecture_names_packages_and_modules() {
        let tree = Tree::from([
            ("Cargo.toml", ""),
            ("agent/Cargo.toml", ""),
            ("agent/src/core/ipam.rs", ""),
            ("agent/src/main.rs", ""),
            ("ARCHITECTURE.md", "agent/ is the agent\n"),
        ]);
        assert_eq!(architecture(&tree), ["ARCHITECTURE.md: does not name agent/src/core"]);
    }

    #[test]
    fn architecture_has_an_end() {
        let long = "line\n".repeat(LONGEST_ARCHITECTURE + 1);
        assert_eq!(architecture(&Tree::from([("ARCHITECTURE.md", long.as_str())])).len(), 1);
    }

    #[test]
    fn a_readme_without_the_commands_is_found() {
        assert_eq!(readme(&Tree::from([("README.md", "cargo xtask demo\n")])).len(), 2);
        assert_eq!(readme(&Tree::default()), ["README.md: missing"]);
    }
}

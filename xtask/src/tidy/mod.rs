//! `cargo xtask tidy`: the conventions that neither rustfmt nor clippy knows.
//!
//! Each rule is a function from the tree to its findings, so that a rule is tested on a tree of two lines.

use anyhow::bail;

mod documents;
mod interfaces;
mod sources;
mod tree;

use tree::Tree;

/// One rule: what it wants, and the places that fall short, each with its path.
type Rule = (&'static str, fn(&Tree) -> Vec<String>);

const RULES: [Rule; 10] = [
    ("every Rust file starts with what it is for", sources::headers),
    ("no file grows beyond what one reads in a sitting", sources::lengths),
    ("no unfinished business", sources::leftovers),
    ("no stray whitespace", sources::whitespace),
    ("the agent's core knows nothing of the outside", sources::pure_core),
    ("every map is documented", documents::maps),
    ("ARCHITECTURE.md is short and complete", documents::architecture),
    ("README.md has the two commands", documents::readme),
    ("a map layout and its version change together", interfaces::layouts),
    ("dependencies come from crates.io", interfaces::registries),
];

/// Checks every rule and lists what is wrong.
///
/// # Errors
///
/// When a rule is broken.
pub fn run() -> anyhow::Result<()> {
    let tree = Tree::of_workspace()?;
    let mut count = 0;
    for (wish, rule) in RULES {
        let findings = rule(&tree);
        if !findings.is_empty() {
            eprintln!("{wish}:");
        }
        for finding in &findings {
            eprintln!("  {finding}");
        }
        count += findings.len();
    }
    if count > 0 {
        bail!("tidy: {count} findings");
    }
    println!("tidy: {} rules hold", RULES.len());
    Ok(())
}

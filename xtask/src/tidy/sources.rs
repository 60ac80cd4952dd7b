//! Rules about source files.

use super::tree::Tree;

/// The longest a file's code may be, its tests not counted. We aim at 90 to 240 lines; the limit leaves room for a state
/// machine or a table that would only be harder to read in two pieces.
const LONGEST: usize = 450;

/// What may not appear under `agent/src/core`: whoever can do input or output there can no longer be tested by calling it.
const OUTSIDE: [&str; 9] =
    ["aya", "kube", "libc", "netlink_packet_route", "nix", "notify", "rtnetlink", "std::net::Tcp", "tokio"];

/// Every Rust file opens with `//!`.
pub fn headers(tree: &Tree) -> Vec<String> {
    let bare = tree.files("", ".rs").filter(|(_, text)| !text.starts_with("//! "));
    bare.map(|(path, _)| format!("{path}: no `//!` header")).collect()
}

/// No Rust file is longer than [`LONGEST`].
pub fn lengths(tree: &Tree) -> Vec<String> {
    let code_lines = |text: &str| text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    let long =
        tree.files("", ".rs").map(|(path, text)| (path, code_lines(text))).filter(|(_, n)| *n > LONGEST);
    long.map(|(path, n)| format!("{path}: {n} lines of code, at most {LONGEST}: split it")).collect()
}

/// No note to ourselves is left in the tree.
pub fn leftovers(tree: &Tree) -> Vec<String> {
    // In two parts, or this file would find itself.
    let notes =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("(being ", "written)")];
    lines(tree, "", |line| notes.iter().find(|note| line.contains(**note)).map(|note| format!("`{note}`")))
}

/// No trailing whitespace, no tabs in Rust, a newline at the end.
pub fn whitespace(tree: &Tree) -> Vec<String> {
    let authored = |path: &str| !path.ends_with(".snap") && !path.ends_with(".patch");
    let mut findings = Vec::new();
    for (path, text) in tree.files("", "").filter(|(path, _)| authored(path)) {
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim_end() != line {
                findings.push(format!("{path}:{number}: trailing whitespace"));
            }
            if path.ends_with(".rs") && line.contains('\t') {
                findings.push(format!("{path}:{number}: tab"));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            findings.push(format!("{path}: no newline at the end"));
        }
    }
    findings
}

/// The agent's core uses nothing that talks to the outside.
pub fn pure_core(tree: &Tree) -> Vec<String> {
    lines(tree, "agent/src/core/", |line| {
        let code = line.split("//").next().unwrap_or_default();
        let used = OUTSIDE.iter().find(|name| uses(code, name));
        used.map(|name| format!("`{name}` in the pure core"))
    })
}

/// Whether a line of code names the crate or module `name`.
fn uses(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        starts && (after.starts_with("::") || after.starts_with(';') || name.contains("::"))
    })
}

/// The findings of a check on single lines, with their places.
fn lines(tree: &Tree, directory: &str, check: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let numbered = tree
        .files(directory, "")
        .flat_map(|(path, text)| (1..).zip(text.lines()).map(move |(number, line)| (path, number, line)));
    numbered
        .filter_map(|(path, number, line)| check(line).map(|finding| format!("{path}:{number}: {finding}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_header_is_found() {
        let tree =
            Tree::from([("a.rs", "//! What it is for.\n"), ("b.rs", "fn main() {}\n"), ("c.toml", "")]);
        assert_eq!(headers(&tree), ["b.rs: no `//!` header"]);
    }

    #[test]
    fn tests_do_not_count_as_length() {
        let code = "//! x\n".repeat(LONGEST);
        let tested = format!("{code}#[cfg(test)]\nmod tests {{\n}}\n");
        assert_eq!(lengths(&Tree::from([("a.rs", tested.as_str())])), [] as [String; 0]);
        assert_eq!(lengths(&Tree::from([("a.rs", format!("{code}\n").as_str())])).len(), 1);
    }

    #[test]
    fn notes_are_found_with_their_place() {
        let note = concat!("fine\n# TO", "DO: later\n");
        assert_eq!(leftovers(&Tree::from([("x.yaml", note)])), [concat!("x.yaml:2: `TO", "DO`")]);
    }

    #[test]
    fn stray_whitespace_is_found() {
        let tree = Tree::from([("a.rs", "a \n\tb\nc"), ("Makefile", "\tfine\n"), ("a.snap", "theirs ")]);
        assert_eq!(
            whitespace(&tree),
            ["a.rs:1: trailing whitespace", "a.rs:2: tab", "a.rs: no newline at the end"]
        );
    }

    #[test]
    fn the_core_may_not_use_the_outside() {
        let impure =
            "use tokio::sync;\nlet fd = nix::fcntl::open();\nlet kube = 1; // tokio::spawn\nuse my_nix::x;\n";
        let tree = Tree::from([
            ("agent/src/core/ipam.rs", impure),
            ("agent/src/daemon/mod.rs", "use tokio::net;\n"),
        ]);
        assert_eq!(pure_core(&tree).len(), 2, "{:?}", pure_core(&tree));
    }
}

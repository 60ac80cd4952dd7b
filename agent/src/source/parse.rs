//! From the text of a file to objects: YAML or JSON, several documents, `kind: List` flattened.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::Object;

/// Why a file has no usable objects.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not YAML, for instance half-written.
    #[error("line {line}: not YAML: {reason}")]
    Syntax {
        /// Counted from 1; 0 when the parser could not tell.
        line: u64,
        /// In the parser's words.
        reason: String,
    },
    /// YAML, but not the object that its kind promises.
    #[error("document at line {line}: {kind} {name:?}: {reason}")]
    Object {
        /// The document's first line, counted from 1.
        line: u64,
        /// What the document says it is.
        kind: String,
        /// `metadata.name`, as far as there is one.
        name: String,
        /// What does not fit.
        reason: String,
    },
}

/// The contents of a file.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    /// The objects of known kinds, in the order of the file.
    pub objects: Vec<Object>,
    /// `apiVersion/kind` of everything else.
    pub unknown: Vec<String>,
}

/// Parses a whole file: one broken document spoils it, so that a half-written file changes nothing.
pub fn parse(text: &str) -> Result<Parsed, ParseError> {
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        ParseError::Syntax { line, reason: error.without_snippet().to_string() }
    })?;
    let mut parsed = Parsed::default();
    for document in documents {
        add(&mut parsed, document.defined.line(), document.value)?;
    }
    Ok(parsed)
}

fn add(parsed: &mut Parsed, line: u64, mut document: Value) -> Result<(), ParseError> {
    let text =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    match (version.as_str(), kind.as_str()) {
        ("v1", "Node") => {
            let node: Node = object(line, document)?;
            parsed.objects.push(node.into());
        }
        ("v1", "Pod") => {
            let mut pod: Pod = object(line, document)?;
            // As kubectl does with what it is given.
            pod.metadata.namespace.get_or_insert_with(|| "default".into());
            parsed.objects.push(pod.into());
        }
        ("v1", "List" | "NodeList" | "PodList") => {
            let items = document.get_mut("items").map(Value::take);
            let Some(Value::Array(items)) = items else { return Ok(()) };
            for mut item in items {
                name_item(&mut item, &version, &kind);
                add(parsed, line, item)?;
            }
        }
        _ => parsed.unknown.push(format!("{version}/{kind}")),
    }
    Ok(())
}

/// The items of a typed list need not repeat what they are.
fn name_item(item: &mut Value, version: &str, list: &str) {
    let kind = list.strip_suffix("List").filter(|kind| !kind.is_empty());
    if let (Some(fields), Some(kind)) = (item.as_object_mut(), kind) {
        fields.entry("apiVersion").or_insert_with(|| version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
    }
}

fn object<T: DeserializeOwned>(line: u64, document: Value) -> Result<T, ParseError> {
    let text =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let failed = |reason: String| ParseError::Object { line, kind: kind.clone(), name: name.clone(), reason };
    if name.is_empty() {
        return Err(failed("metadata.name is missing".into()));
    }
    serde_json::from_value(document).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse(text).unwrap().objects.iter().map(|object| object.key().to_string()).collect()
    }

    #[test]
    fn files_of_every_shape() {
        let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n");
        let json = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "j"}}"#;
        let untyped = r#"{"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "l"}}]}"#;
        for (what, text, expected) in [
            ("nothing", String::new(), &[][..]),
            ("only comments", "# nothing here\n---\n".into(), &[]),
            ("one object", node("a"), &["Node a"]),
            ("two objects", format!("{}---\n{}", node("a"), node("b")), &["Node a", "Node b"]),
            (
                "empty documents between",
                format!("---\n{}---\n---\n{}", node("a"), node("b")),
                &["Node a", "Node b"],
            ),
            ("JSON", json.into(), &["Node j"]),
            ("a list", format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{json}]}}"#), &["Node j"]),
            ("a typed list", untyped.into(), &["Node l"]),
            ("a pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".into(), &["Pod default/p"]),
            ("an empty list", r#"{"apiVersion": "v1", "kind": "List", "items": []}"#.into(), &[]),
        ] {
            assert_eq!(names(&text), expected, "{what}");
        }
    }

    #[test]
    fn other_kinds_are_reported_and_passed_over() {
        let parsed = parse("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\nhello: world\n");
        assert_eq!(parsed.unwrap().unknown, ["apps/v1/Deployment", "/"]);
    }

    #[test]
    fn errors_name_the_line() {
        let half = "apiVersion: v1\nkind: Node\nmetadata:\n  name: \"a";
        assert!(matches!(parse(half), Err(ParseError::Syntax { line: 4.., .. })), "{:?}", parse(half));
        let wrong = "# one\n---\napiVersion: v1\nkind: Node\nmetadata: {name: b}\nspec: {podCIDRs: 7}\n";
        let error = parse(wrong).unwrap_err();
        assert!(matches!(&error, ParseError::Object { line: 3, name, .. } if name == "b"), "{error}");
        let nameless = parse("apiVersion: v1\nkind: Node\nmetadata: {}\n");
        assert!(matches!(nameless, Err(ParseError::Object { .. })));
    }

    #[test]
    fn a_large_list_is_not_too_large() {
        let items: Vec<_> = (0..5000)
            .map(|n| format!("- apiVersion: v1\n  kind: Node\n  metadata:\n    name: n{n}\n    labels: {{a: b, c: d}}\n"))
            .collect();
        let text = format!("apiVersion: v1\nkind: List\nitems:\n{}", items.concat());
        assert_eq!(names(&text).len(), 5000);
    }
}

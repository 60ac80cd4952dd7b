//! Sequences that once showed a difference, kept as data and replayed at every run.

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::event::Event;
use crate::topology::Family;

/// A file of `agent/tests/programs/sequences/`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What went wrong.
    pub about: String,
    /// The family it showed in; both, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    pub events: Vec<Event>,
}

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "programs", "sequences"].iter().collect()
}

/// Every kept sequence of the family with its file's name.
pub fn all(family: Family) -> Vec<(String, Kept)> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut kept: Vec<(String, Kept)> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            (name.clone(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}")))
        })
        .collect();
    kept.retain(|(_, kept)| kept.family.as_deref().is_none_or(|only| only == family.pick("v4", "v6")));
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    kept
}

/// A file's text, one event a line.
pub fn text(about: &str, family: Family, events: &[Event]) -> String {
    let about = serde_json::to_string(about).unwrap();
    let lines: Vec<String> =
        events.iter().map(|event| format!("    {}", serde_json::to_string(event).unwrap())).collect();
    let family = family.pick("v4", "v6");
    format!(
        "{{\n  \"about\": {about},\n  \"family\": \"{family}\",\n  \"events\": [\n{}\n  ]\n}}\n",
        lines.join(",\n")
    )
}

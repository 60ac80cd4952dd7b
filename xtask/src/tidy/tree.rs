//! The files that tidy looks at.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace;

/// Text files by their path from the workspace's root.
#[derive(Default)]
pub struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// What git tracks or would track; files that are not UTF-8 text are left out.
    pub fn of_workspace() -> anyhow::Result<Self> {
        let root = workspace::root();
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .context("starting git")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "git cannot list the files of {}: {error}", root.display());
        let paths = String::from_utf8(output.stdout).context("reading the file names from git")?;
        let files = paths.split_terminator('\0').filter_map(|path| {
            // A file that was deleted but not yet committed is listed too.
            fs::read_to_string(root.join(path)).ok().map(|text| (path.to_owned(), text))
        });
        Ok(Self { files: files.collect() })
    }

    /// The text of one file.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Every file below `directory` (`""` for all) whose name ends in `suffix`.
    pub fn files<'a>(
        &'a self,
        directory: &'a str,
        suffix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let files = self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        files.filter(move |(path, _)| path.starts_with(directory) && path.ends_with(suffix))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Tree {
    fn from(files: [(&str, &str); N]) -> Self {
        Self { files: files.map(|(path, text)| (path.to_owned(), text.to_owned())).into() }
    }
}

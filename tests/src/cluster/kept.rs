//! Clusters that were left up on purpose: found again by another process, and taken down.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::{Program, Programs};
use crate::{netns::Netns, registry};

/// What their names start with.
pub const PREFIX: &str = "cluster";

/// A cluster that another process has left up.
#[derive(Debug)]
pub struct Kept {
    tag: String,
    netns: Netns,
    programs: Programs,
}

impl Kept {
    /// The one that is up.
    pub fn find() -> Result<Self> {
        let mut tags = registry::kept(PREFIX);
        let tag = tags.pop().context("no cluster is up: start one with `cargo xtask cluster up`")?;
        if !tags.is_empty() {
            bail!("several clusters are up: take them down with `cargo xtask cluster down`");
        }
        let netns = Netns::open(&format!("{tag}-gateway"))?;
        // It is there, or the cluster could not be up.
        let programs = Programs::ensure(&[Program::Kubectl], &super::progress::to_stderr)?;
        Ok(Self { tag, netns, programs })
    }

    /// Its tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        registry::dir_of(&self.tag).join("control-plane/admin.kubeconfig")
    }

    /// `kubectl`, ready for its arguments.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = self.netns.command(self.programs.path(Program::Kubectl)?);
        command.env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }
}

/// Takes down what was kept; returns the tags.
pub fn remove() -> Result<Vec<String>> {
    registry::erase_kept(PREFIX)
}

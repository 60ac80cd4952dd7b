//! Asking the running agent.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use hypha_cni::{
    protocol::{Call, Request, Response},
    wire,
};

use super::output::Format;
use crate::{daemon::RUN_DIR, server};

/// The agent answers questions from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every command that asks the agent understands.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// The agent's run directory
    #[arg(long, env = "HYPHA_RUN_DIR", value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,

    /// Form of the output
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Format,
}

impl ClientArgs {
    /// Asks, and turns an error that the agent reports into one of ours.
    pub fn ask(&self, call: Call) -> anyhow::Result<Response> {
        let answer = wire::call(&server::socket(&self.run_dir), &Request::new(call), None, PATIENCE);
        let answer = answer.context("cannot ask the agent (is it running, and is this its --run-dir?)")?;
        if let Response::Error(error) = answer {
            bail!("the agent says: {} ({})", error.msg, error.details);
        }
        Ok(answer)
    }
}

//! A running agent.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::poll;

/// Lines of the log that an error shows.
const TAIL: usize = 60;

/// An agent process; killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts `command` with everything it says appended to `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file =
            File::options().create(true).append(true).open(log).context("cannot open the agent's log")?;
        let child = command
            .stdin(Stdio::null())
            // Ctrl-C is for us: the agent is ended in order, or lives on in a network that is kept.
            .process_group(0)
            .stdout(file.try_clone().context("cannot share the agent's log")?)
            .stderr(file)
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// Fails, with the log's end, when it has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot look after the agent")? {
            None => Ok(()),
            Some(status) => bail!("the agent ended ({status}); its log ends with:\n{}", tail(&self.log)),
        }
    }

    /// Asks it to end by SIGTERM and waits until it has; it must report success.
    pub fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)
            .context("cannot signal the agent")?;
        let status = poll::eventually("the agent has ended after SIGTERM", Duration::from_secs(10), || {
            self.child.try_wait()?.context("still running")
        })?;
        if !status.success() {
            bail!("the agent ended with {status} after SIGTERM; its log ends with:\n{}", tail(&self.log));
        }
        Ok(())
    }

    /// Kills it by SIGKILL, as an out-of-memory kill would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS line")?;
        line.trim().trim_end_matches(" kB").parse().context("VmRSS is not a number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The end of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

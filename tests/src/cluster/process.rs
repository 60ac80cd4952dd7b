//! One of a cluster's processes: started, stopped, paused and started again, always with the same command.

use std::{
    fs::File,
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

use crate::{agent::tail, netns::Netns, poll};

/// How long one may take to end in order.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where processes can be started.
pub trait Place {
    /// A command that will run there.
    fn command(&self, program: &Path) -> Result<Command>;

    /// Starts such a command.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| format!("cannot start {command:?}"))
    }
}

impl Place for Netns {
    fn command(&self, program: &Path) -> Result<Command> {
        Ok(Self::command(self, program))
    }
}

/// A process in a namespace; killed on drop.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes one. Everything it says is appended to `log`.
    pub fn new(name: &'static str, program: PathBuf, arguments: Vec<String>, log: PathBuf) -> Self {
        Self { name, program, arguments, environment: Vec::new(), log, child: None }
    }

    /// Sets a variable of its environment.
    pub fn environment(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Starts it.
    pub fn start(&mut self, place: &dyn Place) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.name);
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = place.command(&self.program)?;
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // Ctrl-C is for us: it is ended in order, or lives on in a cluster that is kept.
            .process_group(0)
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log);
        self.child = Some(place.spawn(&mut command)?);
        Ok(())
    }

    /// Whether it runs (or is paused).
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Fails, with the end of its log, when it has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        let child = self.child.as_mut().with_context(|| format!("{} was not started", self.name))?;
        match child.try_wait().with_context(|| format!("cannot look after {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); its log ends with:\n{}", self.name, tail(&self.log)),
        }
    }

    /// Asks it to end and waits; one that does not is killed.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let ended = poll::wait_until("a process has ended after SIGTERM", PATIENCE, || !self.is_running());
        if ended.is_err() {
            return self.kill();
        }
        self.child = None;
        Ok(())
    }

    /// Kills it by SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Holds it as it is, connections open: what a machine out of memory or CPU looks like from outside.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything it has said, restarts included.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its log, headed by its name.
    pub fn log_tail(&self) -> String {
        format!("--- {} ({})\n{}\n", self.name, self.log.display(), tail(&self.log))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        kill(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Fails when it has ended already.
            let _ended = self.kill();
        }
    }
}

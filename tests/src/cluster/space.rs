//! A node's namespaces (network, mount, UTS, IPC, PID), held by an init of its own, and how programs get into them.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};

use super::process::Place;
use crate::{agent::tail, netns::Netns, poll};

/// Mounts and their daemons: see the file.
const INIT: &str = include_str!("node/init.sh");
/// All but the PID namespace, which a process enters by being born into it.
const ENTERED: [(&str, CloneFlags); 4] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// The namespaces of one node; all that runs in them ends when this is dropped.
#[derive(Debug)]
pub struct Space {
    /// `unshare`, which ends init when it ends.
    holder: Child,
    init: u32,
}

impl Space {
    /// Makes them around `netns`. The files of `dir/files` are the node's `/run/node`.
    pub fn create(name: &str, netns: &Netns, dir: &Path) -> Result<Self> {
        let (script, ready, log) = (dir.join("init.sh"), dir.join("ready"), dir.join("init.log"));
        fs::write(&script, INIT).context("cannot write the node's init")?;
        let said = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = netns.command("unshare");
        command
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "sh"])
            .arg(&script)
            .arg(name)
            .arg(dir.join("files"))
            .arg(&ready)
            .stdin(Stdio::null())
            .process_group(0)
            .stdout(said.try_clone().context("cannot share a log")?)
            .stderr(said);
        let mut holder = command.spawn().context("cannot start unshare")?;
        let init =
            poll::eventually(&format!("{name} has its file systems"), Duration::from_secs(20), || {
                if let Some(status) = holder.try_wait()? {
                    return Ok(Err(anyhow!("the init of {name} ended ({status}):\n{}", tail(&log))));
                }
                ensure!(fs::read_to_string(&ready).is_ok_and(|text| text == "ready\n"), "not yet");
                child_of(holder.id()).map(Ok)
            })??;
        Ok(Self { holder, init })
    }

    /// Process 1 of the node, as the machine numbers it.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A path of the node, as the machine sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// A program that is run to its end in all of the node's namespaces.
    pub fn run(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--",
        ]);
        command.arg(program.as_ref());
        command
    }

    fn open(&self, kind: &str) -> Result<File> {
        let path = format!("/proc/{}/ns/{kind}", self.init);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }
}

impl Place for Space {
    fn command(&self, program: &Path) -> Result<Command> {
        let mut files = Vec::new();
        for (kind, flag) in ENTERED {
            files.push((self.open(kind)?, flag));
        }
        let mut command = Command::new(program);
        let no_signals = SigSet::empty();
        let enter = move || {
            // A child inherits which signals are blocked, and this process may have left some to one thread.
            no_signals.thread_set_mask()?;
            for (file, flag) in &files {
                setns(file.as_fd(), *flag)?;
            }
            Ok(())
        };
        // SAFETY: what runs between fork and exec are system calls, which are async-signal-safe.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Children are born into the PID namespace that their parent's thread has chosen for them.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        let pids = self.open("pid")?;
        let spawned = thread::scope(|scope| {
            let spawner = scope.spawn(|| -> io::Result<Child> {
                setns(pids.as_fd(), CloneFlags::CLONE_NEWPID)?;
                command.spawn()
            });
            spawner.join()
        });
        match spawned {
            Ok(child) => child.with_context(|| format!("cannot start {command:?}")),
            Err(_) => bail!("the thread that was to start {command:?} panicked"),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ended = self.holder.kill();
        let _ended = self.holder.wait();
    }
}

/// The one child of a process.
fn child_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    children.trim().parse().with_context(|| format!("{path} holds {children:?}"))
}

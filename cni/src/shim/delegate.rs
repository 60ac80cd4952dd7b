//! Running a delegated IPAM plugin: same variables, same standard input, its errors passed on.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::protocol::{ErrorReply, code};

use super::environment::{Environment, Verb};

/// An IPAM plugin found in `CNI_PATH`, with the input that it gets.
pub(super) struct Delegate<'a> {
    name: &'a str,
    path: PathBuf,
    stdin: &'a [u8],
}

/// How running a plugin can fail before it says anything itself.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot run {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} did not finish in time and was killed", path.display())]
    Timeout { path: PathBuf },
}

impl<'a> Delegate<'a> {
    /// Looks for `name` in `CNI_PATH`.
    pub(super) fn find(
        environment: &Environment,
        name: &'a str,
        stdin: &'a [u8],
    ) -> Result<Self, ErrorReply> {
        if environment.plugin_dirs.is_empty() {
            let details = format!("the network configuration's IPAM plugin {name} is looked for there");
            return Err(ErrorReply::new(code::INVALID_ENVIRONMENT, "CNI_PATH missing", details));
        }
        let is_executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = environment.plugin_dirs.iter().map(|dir| dir.join(name));
        let Some(path) = candidates.find(is_executable) else {
            let path = std::env::join_paths(&environment.plugin_dirs).unwrap_or_default();
            let details = format!("no executable of that name in CNI_PATH={}", path.display());
            let msg = format!("IPAM plugin {name} not found");
            return Err(ErrorReply::new(code::INVALID_CONFIG, msg, details));
        };
        Ok(Self { name, path, stdin })
    }

    /// The plugin's name.
    pub(super) fn name(&self) -> &str {
        self.name
    }

    /// Runs the plugin with `CNI_COMMAND=verb` and returns what it printed; its error result is returned as ours.
    pub(super) fn run(&self, verb: Verb, deadline: Instant) -> Result<Vec<u8>, ErrorReply> {
        let (status, stdout) = self.execute(verb, deadline).map_err(|error| {
            let code = match error {
                RunError::Io { .. } => code::IO_FAILURE,
                RunError::Timeout { .. } => code::TRY_AGAIN_LATER,
            };
            ErrorReply::new(code, self.failed(verb), error.to_string())
        })?;
        if status.success() {
            return Ok(stdout);
        }
        Err(match serde_json::from_slice::<ErrorReply>(&stdout) {
            Ok(reply) => ErrorReply::new(reply.code, self.failed(verb), reply.to_string()),
            Err(_) => {
                let said = String::from_utf8_lossy(&stdout);
                let end =
                    status.signal().map_or_else(|| status.to_string(), |n| format!("killed by signal {n}"));
                let details = format!("{end}, without an error result; it printed {said:?}");
                ErrorReply::new(code::INTERNAL, self.failed(verb), details)
            }
        })
    }

    fn failed(&self, verb: Verb) -> String {
        format!("{} of IPAM plugin {} failed", verb.as_str(), self.name)
    }

    fn execute(&self, verb: Verb, deadline: Instant) -> Result<(ExitStatus, Vec<u8>), RunError> {
        let io = |source: io::Error| RunError::Io { path: self.path.clone(), source };
        let mut stdout = memory_file(&[]).map_err(io)?;
        let mut child = self.spawn(verb, &stdout, deadline).map_err(io)?;
        let Some(status) = wait(&mut child, deadline).map_err(io)? else {
            return Err(RunError::Timeout { path: self.path.clone() });
        };
        let mut printed = Vec::new();
        stdout.rewind().and_then(|()| stdout.read_to_end(&mut printed)).map_err(io)?;
        Ok((status, printed))
    }

    /// Input and output are files in memory: a plugin that neither reads nor stops writing cannot block us, as it
    /// could with pipes. Its group of its own lets a timeout reach what it started, too.
    fn spawn(&self, verb: Verb, stdout: &File, deadline: Instant) -> io::Result<Child> {
        loop {
            let started = Command::new(&self.path)
                .env("CNI_COMMAND", verb.as_str())
                .stdin(memory_file(self.stdin)?)
                .stdout(stdout.try_clone()?)
                .stderr(Stdio::inherit())
                .process_group(0)
                .spawn();
            match started {
                // Somebody is just installing another version of the plugin.
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }
}

/// An anonymous file that holds `content`, its position at the start.
fn memory_file(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"hypha-cni", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Waits for the child; kills its group and returns none when the deadline passes first.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd(child)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => break,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended meanwhile: then there is nothing to kill, and that is as good.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    child.wait()?;
    Ok(None)
}

/// A descriptor that becomes readable when the child ends.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, child.id(), 0) };
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! Network namespaces: made, entered and removed.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::CommandExt},
    panic,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};

use crate::shell;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// A named network namespace, removed on drop by whoever made it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    owned: bool,
}

impl Netns {
    /// Makes a namespace whose loopback is up and whose IPv6 addresses are usable at once (no duplicate address
    /// detection, no router solicitations: nobody else is on these wires).
    pub fn create(name: &str) -> Result<Self> {
        shell::text(Command::new("ip").args(["netns", "add", name]))?;
        let mut netns = Self::open(name)?;
        netns.owned = true;
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("ipv6/conf/default/router_solicitations", "0")?;
        shell::ip(&netns, "link set lo up")?;
        Ok(netns)
    }

    /// A namespace that another made, and that stays when this is dropped.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_at(name, &Path::new(NAMES).join(name))
    }

    /// The same for one that is known by a path of its own, such as a container runtime's.
    pub fn open_at(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path: path.to_path_buf(), file, owned: false })
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as `CNI_NETNS` takes it.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Runs `body` on a thread inside the namespace. Sockets that it opens and returns stay in the namespace.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter namespace {}", self.name))?;
                Ok(body())
            });
            inside.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// A command that will run inside the namespace. Unlike `ip netns exec` this leaves `/sys` as it is, so that the
    /// BPF file system stays in sight.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let fd = self.file.as_raw_fd();
        let no_signals = SigSet::empty();
        let prepare = move || {
            // A child inherits which signals are blocked, and this process may have left some to one thread.
            no_signals.thread_set_mask()?;
            // SAFETY: no memory is passed. The descriptor is this process's: whoever spawns the command after the
            // namespace was dropped gets EBADF or EINVAL as its error.
            match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: what runs between fork and exec are two system calls, which are async-signal-safe.
        unsafe { command.pre_exec(prepare) };
        command
    }

    /// Sets a sysctl below `/proc/sys/net`, as seen inside the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {} in {}", path.display(), self.name))
    }

    /// Forgets a namespace by its name, as `ip netns delete` does; one that is already gone is fine.
    pub fn delete(name: &str) {
        let path = Path::new(NAMES).join(name);
        // Errors mean that the name was never mounted or is gone, and both are what we want.
        let _gone = umount2(&path, MntFlags::MNT_DETACH);
        let _gone = fs::remove_file(&path);
    }

    /// The names of all namespaces on this machine.
    pub fn names() -> Vec<String> {
        let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.owned {
            Self::delete(&self.name);
        }
    }
}

//! What labs leave on the machine while they live, and its removal: also of labs whose owner was killed.
//!
//! Everything a lab makes can be found by its tag: namespaces named `<tag>-…`, the directory [`ROOT`]`/<tag>` and the
//! pins below `/sys/fs/bpf/<tag>`. The owner holds a lock on a file in the directory. The kernel releases it when the
//! owner ends, however it ends, so that a lock nobody holds means a lab nobody owns.

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal, kill},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::Pid,
};

use crate::{cluster::cgroups, netns::Netns, poll};

/// Directory of all labs.
const ROOT: &str = "/run/hypha-lab";
/// Where pins live.
const BPFFS: &str = "/sys/fs/bpf";

/// A lab's claim on its names.
#[derive(Debug)]
pub struct Registration {
    tag: String,
    lock: Option<Flock<File>>,
}

impl Registration {
    /// Claims a fresh tag `<prefix>-XXXXXX`, after removing what killed labs have left.
    pub fn claim(prefix: &str) -> Result<Self> {
        fs::create_dir_all(ROOT).with_context(|| format!("cannot make {ROOT}"))?;
        ensure_bpffs()?;
        let _alone = registry_lock()?;
        for tag in abandoned() {
            erase(&tag);
        }
        let random = RandomState::new().hash_one(std::process::id());
        let tag = format!("{prefix}-{:06x}", random & 0xff_ffff);
        let dir = Path::new(ROOT).join(&tag);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::create_dir(Path::new(BPFFS).join(&tag)).context("cannot make the directory for pins")?;
        let file = File::create(dir.join("lock")).context("cannot make the lab's lock")?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        live().push(tag.clone());
        Ok(Self { tag, lock: Some(lock) })
    }

    /// The tag that every name of the lab starts with.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The lab's own directory.
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.tag)
    }

    /// The lab's own directory in the BPF file system.
    pub fn bpf_dir(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.tag)
    }

    /// Leaves everything up after this process has ended, until [`erase_kept`].
    pub fn keep(mut self) -> Result<()> {
        fs::write(self.dir().join("kept"), "").context("cannot mark the lab as kept")?;
        self.lock = None;
        live().retain(|tag| *tag != self.tag);
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.lock.is_some() {
            erase(&self.tag);
            live().retain(|tag| *tag != self.tag);
        }
    }
}

/// From now on SIGINT and SIGTERM remove this process's labs before they end it. To be called before any thread starts:
/// threads inherit which signals they leave to the one that waits for them.
pub fn clean_up_on_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        let signal = signals.wait();
        for tag in live().drain(..) {
            erase(&tag);
        }
        std::process::exit(128 + signal.map_or(0, |signal| signal as i32));
    });
    Ok(())
}

/// The tags of this process's labs.
fn live() -> MutexGuard<'static, Vec<String>> {
    static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tags, starting with `prefix`, of the labs that were kept on purpose.
pub fn kept(prefix: &str) -> Vec<String> {
    let kept = |tag: &String| tag.starts_with(prefix) && dir_of(tag).join("kept").exists();
    tags().into_iter().filter(kept).collect()
}

/// The directory of a lab.
pub fn dir_of(tag: &str) -> PathBuf {
    Path::new(ROOT).join(tag)
}

/// Removes the labs that were kept on purpose and whose tag starts with `prefix`; returns their tags.
pub fn erase_kept(prefix: &str) -> Result<Vec<String>> {
    if !Path::new(ROOT).exists() {
        return Ok(Vec::new());
    }
    let _alone = registry_lock()?;
    let tags = kept(prefix);
    for tag in &tags {
        erase(tag);
    }
    Ok(tags)
}

/// Between making a lab's directory and locking it, nobody may look for abandoned ones.
fn registry_lock() -> Result<Flock<File>> {
    let path = Path::new(ROOT).join("registry.lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(lock) => Ok(lock),
        Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
    }
}

fn tags() -> Vec<String> {
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.path().is_dir());
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Tags of labs that nobody owns and nobody wanted to keep.
fn abandoned() -> Vec<String> {
    let is_abandoned = |tag: &String| {
        let dir = Path::new(ROOT).join(tag);
        if dir.join("kept").exists() {
            return false;
        }
        let lock = File::open(dir.join("lock")).ok();
        lock.is_none_or(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
    };
    tags().into_iter().filter(is_abandoned).collect()
}

/// Ends what runs in a lab's namespaces and removes all that carries its tag.
fn erase(tag: &str) {
    let prefix = format!("{tag}-");
    let namespaces: Vec<_> = Netns::names().into_iter().filter(|name| name.starts_with(&prefix)).collect();
    end_processes(&namespaces);
    for name in &namespaces {
        Netns::delete(name);
    }
    cgroups::erase(&prefix);
    // Best effort: what is gone already is what we want, and the next claim tries again.
    let _gone = fs::remove_dir_all(Path::new(BPFFS).join(tag));
    let _gone = fs::remove_dir_all(Path::new(ROOT).join(tag));
}

/// Kills the processes that live in the named namespaces, which are this lab's by construction, and waits until they
/// are gone: a process that still runs could make new pins and files.
fn end_processes(namespaces: &[String]) {
    let inode = |path: &Path| fs::metadata(path).map(|meta| meta.ino()).ok();
    let inodes: HashSet<_> =
        namespaces.iter().filter_map(|name| inode(&Path::new("/run/netns").join(name))).collect();
    let inhabitants = || -> Vec<i32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours = processes.filter(|process| {
            inode(&process.path().join("ns/net")).is_some_and(|inode| inodes.contains(&inode))
        });
        ours.filter_map(|process| process.file_name().to_str()?.parse().ok()).collect()
    };
    // One that outlives SIGKILL for seconds is stuck in the kernel; its names go all the same.
    let _stuck = poll::wait_until("the lab's processes are gone", Duration::from_secs(5), || {
        let pids = inhabitants();
        for &pid in &pids {
            // An error means that it has just ended by itself.
            let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        pids.is_empty()
    });
}

/// Mounts the BPF file system where the machine has not done so.
fn ensure_bpffs() -> Result<()> {
    if statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system at {BPFFS}"))
}

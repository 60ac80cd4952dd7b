//! Deletes that the shim could not hand to the agent because it was not running.
//!
//! One file for each attachment in `<run-dir>/deletes/`, made complete by a rename, named after a hash of the
//! identity so that repeated DELs take one place. No delete is lost when both sides keep to their order: the agent
//! binds its socket, *then* replays the queue, *then* serves; the shim queues, then tries to connect once more. So
//! either the agent sees the file or the shim sees the agent.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::protocol::{Attachment, Del};

/// Name of the queue's directory inside the run directory.
pub const QUEUE_NAME: &str = "deletes";

/// Most deletes that may wait: far more than pods fit on a node, and a bound for the memory behind `/run`.
pub const MAX_QUEUED: usize = 4096;

/// How the queue can fail.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A file or the directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// [`MAX_QUEUED`] deletes wait already.
    #[error("{} holds {MAX_QUEUED} deletes: start the agent, which replays them", path.display())]
    Full {
        /// The queue's directory.
        path: PathBuf,
    },
}

/// The queue of one run directory.
#[derive(Debug, Clone)]
pub struct Queue {
    dir: PathBuf,
}

impl Queue {
    /// The queue inside `run_dir`. Nothing is made before something is queued.
    pub fn new(run_dir: &Path) -> Self {
        Self { dir: run_dir.join(QUEUE_NAME) }
    }

    /// Queues `del`; again is the same as once.
    ///
    /// # Errors
    /// When the queue is full or cannot be written: the delete is then *not* queued, and must fail.
    pub fn push(&self, del: &Del) -> Result<(), QueueError> {
        let path = self.file(&del.attachment);
        let result = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        result.map_err(|source| QueueError::Io { action: "make", path: self.dir.clone(), source })?;
        if !path.exists() && self.entries()?.len() >= MAX_QUEUED {
            return Err(QueueError::Full { path: self.dir.clone() });
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let write = serde_json::to_vec(del).map_err(io::Error::from).and_then(|json| {
            fs::write(&temporary, json)?;
            fs::rename(&temporary, &path)
        });
        write.map_err(|source| {
            // What is left over of a failed attempt is worth no second error.
            let _ = fs::remove_file(&temporary);
            QueueError::Io { action: "write", path, source }
        })
    }

    /// All queued deletes, with the error of each file that is not one.
    ///
    /// # Errors
    /// When the directory cannot be listed; a queue that does not exist is empty.
    pub fn list(&self) -> Result<Vec<Result<Del, QueueError>>, QueueError> {
        let mut names = self.entries()?;
        names.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        names.sort();
        Ok(names.into_iter().map(read).collect())
    }

    /// Forgets the delete of `attachment`: it was carried out, or the attachment exists anew. Returns whether it
    /// was queued.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub fn remove(&self, attachment: &Attachment) -> Result<bool, QueueError> {
        let path = self.file(attachment);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(QueueError::Io { action: "remove", path, source }),
        }
    }

    fn entries(&self) -> Result<Vec<PathBuf>, QueueError> {
        let failed = |source| QueueError::Io { action: "list", path: self.dir.clone(), source };
        match fs::read_dir(&self.dir) {
            Ok(entries) => {
                entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(failed)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(failed(source)),
        }
    }

    fn file(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(format!("{:016x}.json", hash(attachment)))
    }
}

fn read(path: PathBuf) -> Result<Del, QueueError> {
    let content = fs::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
    content.map_err(|source| QueueError::Io { action: "read", path, source })
}

/// FNV-1a over the identity: container IDs may be longer than a file name, and std's hasher promises no stability
/// between the shim's version and the agent's.
fn hash(attachment: &Attachment) -> u64 {
    let parts = [&attachment.container_id, &attachment.ifname, &attachment.network];
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn del(container_id: &str, ifname: &str, network: &str) -> Del {
        let own = |text: &str| text.to_owned();
        Del {
            attachment: Attachment {
                container_id: own(container_id),
                ifname: own(ifname),
                network: own(network),
            },
        }
    }

    #[test]
    fn a_name_never_changes_between_versions() {
        let path = Queue::new(Path::new("/run/hypha")).file(&del("c0ffee", "eth0", "pods").attachment);
        assert_eq!(path, Path::new("/run/hypha/deletes/c0bacd839e97a329.json"));
    }

    #[test]
    fn parts_of_the_identity_do_not_run_into_each_other() {
        let hashes = [("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"), ("abc", "d", "d")]
            .map(|(id, ifname, network)| hash(&del(id, ifname, network).attachment));
        assert_eq!(std::collections::BTreeSet::from(hashes).len(), hashes.len());
    }

    #[test]
    fn what_is_pushed_is_listed_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new(&dir.path().join("run"));
        assert!(queue.list().unwrap().is_empty());
        // Longer than a file's name may be.
        let dels = [del("a", "eth0", "n"), del("a", "eth1", "n"), del(&"b".repeat(500), "eth0", "n")];
        for del in dels.iter().chain(&dels) {
            queue.push(del).unwrap();
        }
        let mut listed: Vec<Del> = queue.list().unwrap().into_iter().map(Result::unwrap).collect();
        listed.sort_by(|a, b| a.attachment.cmp(&b.attachment));
        assert_eq!(listed, dels);
        assert!(queue.remove(&dels[0].attachment).unwrap());
        assert!(!queue.remove(&dels[0].attachment).unwrap());
        assert_eq!(queue.list().unwrap().len(), 2);
    }
}

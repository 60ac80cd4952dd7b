//! The files under `<run-dir>/state`.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use tracing::{error, warn};

use super::record::{RECORD_VERSION, Record};
use crate::core::ipam::Checkpoint;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct StoreError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// What an earlier agent left.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every readable endpoint, in the order of the numbers.
    pub records: Vec<Record>,
    /// The order of reuse; empty when it was unreadable.
    pub checkpoint: Checkpoint,
}

/// The state directory of one agent.
#[derive(Debug)]
pub struct Store {
    endpoints: PathBuf,
    checkpoint: PathBuf,
    quarantine: PathBuf,
}

impl Store {
    /// Makes the directories under `run_dir` when they are missing.
    pub fn open(run_dir: &Path) -> Result<Self, StoreError> {
        let state = run_dir.join("state");
        let store = Self {
            endpoints: state.join("endpoints"),
            checkpoint: state.join("ipam.json"),
            quarantine: state.join("quarantine"),
        };
        fs::create_dir_all(&store.endpoints).map_err(failed("make the directory", &store.endpoints))?;
        Ok(store)
    }

    /// Everything that is there. A file that cannot be understood is moved to `quarantine/` and logged: one bad file
    /// must not take the node's network down.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        let entries = fs::read_dir(&self.endpoints).map_err(failed("list", &self.endpoints))?;
        for entry in entries {
            let path = entry.map_err(failed("list", &self.endpoints))?.path();
            if path.extension() == Some(OsStr::new("tmp")) {
                // Written by an agent that was killed before the rename: it never counted.
                let _ = fs::remove_file(&path);
            } else if let Some(record) = self.read(&path, check_record) {
                loaded.records.push(record);
            }
        }
        loaded.records.sort_by_key(|record| record.id);
        if self.checkpoint.exists() {
            loaded.checkpoint = self.read(&self.checkpoint, |_, _| Ok(())).unwrap_or_default();
        }
        Ok(loaded)
    }

    /// Writes an endpoint's file.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        write(&self.file(record.id), record)
    }

    /// Removes an endpoint's file; it may be gone already.
    pub fn remove(&self, id: u32) -> Result<(), StoreError> {
        let path = self.file(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(source)),
            _ => Ok(()),
        }
    }

    /// Writes the order of reuse.
    pub fn save_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        write(&self.checkpoint, checkpoint)
    }

    fn file(&self, id: u32) -> PathBuf {
        self.endpoints.join(format!("{id}.json"))
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        check: impl Fn(&Path, &T) -> Result<(), String>,
    ) -> Option<T> {
        let bytes = fs::read(path).map_err(|error| error.to_string());
        let value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        let checked = value.and_then(|value| check(path, &value).map(|()| value));
        checked.map_err(|reason| self.put_aside(path, &reason)).ok()
    }

    fn put_aside(&self, path: &Path, reason: &str) {
        let name = path.file_name().unwrap_or_default();
        let aside = self.quarantine.join(name);
        let moved = fs::create_dir_all(&self.quarantine).and_then(|()| fs::rename(path, &aside));
        match moved {
            Ok(()) => warn!(
                file = %path.display(), reason, moved_to = %aside.display(),
                "unreadable state: going on without it; an endpoint in it works again when its pod is made anew"
            ),
            Err(error) => {
                error!(file = %path.display(), reason, %error, "unreadable state cannot be moved away");
            }
        }
    }
}

fn check_record(path: &Path, record: &Record) -> Result<(), String> {
    let Record { version, id, .. } = record;
    if *version != RECORD_VERSION {
        return Err(format!("it has version {version}, this agent reads {RECORD_VERSION}"));
    }
    if *id == 0 || path.file_name() != Some(OsStr::new(&format!("{id}.json"))) {
        return Err(format!("it says it is endpoint {id}, which its name does not"));
    }
    Ok(())
}

/// Whole or not at all, by a rename. Not synced to disk: the state need not survive the machine, and `/run` is memory.
fn write(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    let bytes = serde_json::to_vec(value).map_err(io::Error::from);
    let written = bytes.and_then(|bytes| {
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path)
    });
    written.map_err(failed("write", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError { action, path: path.to_owned(), source }
}

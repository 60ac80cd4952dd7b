//! Objects from the files of a directory, watched: the source that needs no API server.
//!
//! A file that cannot be read or parsed keeps the objects it had before, so that half-written files do no harm. When
//! two files have one object, the file whose name comes last wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    Event, Key, Kind, Object, Status,
    notices::Notices,
    parse::{self, Parsed},
};

/// How often the directory is read without being told to: what inotify cannot see (the directory itself replaced, a
/// file system without notifications) is found this way.
const RESCAN: Duration = Duration::from_secs(5);
/// A file changed this recently may change again within one tick of its time stamp: it is always read again.
const RACY: Duration = Duration::from_secs(2);

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not there, not a directory, or not readable.
    #[error("cannot read the directory {} of --source: {source}; create it, objects may be added later", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// inotify refused.
    #[error("cannot watch the directory {} of --source: {source}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What inotify said.
        source: notify::Error,
    },
    /// No thread to watch from.
    #[error("cannot start the thread that watches {}: {source}", path.display())]
    Thread {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Reads the directory and follows it from then on; the first events are an [`Event::Reset`] of every kind, and are there
/// already.
pub fn watch(path: &Path, status: Status) -> Result<mpsc::Receiver<Event>, SourceError> {
    let (events, receiver) = mpsc::channel(64);
    // Watching before reading: a change in between is read twice rather than missed.
    let failed = |source| SourceError::Watch { path: path.to_owned(), source };
    let mut notices = Notices::new().map_err(failed)?;
    notices.watch(path).map_err(failed)?;
    let mut directory = Directory::new(path);
    directory.scan().map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
    for kind in Kind::ALL {
        let objects = directory.current.values().map(|(_, object)| object);
        let objects = objects.filter(|object| object.kind() == kind).cloned().collect();
        let event = Event::Reset(kind, objects);
        status.connected(kind);
        status.event(&event);
        // The channel is new and empty: there is room.
        let _ = events.try_send(event);
    }
    thread::Builder::new()
        .name("source-dir".into())
        .spawn(move || follow(directory, &events, &notices, &status))
        .map_err(|source| SourceError::Thread { path: path.to_owned(), source })?;
    Ok(receiver)
}

/// Until nobody listens any more.
fn follow(mut directory: Directory, events: &mpsc::Sender<Event>, notices: &Notices, status: &Status) {
    let mut readable = true;
    while !events.is_closed() {
        notices.wait(RESCAN);
        match directory.scan() {
            Ok(changes) => {
                readable = true;
                for kind in Kind::ALL {
                    status.connected(kind);
                }
                for event in changes {
                    status.event(&event);
                    if events.blocking_send(event).is_err() {
                        return;
                    }
                }
            }
            Err(error) if readable => {
                readable = false;
                for kind in Kind::ALL {
                    status.failed(kind, &error.to_string());
                }
                warn!(path = %directory.path.display(), %error, "source directory is unreadable: keeping its objects");
            }
            Err(_) => {}
        }
    }
}

/// Tells one state of a file from the next.
type Stamp = (SystemTime, i64, u64, u64);

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: BTreeMap<Key, Object>,
    /// What was wrong with it last: logged once.
    error: Option<String>,
}

/// The directory as it was last seen.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    files: BTreeMap<String, File>,
    /// Every object with the file it is from.
    current: BTreeMap<Key, (String, Object)>,
    unknown: BTreeSet<String>,
    shadowed: BTreeSet<(Key, String)>,
}

impl Directory {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            current: BTreeMap::new(),
            unknown: BTreeSet::new(),
            shadowed: BTreeSet::new(),
        }
    }

    /// Reads what changed; returns what that changes about the objects.
    fn scan(&mut self) -> io::Result<Vec<Event>> {
        let names = self.names()?;
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            self.read(&name);
        }
        let merged = self.merge();
        let gone = self.current.keys().filter(|key| !merged.contains_key(key)).cloned().map(Event::Delete);
        let changed = merged
            .iter()
            .filter(|(key, (_, object))| self.current.get(key).is_none_or(|(_, before)| before != object));
        let events = gone.chain(changed.map(|(_, (_, object))| Event::Apply(object.clone()))).collect();
        self.current = merged;
        Ok(events)
    }

    fn names(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
            if !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json")) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    fn read(&mut self, name: &str) {
        let path = self.path.join(name);
        let stamp = stamp(&path);
        let file = self.files.entry(name.to_owned()).or_default();
        if stamp.is_some() && file.stamp == stamp {
            return;
        }
        file.stamp = stamp.filter(|(modified, ..)| modified.elapsed().is_ok_and(|age| age > RACY));
        let text = fs::read_to_string(&path).map_err(|error| error.to_string());
        let parsed = text.and_then(|text| parse::parse(&text).map_err(|error| error.to_string()));
        let error = parsed.as_ref().err().cloned();
        if let Some(error) = error.as_ref().filter(|_| file.error != error) {
            warn!(file = %path.display(), error, "unusable file in the source directory: what it held before stays");
        }
        file.error = error;
        if let Ok(parsed) = parsed {
            self.take(name, parsed);
        }
    }

    fn take(&mut self, name: &str, parsed: Parsed) {
        for kind in parsed.unknown {
            if self.unknown.insert(kind.clone()) {
                info!(kind, file = name, "objects of this kind are not used");
            }
        }
        if let Some(file) = self.files.get_mut(name) {
            file.objects = parsed.objects.into_iter().map(|object| (object.key(), object)).collect();
        }
    }

    fn merge(&mut self) -> BTreeMap<Key, (String, Object)> {
        let mut merged: BTreeMap<Key, (String, Object)> = BTreeMap::new();
        let mut shadowed = BTreeSet::new();
        for (name, file) in &self.files {
            for (key, object) in &file.objects {
                if let Some((loser, _)) = merged.insert(key.clone(), (name.clone(), object.clone())) {
                    if !self.shadowed.contains(&(key.clone(), loser.clone())) {
                        warn!(object = %key, used = name, ignored = loser, "two files have one object: the last name wins");
                    }
                    shadowed.insert((key.clone(), loser));
                }
            }
        }
        self.shadowed = shadowed;
        merged
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ctime_nsec(), metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests;

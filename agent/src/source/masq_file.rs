//! The file of an ip-masq-agent, followed: what it says is in force as soon as it says so.
//!
//! Its directory is watched, not the file: a ConfigMap's volume never changes a file, it swaps the symbolic link `..data`
//! that the file's own link leads through. What no notice tells of (a file behind links to other directories) is found
//! when the file is read again after its `resyncInterval`.
//!
//! A file that cannot be used changes nothing. For that to hold across a restart, too, the last good one is kept.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use super::notices::Notices;
use crate::core::masq_config::MasqConfig;

/// How often the directory is looked for while there is none to watch.
const NO_DIRECTORY: Duration = Duration::from_secs(2);

/// What is in force, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqFile {
    /// The file.
    pub path: PathBuf,
    /// What is in force.
    pub config: MasqConfig,
    /// Whether the file is there: the defaults are in force without it.
    pub found: bool,
    /// Why the file as it is now is not what is in force.
    pub error: Option<String>,
}

/// Why a file cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum MasqFileError {
    /// inotify refused.
    #[error("cannot watch for changes of --ip-masq-agent-config: {0}")]
    Notices(#[from] notify::Error),
    /// No thread to watch from.
    #[error("cannot start the thread that follows --ip-masq-agent-config: {0}")]
    Thread(#[from] io::Error),
}

/// Reads the file, wherever it is on its way to being there, and follows it until nobody listens. `kept` is where the last
/// good text goes.
pub fn watch(path: &Path, kept: &Path) -> Result<watch::Receiver<MasqFile>, MasqFileError> {
    let mut notices = Notices::new()?;
    // Watching before reading: a change in between is read twice rather than missed.
    let mut directory = Watched::default();
    directory.renew(path, &mut notices);
    let mut file = Follower::new(path, kept);
    file.read();
    let (sender, receiver) = watch::channel(file.state.clone());
    let follow = move || {
        while !sender.is_closed() {
            let resync = file.state.config.resync;
            notices.wait(if directory.seen.is_some() { resync } else { resync.min(NO_DIRECTORY) });
            directory.renew(path_of(&file), &mut notices);
            file.read();
            sender.send_if_modified(|state| {
                let differs = *state != file.state;
                state.clone_from(&file.state);
                differs
            });
        }
    };
    thread::Builder::new().name("masq-file".into()).spawn(follow)?;
    Ok(receiver)
}

fn path_of(file: &Follower) -> &Path {
    &file.state.path
}

/// The directory that is watched, as device and inode: a watch belongs to these, not to the path.
#[derive(Debug, Default)]
struct Watched {
    seen: Option<(u64, u64)>,
}

impl Watched {
    fn renew(&mut self, path: &Path, notices: &mut Notices) {
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let there = fs::metadata(directory).ok().map(|it| (it.dev(), it.ino()));
        if there == self.seen {
            return;
        }
        notices.unwatch(directory);
        self.seen = there.filter(|_| notices.watch(directory).is_ok());
    }
}

/// The file as it was last read.
#[derive(Debug)]
struct Follower {
    state: MasqFile,
    kept: PathBuf,
}

impl Follower {
    /// In force is what was in force when an agent last followed a file.
    fn new(path: &Path, kept: &Path) -> Self {
        let config = fs::read_to_string(kept).ok().and_then(|text| MasqConfig::parse(&text).ok());
        let config = config.unwrap_or_default();
        Self {
            state: MasqFile { path: path.to_owned(), config, found: true, error: None },
            kept: kept.to_owned(),
        }
    }

    /// Reads it and takes what it says, or keeps what was.
    fn read(&mut self) {
        match fs::read_to_string(&self.state.path) {
            Ok(text) => match MasqConfig::parse(&text) {
                Ok(config) => self.take(Some(&text), config),
                Err(error) => self.fail(&error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.take(None, MasqConfig::default()),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn take(&mut self, text: Option<&str>, config: MasqConfig) {
        let next = MasqFile { config, found: text.is_some(), error: None, ..self.state.clone() };
        if let Err(error) = self.keep(text) {
            warn!(path = %self.kept.display(), %error, "cannot keep the last good state of --ip-masq-agent-config");
        }
        if next != self.state {
            let (file, exempt) = (next.path.display(), &next.config.exempt);
            info!(%file, found = next.found, ?exempt, ignored = ?next.config.ignored, "prefixes that are not masqueraded");
            self.state = next;
        }
    }

    /// Says it once for each thing that is wrong.
    fn fail(&mut self, error: &str) {
        if self.state.error.as_deref() != Some(error) {
            let file = self.state.path.display();
            warn!(%file, error, "unusable --ip-masq-agent-config: what was in force stays");
            self.state.error = Some(error.to_owned());
        }
    }

    fn keep(&self, text: Option<&str>) -> io::Result<()> {
        let Some(text) = text else {
            return match fs::remove_file(&self.kept) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        if fs::read_to_string(&self.kept).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        let fresh = self.kept.with_extension("fresh");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.kept)
    }
}

#[cfg(test)]
mod tests;

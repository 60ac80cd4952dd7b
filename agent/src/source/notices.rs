//! Notice that something in a directory may have changed, from inotify.

use std::{
    path::Path,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// How long to wait for more after the first notification: an editor's save is several of them.
const SETTLE: Duration = Duration::from_millis(20);

/// Watches directories, until dropped.
#[derive(Debug)]
pub struct Notices {
    notified: Receiver<()>,
    watcher: RecommendedWatcher,
}

impl Notices {
    /// Watches nothing yet.
    pub fn new() -> notify::Result<Self> {
        let (notify, notified) = sync_channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event, too. Full means that somebody will look anyway.
            if !matches!(event, Ok(notify::Event { kind: EventKind::Access(_), .. })) {
                let _ = notify.try_send(());
            }
        })?;
        Ok(Self { notified, watcher })
    }

    /// Watches the entries of a directory from now on, but not what is below them.
    pub fn watch(&mut self, directory: &Path) -> notify::Result<()> {
        self.watcher.watch(directory, RecursiveMode::NonRecursive)
    }

    /// Watches it no longer; fine when it is gone.
    pub fn unwatch(&mut self, directory: &Path) {
        let _ = self.watcher.unwatch(directory);
    }

    /// Returns after a change, when there seem to be no more of them, or when the time is up.
    pub fn wait(&self, within: Duration) {
        if self.notified.recv_timeout(within).is_ok() {
            thread::sleep(SETTLE);
            while self.notified.try_recv().is_ok() {}
        }
    }
}

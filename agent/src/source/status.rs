//! How it goes with the source of objects: for operators, who see it in `hypha status` and in the metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{Event, Kind};

/// The state of the source, shared between those who feed it and those who look. Clones are the same state.
#[derive(Clone, Debug)]
pub struct Status(Arc<Mutex<Snapshot>>);

/// The state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `dir` or `kubernetes`.
    pub kind: &'static str,
    /// The directory, or the API server's address.
    pub server: String,
    /// By kind of objects.
    pub watches: BTreeMap<Kind, Watch>,
    /// How often the API server was asked what, and what came of it.
    pub requests: BTreeMap<Asked, u64>,
}

/// A way in which the API server was asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// `watchlist`, `watch`, `list`, `get` or `patch`.
    pub verb: &'static str,
    /// About objects of this kind.
    pub kind: Option<Kind>,
    /// The HTTP status, or `none` without an answer.
    pub outcome: String,
}

/// The watch of one kind.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Since when the server answers; `None` while it does not.
    pub connected: Option<Instant>,
    /// When the server was heard of last, be it only that nothing happens.
    pub heard: Option<Instant>,
    /// Whether all objects have been listed once.
    pub listed: bool,
    /// What went wrong last, and when.
    pub error: Option<(String, Instant)>,
    /// When an object changed, came or went last.
    pub last_event: Option<Instant>,
    /// Objects that came or changed.
    pub applied: u64,
    /// Objects that went.
    pub deleted: u64,
    /// Whole lists.
    pub resets: u64,
    /// Errors.
    pub errors: u64,
    /// How often the connection had to be made anew after an error.
    pub restarts: u64,
}

impl Status {
    /// Of a source that has told nothing yet.
    pub fn new(kind: &'static str, server: String) -> Self {
        let watches = Kind::ALL.into_iter().map(|kind| (kind, Watch::default())).collect();
        Self(Arc::new(Mutex::new(Snapshot { kind, server, watches, requests: BTreeMap::new() })))
    }

    /// The state as it is now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Something happened to the objects.
    pub fn event(&self, event: &Event) {
        let now = Instant::now();
        let kind = match event {
            Event::Apply(object) => object.kind(),
            Event::Delete(key) => key.kind,
            Event::Reset(kind, _) => *kind,
        };
        self.with(kind, |watch| {
            watch.last_event = Some(now);
            match event {
                Event::Apply(_) => watch.applied += 1,
                Event::Delete(_) => watch.deleted += 1,
                Event::Reset(..) => {
                    watch.resets += 1;
                    watch.listed = true;
                }
            }
        });
    }

    /// The server answers; tells whether it did not before.
    pub fn connected(&self, kind: Kind) -> bool {
        let now = Instant::now();
        self.with(kind, |watch| {
            watch.heard = Some(now);
            let anew = watch.connected.is_none();
            watch.restarts += u64::from(anew && watch.error.is_some());
            watch.connected.get_or_insert(now);
            anew
        })
    }

    /// The server said something about a kind.
    pub fn heard(&self, kind: Kind) {
        self.with(kind, |watch| watch.heard = Some(Instant::now()));
    }

    /// Something went wrong; tells whether it is other than before.
    pub fn failed(&self, kind: Kind, error: &str) -> bool {
        self.with(kind, |watch| {
            let news = watch.connected.take().is_some()
                || watch.error.as_ref().is_none_or(|(before, _)| before != error);
            watch.errors += 1;
            watch.error = Some((error.to_owned(), Instant::now()));
            news
        })
    }

    /// A request was answered, or not.
    pub fn requested(&self, verb: &'static str, kind: Option<Kind>, outcome: String) {
        *self.lock().requests.entry(Asked { verb, kind, outcome }).or_default() += 1;
    }

    fn with<T>(&self, kind: Kind, change: impl FnOnce(&mut Watch) -> T) -> T {
        change(self.lock().watches.entry(kind).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// Why objects are not all known yet, or may be out of date; `None` when the server answers.
    pub fn trouble(&self) -> Option<String> {
        let (kind, (error, _)) = self.watches.iter().find_map(|(kind, watch)| {
            watch.connected.is_none().then_some(watch.error.as_ref()).flatten().map(|error| (kind, error))
        })?;
        Some(format!("cannot follow {kind} objects of {}: {error}", self.server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_until_the_server_answers() {
        let status = Status::new("kubernetes", "https://api".into());
        assert_eq!(status.snapshot().trouble(), None, "nothing was tried yet");
        assert!(status.failed(Kind::Pod, "refused"));
        assert!(!status.failed(Kind::Pod, "refused"), "the same again is no news");
        let trouble = status.snapshot().trouble().unwrap();
        assert_eq!(trouble, "cannot follow Pod objects of https://api: refused");
        assert!(status.connected(Kind::Pod));
        assert!(!status.connected(Kind::Pod), "still connected");
        assert_eq!(status.snapshot().trouble(), None);
        assert!(status.failed(Kind::Pod, "refused"), "a connection that worked is lost: news");
        let watch = &status.snapshot().watches[&Kind::Pod];
        assert_eq!((watch.errors, watch.restarts), (3, 1));
    }
}

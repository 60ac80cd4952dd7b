//! One watch: all objects of a kind, then every change, for as long as somebody listens. Errors are told and waited out;
//! nothing that was known is taken back because of one.

use std::{fmt::Debug, pin::pin, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use super::{
    super::{Event, Key, Kind, Object, Status},
    access::{Access, reason},
};

/// The waits between attempts: they double, and jitter adds up to as much again, so that a thousand agents do not come at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(7_500));
/// After this long without an error the next one is waited out as if it were the first.
const CALM: Duration = Duration::from_secs(60);

/// A kind of objects that can be followed.
pub trait Followed:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Into<Object> + 'static
{
    /// What the index calls it.
    const KIND: Kind;

    /// Which of them: a field selector.
    fn selector(_node: &str) -> Option<String> {
        None
    }

    /// A look at an object before it is stripped.
    fn look(&self, _observer: &Observer) {}
}

impl Followed for Node {
    const KIND: Kind = Kind::Node;

    fn look(&self, observer: &Observer) {
        observer(self);
    }
}

impl Followed for Pod {
    const KIND: Kind = Kind::Pod;

    fn selector(node: &str) -> Option<String> {
        Some(format!("spec.nodeName={node}"))
    }
}

/// Sees every Node object whole.
pub type Observer = Box<dyn Fn(&Node) + Send + Sync>;

/// A watch of one kind.
pub struct Follower {
    /// How to reach the server.
    pub access: Access,
    /// This node's name.
    pub node: String,
    /// Who wants to know of changes.
    pub events: mpsc::Sender<Event>,
    /// Who wants to know how it goes.
    pub status: Status,
    /// Who wants to see Node objects before they are stripped.
    pub observer: Observer,
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Go on with the same stream, which knows where it was.
    Again,
    /// The server does not stream lists: ask for whole ones.
    Whole,
    /// Credentials are refused, or the server's certificate is: read ours anew.
    Credentials,
}

impl Follower {
    /// Follows the objects until nobody listens any more.
    pub async fn run<K: Followed>(self, mut client: Client) {
        let (mut streaming, mut backoff) = (true, Backoff::default());
        while !self.events.is_closed() {
            match self.stream::<K>(client.clone(), streaming, &mut backoff).await {
                Remedy::Again => return,
                Remedy::Whole => {
                    info!(kind = %K::KIND, "the API server does not stream lists: asking for whole ones");
                    streaming = false;
                }
                Remedy::Credentials => match self.access.client(&self.status).await {
                    Ok(renewed) => client = renewed,
                    Err(error) => debug!(%error, "cannot read the credentials anew: keeping those at hand"),
                },
            }
        }
    }

    /// Follows one stream until it has to be made anew; [`Remedy::Again`] when nobody listens any more.
    async fn stream<K: Followed>(&self, client: Client, streaming: bool, backoff: &mut Backoff) -> Remedy {
        let mut stream = pin!(watcher(Api::<K>::all(client), config::<K>(&self.node, streaming)));
        let mut listed = Vec::new();
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let remedy = remedy(&error, streaming);
                    if remedy == Remedy::Whole {
                        return remedy;
                    }
                    self.fail(K::KIND, &error);
                    tokio::select! {
                        () = sleep(backoff.after(&error)) => {}
                        () = self.events.closed() => return Remedy::Again,
                    }
                    match remedy {
                        Remedy::Again => continue,
                        other => return other,
                    }
                }
            };
            if let Some(event) = self.translate::<K>(event, &mut listed) {
                self.status.event(&event);
                backoff.heard();
                if self.events.send(event).await.is_err() {
                    break;
                }
            }
        }
        Remedy::Again
    }

    /// A list changes nothing before its end: only then is known what is gone.
    fn translate<K: Followed>(&self, event: watcher::Event<K>, listed: &mut Vec<Object>) -> Option<Event> {
        match event {
            watcher::Event::Init => {
                listed.clear();
                None
            }
            watcher::Event::InitApply(object) => {
                object.look(&self.observer);
                listed.push(object.into());
                None
            }
            watcher::Event::InitDone => {
                info!(kind = %K::KIND, objects = listed.len(), "listed");
                Some(Event::Reset(K::KIND, std::mem::take(listed)))
            }
            watcher::Event::Apply(object) => {
                object.look(&self.observer);
                Some(Event::Apply(object.into()))
            }
            watcher::Event::Delete(object) => {
                let metadata = object.meta();
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (namespace, name) = (text(&metadata.namespace), text(&metadata.name));
                Some(Event::Delete(Key { kind: K::KIND, namespace, name }))
            }
        }
    }

    fn fail(&self, kind: Kind, error: &watcher::Error) {
        let text = explain(kind, error);
        if self.status.failed(kind, &text) {
            warn!(%kind, error = text, "cannot follow objects of the API server: the network stays as it is, trying again");
        }
    }
}

fn config<K: Followed>(node: &str, streaming: bool) -> watcher::Config {
    // Whatever the server has at hand will do: what changes later comes later.
    let mut config = watcher::Config::default().any_semantic();
    config.field_selector = K::selector(node);
    // A page would come from etcd instead of the server's cache.
    config.page_size = None;
    if streaming { config.streaming_lists() } else { config }
}

fn remedy(error: &watcher::Error, streaming: bool) -> Remedy {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error)) = error else {
        return Remedy::Again;
    };
    match error {
        // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        kube::Error::Api(status) if streaming && matches!(status.code, 400 | 422) => Remedy::Whole,
        kube::Error::Api(status) if status.code == 401 => Remedy::Credentials,
        kube::Error::Api(_) => Remedy::Again,
        _ if is_about_certificates(error) => Remedy::Credentials,
        _ => Remedy::Again,
    }
}

/// TLS errors arrive wrapped in errors of connections, without a type of their own.
fn is_about_certificates(error: &kube::Error) -> bool {
    let text = reason(error);
    ["certificate", "alert", "TLS"].iter().any(|word| text.contains(word))
}

/// What is wrong, and what to do about it where that is known.
fn explain(kind: Kind, error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => {
            answer(kind, status)
        }
        WatchError(status) => answer(kind, status),
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => reason(error),
        other @ watcher::Error::NoResourceVersion => reason(other),
    }
}

fn answer(kind: Kind, status: &kube::core::Status) -> String {
    let resource = format!("{}s", kind.name().to_lowercase());
    let advice = match status.code {
        401 => "; the credentials are not valid (any more)".to_owned(),
        403 => format!("; the agent's role needs the verbs list and watch on {resource}"),
        _ => String::new(),
    };
    format!("the server answers {} {}: {}{advice}", status.code, status.reason, status.message)
}

/// Whether the server has forgotten where a watch was, and wants it to begin with a list.
fn is_expired(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) => status.code == 410,
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// Waits that grow.
struct Backoff {
    waits: ExponentialBackoff,
    last: Option<Instant>,
    /// The server has asked for a list, and nothing was heard since.
    relisting: bool,
}

impl Default for Backoff {
    fn default() -> Self {
        let (least, most) = BACKOFF;
        let builder = ExponentialBuilder::new().with_min_delay(least).with_max_delay(most).with_factor(2.0);
        Self { waits: builder.with_jitter().without_max_times().build(), last: None, relisting: false }
    }
}

impl Backoff {
    /// How long to wait after an error. A server that asks for a list is back: that list must not wait as long as the
    /// server was waited for. If it asks again, lists do not help.
    fn after(&mut self, error: &watcher::Error) -> Duration {
        let first_request = is_expired(error) && !self.relisting;
        if first_request || self.last.is_some_and(|last| last.elapsed() > CALM) {
            *self = Self { relisting: first_request, ..Self::default() };
        }
        self.last = Some(Instant::now());
        self.waits.next().unwrap_or(BACKOFF.1)
    }

    /// Objects come.
    fn heard(&mut self) {
        self.relisting = false;
    }
}

#[cfg(test)]
mod tests;

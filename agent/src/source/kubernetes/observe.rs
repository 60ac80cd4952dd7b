//! What the API server is asked and answers, seen from within the client: counts for the metrics, and whether the server
//! is there. The watchers themselves do not tell when a watch was taken up again, nor of signs of life without events.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes};
use kube::client::Body as KubeBody;
use tower::{BoxError, Layer, Service};

use super::super::{Kind, Status};

/// Wraps the client's stack.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    status: Status,
}

/// Makes [`Observe`] of a stack.
#[derive(Clone, Debug)]
pub struct ObserveLayer(Status);

impl Observe<()> {
    /// Tells `status`.
    pub fn layer(status: &Status) -> ObserveLayer {
        ObserveLayer(status.clone())
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, status: self.0.clone() }
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    verb: &'static str,
    kind: Option<Kind>,
}

impl About {
    fn of<B>(request: &Request<B>) -> Self {
        let kind = request.uri().path().split('/').find_map(|part| match part {
            "nodes" => Some(Kind::Node),
            "pods" => Some(Kind::Pod),
            _ => None,
        });
        let query = request.uri().query().unwrap_or_default();
        let verb = match *request.method() {
            Method::GET if query.contains("sendInitialEvents=true") => "watchlist",
            Method::GET if query.contains("watch=true") => "watch",
            Method::GET if query.contains("limit=") || query.contains("resourceVersion=") => "list",
            Method::GET => "get",
            Method::PATCH => "patch",
            _ => "other",
        };
        Self { verb, kind }
    }
}

impl<S, B> Service<Request<KubeBody>> for Observe<S>
where
    S: Service<Request<KubeBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<UnsyncBoxBody<Bytes, B::Error>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<KubeBody>) -> Self::Future {
        let (about, status) = (About::of(&request), self.status.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into);
            let outcome = answer.as_ref().map(|answer| answer.status().as_u16().to_string());
            status.requested(about.verb, about.kind, outcome.unwrap_or_else(|_| "none".into()));
            let answer = answer?;
            if let Some(kind) = about.kind.filter(|_| answer.status().is_success()) {
                status.connected(kind);
            }
            Ok(answer.map(|body| listen(body, about.kind, status)))
        })
    }
}

/// Every piece of an answer is a sign of life.
fn listen<B>(body: B, kind: Option<Kind>, status: Status) -> UnsyncBoxBody<Bytes, B::Error>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let heard = move |frame| {
        if let Some(kind) = kind {
            status.heard(kind);
        }
        frame
    };
    body.map_frame(heard).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        for (method, uri, verb, kind) in [
            (
                "GET",
                "/api/v1/nodes?&watch=true&resourceVersion=0&sendInitialEvents=true",
                "watchlist",
                Some(Kind::Node),
            ),
            ("GET", "/api/v1/pods?&watch=true&resourceVersion=7", "watch", Some(Kind::Pod)),
            ("GET", "/api/v1/nodes?&limit=500&resourceVersion=0", "list", Some(Kind::Node)),
            ("GET", "/api/v1/nodes/a", "get", Some(Kind::Node)),
            ("PATCH", "/api/v1/nodes/a/status", "patch", Some(Kind::Node)),
            ("GET", "/version", "get", None),
        ] {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(About::of(&request), About { verb, kind }, "{method} {uri}");
        }
    }
}

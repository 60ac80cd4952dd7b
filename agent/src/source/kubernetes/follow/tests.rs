//! What errors are answered with, and what lists and changes become.

use kube::core::Status as Answer;
use serde_json::json;

use super::*;

fn refused(code: u16, reason: &str, message: &str) -> kube::Error {
    let answer = json!({"code": code, "reason": reason, "message": message, "status": "Failure"});
    kube::Error::Api(Box::new(serde_json::from_value::<Answer>(answer).unwrap()))
}

fn certificate() -> kube::Error {
    kube::Error::Service("invalid peer certificate: UnknownIssuer".into())
}

#[test]
fn every_error_has_its_remedy() {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchStartFailed};
    for (what, error, streaming, expected) in [
        ("no streaming", WatchStartFailed(refused(422, "Invalid", "")), true, Remedy::Whole),
        ("an older way to say so", WatchStartFailed(refused(400, "BadRequest", "")), true, Remedy::Whole),
        ("a bad request otherwise", InitialListFailed(refused(400, "BadRequest", "")), false, Remedy::Again),
        ("too many requests", WatchStartFailed(refused(429, "TooManyRequests", "")), true, Remedy::Again),
        ("credentials", WatchStartFailed(refused(401, "Unauthorized", "")), true, Remedy::Credentials),
        ("rights", WatchStartFailed(refused(403, "Forbidden", "")), true, Remedy::Again),
        ("certificates", WatchStartFailed(certificate()), true, Remedy::Credentials),
        ("a strange server", NoResourceVersion, true, Remedy::Again),
    ] {
        assert_eq!(remedy(&error, streaming), expected, "{what}");
    }
}

#[test]
fn missing_rights_are_named() {
    let error = watcher::Error::WatchStartFailed(refused(403, "Forbidden", "pods is forbidden"));
    let text = explain(Kind::Pod, &error);
    assert!(text.contains("needs the verbs list and watch on pods"), "{text}");
}

fn follower() -> (Follower, mpsc::Receiver<Event>) {
    let (events, receiver) = mpsc::channel(8);
    let follower = Follower {
        access: Access::InCluster { api: None },
        node: "a".into(),
        events,
        status: Status::new("kubernetes", "https://api".into()),
        observer: Box::new(|_| {}),
    };
    (follower, receiver)
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {
        "namespace": "shop", "name": name, "labels": {"app": "x"}, "managedFields": [{"manager": "kubelet"}],
    }}))
    .unwrap()
}

#[tokio::test]
async fn a_list_that_has_not_ended_changes_nothing() {
    let (follower, _events) = follower();
    let mut listed = Vec::new();
    let mut say = |event| follower.translate::<Pod>(event, &mut listed);
    assert_eq!(say(watcher::Event::Init), None);
    assert_eq!(say(watcher::Event::InitApply(pod("a"))), None);
    // The connection broke, and the list began anew.
    assert_eq!(say(watcher::Event::Init), None);
    assert_eq!(say(watcher::Event::InitApply(pod("b"))), None);
    let Some(Event::Reset(Kind::Pod, objects)) = say(watcher::Event::InitDone) else { panic!("no list") };
    assert_eq!(objects.iter().map(|it| it.key().to_string()).collect::<Vec<_>>(), ["Pod shop/b"]);
    let metadata = &objects[0].as_pod().unwrap().metadata;
    assert_eq!((&metadata.labels, &metadata.managed_fields), (&None, &None), "stripped");
    let Some(Event::Delete(key)) = say(watcher::Event::Delete(pod("b"))) else { panic!("no deletion") };
    assert_eq!(key.to_string(), "Pod shop/b");
}

#[test]
fn waits_grow_up_to_a_limit() {
    let mut backoff = Backoff::default();
    let waits: Vec<Duration> = (0..12).map(|_| backoff.after(&watcher::Error::NoResourceVersion)).collect();
    assert!(waits[0] >= BACKOFF.0 && waits[0] <= BACKOFF.0 * 2, "{waits:?}");
    assert!(waits[11] >= BACKOFF.1 && waits[11] <= BACKOFF.1 * 2, "{waits:?}");
}

#[test]
fn a_server_that_is_back_and_asks_for_a_list_gets_it_soon() {
    let away = watcher::Error::NoResourceVersion;
    let expired =
        watcher::Error::WatchStartFailed(refused(410, "Expired", "too old resource version: 1 (2)"));
    let mut backoff = Backoff::default();
    for _ in 0..8 {
        backoff.after(&away);
    }
    let soon = backoff.after(&expired);
    assert!(soon <= BACKOFF.0 * 2, "{soon:?}");
    let waits: Vec<Duration> = (0..8).map(|_| backoff.after(&expired)).collect();
    assert!(waits[7] >= BACKOFF.1, "a server that says nothing else is not asked ever more often: {waits:?}");
    backoff.heard();
    let soon = backoff.after(&expired);
    assert!(soon <= BACKOFF.0 * 2, "{soon:?}");
}

//! Against a server of a few lines that answers what the test tells it to, and over real sockets: what servers do to
//! watches, in the order in which they do it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    super::{Event, Kind},
    *,
};

/// One answer: the HTTP status, what the body has, and whether the connection then stays open.
struct Answer(u16, String, bool);

/// What was asked, and what is still to be answered.
#[derive(Default)]
struct Script {
    asked: Vec<String>,
    nodes: VecDeque<Answer>,
}

struct Server {
    script: Arc<Mutex<Script>>,
    access: Access,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Answers requests for nodes in this order, then holds them; there are no pods.
    async fn start(nodes: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { nodes: nodes.into(), ..Script::default() }));
        let shared = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        Self { script, access: Access::Kubeconfig(path), _folder: folder }
    }

    fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }
}

async fn answer(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        request.push(byte);
    }
    let request = String::from_utf8(request).unwrap();
    let line = request.lines().next().unwrap_or_default().to_owned();
    let is_pods = line.contains("/pods");
    let next = {
        let mut script = script.lock().unwrap();
        if is_pods {
            Some(Answer(200, bookmark("1", true), true))
        } else {
            script.asked.push(line);
            script.nodes.pop_front()
        }
    };
    let Answer(status, body, stays) = next.unwrap_or(Answer(200, String::new(), true));
    // Without a length the body ends with the connection.
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
    let _gone = stream.write_all((head + &body).as_bytes()).await;
    if stays {
        std::future::pending::<()>().await;
    }
}

fn node(name: &str, version: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "resourceVersion": version } })
}

fn event(kind: &str, object: &Value) -> String {
    json!({ "type": kind, "object": object }).to_string() + "\n"
}

fn bookmark(version: &str, ends_list: bool) -> String {
    let ends = if ends_list { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    let metadata = json!({ "resourceVersion": version, "annotations": ends });
    event("BOOKMARK", &json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata }))
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason })
}

/// The next so many events about nodes, in words.
async fn words(followed: &mut Followed, count: usize) -> Vec<String> {
    let mut words = Vec::new();
    while words.len() < count {
        let next = timeout(Duration::from_secs(60), followed.events.recv()).await;
        words.extend(match next.expect("no event in a minute").expect("the channel ended") {
            Event::Reset(Kind::Node, objects) => {
                let names: Vec<_> = objects.iter().map(|object| object.key().name).collect();
                Some(format!("={}", names.join(",")))
            }
            Event::Apply(object) => Some(format!("+{}", object.key().name)),
            Event::Delete(key) => Some(format!("-{}", key.name)),
            Event::Reset(..) => None,
        });
    }
    words
}

#[tokio::test]
async fn a_list_comes_as_a_stream_and_changes_follow_on_it() {
    let changes = [
        event("ADDED", &node("a", "3")),
        event("ADDED", &node("b", "4")),
        bookmark("5", true),
        event("ADDED", &node("c", "6")),
        event("MODIFIED", &node("a", "7")),
        event("DELETED", &node("b", "8")),
    ];
    let server = Server::start(vec![Answer(200, changes.concat(), true)]).await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    assert_eq!(words(&mut followed, 4).await, ["=a,b", "+c", "+a", "-b"]);
    assert_eq!(server.asked().len(), 1, "{:?}", server.asked());
    let watch = &followed.status.snapshot().watches[&Kind::Node];
    assert_eq!((watch.listed, watch.applied, watch.deleted, watch.errors), (true, 2, 1, 0));
    assert!(watch.connected.is_some() && watch.heard.is_some());
}

#[tokio::test]
async fn a_watch_that_ends_is_taken_up_where_it_was() {
    let first = [event("ADDED", &node("a", "3")), bookmark("5", true), bookmark("9", false)];
    let server = Server::start(vec![
        Answer(200, first.concat(), false),
        Answer(200, event("ADDED", &node("b", "10")), true),
    ])
    .await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    assert_eq!(words(&mut followed, 2).await, ["=a", "+b"]);
    let asked = server.asked();
    assert!(asked[1].contains("resourceVersion=9") && !asked[1].contains("sendInitialEvents"), "{asked:?}");
}

#[tokio::test]
async fn a_server_that_does_not_stream_lists_is_asked_for_whole_ones() {
    let items: Vec<_> = ["a", "b"].iter().map(|name| node(name, "3")).collect();
    let list = json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": { "resourceVersion": "5" }, "items": items });
    let server = Server::start(vec![
        Answer(422, failure(422, "Invalid").to_string(), false),
        Answer(200, list.to_string(), false),
        Answer(200, event("DELETED", &node("b", "6")), true),
    ])
    .await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    assert_eq!(words(&mut followed, 2).await, ["=a,b", "-b"]);
    let asked = server.asked();
    assert!(asked[0].contains("sendInitialEvents=true"), "{asked:?}");
    assert!(
        asked[1].contains("resourceVersion=0") && !asked[1].contains("limit"),
        "from its cache: {asked:?}"
    );
    assert!(asked[2].contains("watch=true") && asked[2].contains("resourceVersion=5"), "{asked:?}");
    assert_eq!(followed.status.snapshot().watches[&Kind::Node].errors, 0, "no trouble of anybody's");
}

#[tokio::test]
async fn a_list_that_breaks_off_changes_nothing() {
    let server = Server::start(vec![
        Answer(200, event("ADDED", &node("half", "3")), false),
        Answer(200, [event("ADDED", &node("whole", "4")), bookmark("5", true)].concat(), true),
    ])
    .await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    assert_eq!(words(&mut followed, 1).await, ["=whole"]);
}

#[tokio::test]
async fn a_version_that_the_server_has_forgotten_leads_to_a_new_list() {
    let gone = event("ERROR", &failure(410, "Expired"));
    let server = Server::start(vec![
        Answer(200, [event("ADDED", &node("a", "3")), bookmark("5", true), gone].concat(), true),
        Answer(200, [event("ADDED", &node("b", "8")), bookmark("9", true)].concat(), true),
    ])
    .await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    assert_eq!(words(&mut followed, 2).await, ["=a", "=b"], "what went unseen is found by the list");
    assert_eq!(followed.status.snapshot().watches[&Kind::Node].errors, 1);
}

#[tokio::test]
async fn errors_are_told_until_the_server_answers() {
    let server = Server::start(vec![
        Answer(403, failure(403, "Forbidden").to_string(), false),
        Answer(200, [event("ADDED", &node("a", "3")), bookmark("5", true)].concat(), true),
    ])
    .await;
    let mut followed = follow(&server.access, "a").await.unwrap();
    let status = followed.status.clone();
    let trouble = async {
        loop {
            if let Some(trouble) = status.snapshot().trouble() {
                break trouble;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let trouble = timeout(Duration::from_secs(60), trouble).await.unwrap();
    assert!(trouble.contains("needs the verbs list and watch on nodes"), "{trouble}");
    assert_eq!(words(&mut followed, 1).await, ["=a"]);
    assert_eq!(status.snapshot().trouble(), None);
}

//! An agent that is down, slow, killed in the middle of a call, or no agent at all.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use hypha_cni::protocol::{Call, Response, code};
use libtest_mimic::Trial;
use serde_json::json;

use crate::agent::{FakeAgent, Reply, obey};
use crate::case;
use crate::harness::{Outcome, Place, Plugin};

/// For cases in which the agent does not answer: the shim gives up after this many seconds.
const TIMEOUT: f64 = 0.3;

/// Far more than `TIMEOUT` and the undoing together, far less than the default.
const BOUND: Duration = Duration::from_secs(15);

pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for verb in ["ADD", "CHECK", "GC"] {
        cases.push(case(format!("{verb}: no agent is error 11, and nothing is left behind"), move || {
            let place = Place::new();
            complete(&place, verb).run().error(11, &["not running", "hypha.sock"]);
            assert!(!place.socket().parent().unwrap().exists());
        }));
        cases.push(case(format!("{verb}: a dead agent's socket is error 11"), move || {
            let place = Place::new();
            std::fs::create_dir(place.socket().parent().unwrap()).unwrap();
            drop(UnixListener::bind(place.socket()).unwrap());
            complete(&place, verb).run().error(11, &["not running", "refused"]);
        }));
    }
    for verb in ["ADD", "DEL", "CHECK", "GC"] {
        cases.push(case(format!("{verb}: an agent that does not answer is error 11, in time"), move || {
            let place = Place::new();
            let _agent = FakeAgent::start(&place.socket(), |_| Reply::Silence);
            in_time(&complete(&place, verb).with("timeout", TIMEOUT).run())
                .error(11, &["does not answer", "0.3 s"]);
        }));
        cases.push(case(
            format!("{verb}: an agent that takes no connection is error 11, in time"),
            move || {
                let place = Place::new();
                let _full = full_backlog(&place);
                in_time(&complete(&place, verb).with("timeout", TIMEOUT).run())
                    .error(11, &["does not answer"]);
            },
        ));
        cases.push(case(format!("{verb}: an answer that is no message is an error"), move || {
            let place = Place::new();
            let _agent = FakeAgent::start(&place.socket(), |_| Reply::Raw(b"HTTP/1.1 400 Bad Request\n"));
            complete(&place, verb).run().error(999, &["not understood"]);
        }));
        cases.push(case(format!("{verb}: the answer to another question is an error"), move || {
            let place = Place::new();
            let _agent = FakeAgent::start(&place.socket(), |_| Reply::Say(Response::Ready));
            complete(&place, verb).run().error(999, &["another question", "Ready"]);
        }));
        cases.push(case(format!("{verb}: the agent's own error reaches the runtime unchanged"), move || {
            let place = Place::new();
            let answer =
                |_: &Call| Reply::Say(Response::error(code::TRY_AGAIN_LATER, "still starting", "3 of 5"));
            let _agent = FakeAgent::start(&place.socket(), answer);
            let error = complete(&place, verb).run().error(11, &[]);
            assert_eq!((&error["msg"], &error["details"]), (&json!("still starting"), &json!("3 of 5")));
        }));
    }
    cases.push(case("STATUS: an agent that does not answer is error 50, in time", || {
        let place = Place::new();
        let _agent = FakeAgent::start(&place.socket(), |_| Reply::Silence);
        in_time(&place.plugin("STATUS").with("timeout", TIMEOUT).run()).error(50, &["does not answer"]);
    }));
    for (name, reply) in [("times out", Fate::Silence), ("breaks off", Fate::HangUp)] {
        cases.push(case(format!("ADD that {name} is undone by a DEL of the same attachment"), move || {
            let place = Place::new();
            let agent = FakeAgent::start(&place.socket(), move |call| match call {
                Call::Add(_) => reply.reply(),
                other => Reply::Say(obey(other)),
            });
            place.plugin("ADD").with("timeout", TIMEOUT).run().error(11, &[]);
            let [Call::Add(add), Call::Del(del)] = &agent.calls()[..] else { panic!("{:?}", agent.calls()) };
            assert_eq!(add.attachment, del.attachment);
        }));
    }
    cases
}

#[derive(Clone, Copy)]
enum Fate {
    Silence,
    HangUp,
}

impl Fate {
    fn reply(self) -> Reply {
        match self {
            Self::Silence => Reply::Silence,
            Self::HangUp => Reply::HangUp,
        }
    }
}

/// The plugin with all that `verb` needs in its configuration.
fn complete(place: &Place, verb: &str) -> Plugin {
    let previous = json!({
        "interfaces": [{"name": "eth0", "sandbox": place.netns()}],
        "ips": [{"address": "10.1.0.5/32", "interface": 0}],
    });
    match verb {
        "CHECK" => place.plugin(verb).with("prevResult", previous),
        "GC" => place.plugin(verb).with("cni.dev/valid-attachments", json!([])),
        _ => place.plugin(verb),
    }
}

#[track_caller]
fn in_time(outcome: &Outcome) -> &Outcome {
    assert!(outcome.took < BOUND, "took {:?}", outcome.took);
    outcome
}

/// A socket whose queue of connections is full: another `connect` blocks.
fn full_backlog(place: &Place) -> Vec<std::os::fd::OwnedFd> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
    };
    use std::os::fd::AsRawFd;
    std::fs::create_dir(place.socket().parent().unwrap()).unwrap();
    let address = UnixAddr::new(&place.socket()).unwrap();
    let open =
        |flags| socket(AddressFamily::Unix, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).unwrap();
    let listener = open(SockFlag::empty());
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut held = vec![listener];
    loop {
        let client = open(SockFlag::SOCK_NONBLOCK);
        if connect(client.as_raw_fd(), &address).is_err() {
            return held;
        }
        held.push(client);
    }
}

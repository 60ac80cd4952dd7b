//! DEL succeeds whatever is gone, and is queued while no agent runs.

use std::fs;

use hypha_cni::protocol::{Attachment, Call};
use hypha_cni::queue::{MAX_QUEUED, Queue};
use libtest_mimic::Trial;

use crate::agent::{FakeAgent, Reply, obey};
use crate::case;
use crate::harness::{CONTAINER, Place};

pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        cases.push(case(format!("DEL {version}: twice, with the namespace gone"), move || {
            let place = Place::new();
            let agent = FakeAgent::obedient(&place.socket());
            fs::remove_file(place.netns()).unwrap();
            for _ in 0..2 {
                place.plugin("DEL").with("cniVersion", version).run().silent_success();
            }
            assert_eq!(agent.calls().len(), 2);
            assert!(agent.asked().iter().all(|asked| asked.inode.is_none()));
            assert!(place.queued().is_empty());
        }));
    }
    cases.push(case("DEL without an agent is queued, once however often it comes", || {
        let place = Place::new();
        for _ in 0..3 {
            place.plugin("DEL").run().silent_success();
        }
        place.plugin("DEL").env("CNI_IFNAME", "net1").run().silent_success();
        assert_eq!(place.queued().len(), 2, "{:?}", place.queued());
        let mut ifnames: Vec<String> = queued(&place).into_iter().map(|queued| queued.ifname).collect();
        ifnames.sort();
        assert_eq!(ifnames, ["eth0", "net1"]);
    }));
    cases.push(case("DEL is queued when the agent dies in the middle of it", || {
        let place = Place::new();
        let socket = place.socket();
        let agent = FakeAgent::start(&place.socket(), move |_| {
            fs::remove_file(&socket).unwrap();
            Reply::HangUp
        });
        place.plugin("DEL").run().silent_success();
        assert_eq!(agent.calls().len(), 1);
        assert_eq!(queued(&place)[0].container_id, CONTAINER);
    }));
    cases.push(case("DEL that finds the agent back after queueing is carried out at once", || {
        let place = Place::new();
        let mut calls = 0;
        let agent = FakeAgent::start(&place.socket(), move |call| {
            calls += 1;
            if calls == 1 { Reply::HangUp } else { Reply::Say(obey(call)) }
        });
        place.plugin("DEL").run().silent_success();
        assert_eq!(agent.calls().len(), 2);
        assert!(place.queued().is_empty());
    }));
    cases.push(case("DEL that an agent does not answer fails, for the runtime to repeat it", || {
        let place = Place::new();
        let _agent = FakeAgent::start(&place.socket(), |_| Reply::Silence);
        place.plugin("DEL").with("timeout", 0.2).run().error(11, &[]);
        assert!(place.queued().is_empty());
    }));
    cases.push(case(
        "DEL fails when the queue is full, and succeeds again for one that is queued already",
        || {
            let place = Place::new();
            place.plugin("DEL").run().silent_success();
            for n in 1..MAX_QUEUED {
                fs::write(place.queue().join(format!("{n}.json")), "{}").unwrap();
            }
            place.plugin("DEL").env("CNI_CONTAINERID", "other").run().error(5, &["4096", "start the agent"]);
            place.plugin("DEL").run().silent_success();
        },
    ));
    cases.push(case("DEL fails when nothing can be queued", || {
        let place = Place::new();
        fs::write(place.socket().parent().unwrap(), "a file where the run directory should be").unwrap();
        place.plugin("DEL").run().error(5, &["queue", "Not a directory"]);
        fs::remove_file(place.socket().parent().unwrap()).unwrap();
        fs::create_dir(place.socket().parent().unwrap()).unwrap();
        fs::write(place.queue(), "a file where the queue should be").unwrap();
        place.plugin("DEL").run().error(5, &["queue"]);
    }));
    cases.push(case("ADD forgets a delete that is still queued for the same attachment", || {
        let place = Place::new();
        place.plugin("DEL").run().silent_success();
        place.plugin("DEL").env("CNI_CONTAINERID", "other").run().silent_success();
        let agent = FakeAgent::obedient(&place.socket());
        place.plugin("ADD").run().result();
        assert_eq!(queued(&place)[0].container_id, "other");
        assert_eq!(place.queued().len(), 1);
        assert!(matches!(agent.calls()[..], [Call::Add(_)]));
    }));
    cases.push(case("the queue tells which of its files is not a delete", || {
        let place = Place::new();
        place.plugin("DEL").run().silent_success();
        fs::write(place.queue().join("0.json"), "{\"attach").unwrap();
        fs::write(place.queue().join("1.json.77.tmp"), "left over by a killed shim").unwrap();
        let list = Queue::new(place.socket().parent().unwrap()).list().unwrap();
        assert_eq!(list.len(), 2);
        assert!(list[0].as_ref().unwrap_err().to_string().contains("0.json"));
        assert_eq!(list[1].as_ref().unwrap().attachment.container_id, CONTAINER);
    }));
    cases
}

fn queued(place: &Place) -> Vec<Attachment> {
    let list = Queue::new(place.socket().parent().unwrap()).list().unwrap();
    list.into_iter().map(|del| del.unwrap().attachment).collect()
}

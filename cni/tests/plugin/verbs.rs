//! CHECK, GC, STATUS and VERSION.

use std::{thread, time::Duration};

use hypha_cni::protocol::{Call, Kept, Response, code};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::agent::{FakeAgent, Reply};
use crate::case;
use crate::harness::Place;

pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        cases.push(case(
            format!("CHECK {version}: prints nothing, and asks for the pod's own addresses"),
            move || {
                let place = Place::new();
                let agent = FakeAgent::obedient(&place.socket());
                let run = place
                    .plugin("CHECK")
                    .with("cniVersion", version)
                    .with("prevResult", previous(&place))
                    .run();
                run.silent_success();
                let Call::Check(check) = &agent.calls()[0] else { panic!("{:?}", agent.calls()) };
                let expected = ["10.1.0.5/32", "fd00:1::5/128"].map(|address| address.parse().unwrap());
                assert_eq!(check.addresses, expected);
                assert_eq!(agent.asked()[0].inode, Some(place.netns_inode()));
            },
        ));
    }
    for (verb, version) in
        [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("GC", "0.4.0"), ("STATUS", "1.0.0"), ("STATUS", "0.3.1")]
    {
        cases.push(case(format!("{verb} {version}: that version has no such verb"), move || {
            let place = Place::new();
            let error = place.plugin(verb).with("cniVersion", version).run().error(1, &[verb, version]);
            assert_eq!(error["cniVersion"], version);
        }));
    }
    cases.push(case("CHECK: what the agent found wrong is told", || {
        let place = Place::new();
        let found =
            |_: &Call| Reply::Say(Response::error(code::CHECK_FAILED, "eth0 differs", "no default route"));
        let _agent = FakeAgent::start(&place.socket(), found);
        let run = place.plugin("CHECK").with("prevResult", previous(&place)).run();
        run.error(100, &["eth0 differs", "no default route"]);
    }));
    for (name, result) in [
        ("is missing", Value::Null),
        ("has no interface of the container", json!({"interfaces": [{"name": "eth0"}]})),
        ("is nonsense", json!({"interfaces": 7})),
    ] {
        cases.push(case(format!("CHECK: prevResult {name}"), move || {
            let place = Place::new();
            let _agent = FakeAgent::obedient(&place.socket());
            place.plugin("CHECK").with("prevResult", result).run().error(7, &["prevResult"]);
        }));
    }
    cases.push(case("GC 1.1.0: the agent gets the attachments that stay", || {
        let place = Place::new();
        let agent = FakeAgent::obedient(&place.socket());
        let valid = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]);
        without_container(&place, "GC").with("cni.dev/valid-attachments", valid).run().silent_success();
        let Call::Gc(gc) = &agent.calls()[0] else { panic!("{:?}", agent.calls()) };
        assert_eq!(gc.network, "pods");
        let kept = [("a", "eth0"), ("b", "net1")];
        assert_eq!(gc.keep, kept.map(|(id, ifname)| Kept { container_id: id.into(), ifname: ifname.into() }));
    }));
    cases.push(case("GC 1.1.0: ten thousand attachments fit through", || {
        let place = Place::new();
        let agent = FakeAgent::obedient(&place.socket());
        let one = |n| json!({"containerID": format!("{n:064}"), "ifname": "eth0"});
        let valid: Vec<Value> = (0..10_000).map(one).collect();
        without_container(&place, "GC").with("cni.dev/valid-attachments", valid).run().silent_success();
        let Call::Gc(gc) = &agent.calls()[0] else { panic!("not a GC") };
        assert_eq!(gc.keep.len(), 10_000);
    }));
    cases.push(case("GC 1.1.0: without a list of attachments nothing is removed", || {
        let place = Place::new();
        let agent = FakeAgent::obedient(&place.socket());
        without_container(&place, "GC").run().error(7, &["cni.dev/valid-attachments"]);
        assert!(agent.calls().is_empty());
    }));
    cases.push(case("STATUS 1.1.0: a ready agent is a silent success", || {
        let place = Place::new();
        let _agent = FakeAgent::obedient(&place.socket());
        without_container(&place, "STATUS").run().silent_success();
    }));
    for (said, told) in [(50, 50), (51, 51), (999, 50)] {
        cases.push(case(
            format!("STATUS 1.1.0: an agent's error {said} is {told} to the runtime"),
            move || {
                let place = Place::new();
                let answer =
                    move |_: &Call| Reply::Say(Response::error(said, "no addresses are left", "10.1.0.0/24"));
                let _agent = FakeAgent::start(&place.socket(), answer);
                without_container(&place, "STATUS")
                    .run()
                    .error(told, &["no addresses are left", "10.1.0.0/24"]);
            },
        ));
    }
    cases.push(case("STATUS 1.1.0: no agent is error 50", || {
        let place = Place::new();
        let status = without_container(&place, "STATUS").with("timeout", json!(0.3));
        status.run().error(50, &["not running", "hypha.sock"]);
    }));
    cases.push(case("STATUS 1.1.0: an agent that is being replaced is waited for", || {
        let place = Place::new();
        let socket = place.socket();
        let replaced = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            let mut asked = 0;
            FakeAgent::start(&socket, move |_: &Call| {
                asked += 1;
                match asked {
                    1 => Reply::HangUp,
                    2 => Reply::Say(Response::error(code::TRY_AGAIN_LATER, "still starting", "3 of 5")),
                    _ => Reply::Say(Response::Ready),
                }
            })
        });
        without_container(&place, "STATUS").run().silent_success();
        assert_eq!(replaced.join().unwrap().calls().len(), 3);
    }));
    for (name, stdin, version) in [
        ("1.0.0", r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        ("a version of the future", r#"{"cniVersion":"9.0.0"}"#, "9.0.0"),
        ("no input", "", "1.1.0"),
    ] {
        cases.push(case(format!("VERSION asked with {name}"), move || {
            let place = Place::new();
            let supported = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
            let result =
                without_container(&place, "VERSION").env_remove("CNI_PATH").stdin(stdin).run().result();
            assert_eq!(result, json!({"cniVersion": version, "supportedVersions": supported}));
        }));
    }
    cases
}

/// GC, STATUS and VERSION get no variables of a container.
fn without_container(place: &Place, verb: &str) -> crate::harness::Plugin {
    let plugin = place.plugin(verb);
    plugin.env_remove("CNI_CONTAINERID").env_remove("CNI_NETNS").env_remove("CNI_IFNAME")
}

/// A result of ADD in which a chained plugin added an interface and an address that are none of the pod's own.
fn previous(place: &Place) -> Value {
    json!({
        "interfaces": [
            {"name": "eth0"},
            {"name": "eth0", "sandbox": place.netns()},
            {"name": "tun0", "sandbox": place.netns()},
        ],
        "ips": [
            {"version": "4", "address": "10.1.0.5/32", "interface": 1},
            {"version": "6", "address": "fd00:1::5/128", "interface": 1},
            {"version": "4", "address": "192.0.2.1/24", "interface": 2},
            {"version": "4", "address": "192.0.2.2/24"},
        ],
    })
}

//! Wrong input: every kind has its error code and a text that names what is wrong; the agent hears nothing of it.

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::agent::FakeAgent;
use crate::case;
use crate::harness::{Outcome, Place, Plugin};

pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for (name, bytes) in MALFORMED {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            cases.push(refused(
                format!("{verb}: standard input is {name}"),
                verb,
                |p| p.stdin(*bytes),
                6,
                &[],
            ));
        }
    }
    cases.push(refused("VERSION: standard input is cut off", "VERSION", |p| p.stdin("{"), 6, &[]));
    for version in ["0.1.0", "0.2.0", "1.2.0", "2.0.0", "", "one"] {
        let name = format!("ADD: cniVersion {version:?} is not supported");
        let prepare = move |p: Plugin| p.with("cniVersion", version);
        cases.push(refused(name, "ADD", prepare, 1, &["cniVersion", "0.3.1, 0.4.0, 1.0.0, 1.1.0"]));
    }
    cases.push(refused("ADD: cniVersion is missing", "ADD", |p| p.without("cniVersion"), 1, &["0.1.0"]));
    for (key, value) in wrong_values() {
        let name = format!("ADD: {key} is {value}");
        cases.push(refused(name, "ADD", move |p| p.with(key, value), 7, &[key]));
    }
    cases.push(refused("ADD: name is missing", "ADD", |p| p.without("name"), 7, &["name"]));
    for (key, value) in [
        ("mac", json!("0a:00:00:00:00:09")),
        ("ips", json!(["10.0.0.1/24"])),
        ("bandwidth", json!({"ingressRate": 1})),
    ] {
        let name = format!("ADD: runtimeConfig asks for {key}, which we do not do");
        let words = [key, Box::leak(value.to_string().into_boxed_str())];
        let prepare = move |p: Plugin| p.with("runtimeConfig", json!({ key: value }));
        cases.push(refused(name, "ADD", prepare, 2, &words));
    }
    cases.extend(environment());
    cases.push(case("ADD: several missing variables are named at once", || {
        let place = Place::new();
        let plugin = place
            .plugin("ADD")
            .env_remove("CNI_CONTAINERID")
            .env_remove("CNI_NETNS")
            .env_remove("CNI_IFNAME");
        plugin.run().error(4, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]);
    }));
    cases.push(case("DEL: what only ADD needs is not looked at", || {
        let place = Place::new();
        let _agent = FakeAgent::obedient(&place.socket());
        let plugin = place
            .plugin("DEL")
            .with("prevResult", 7)
            .with("mtu", 576)
            .with("dns", 7)
            .with("timeout", 0)
            .with("runtimeConfig", json!({"mac": "x"}));
        plugin
            .env("CNI_ARGS", "nonsense")
            .env_remove("CNI_NETNS")
            .env_remove("CNI_PATH")
            .run()
            .silent_success();
    }));
    cases
}

const MALFORMED: &[(&str, &[u8])] = &[
    ("empty", b""),
    ("cut off", b"{\"cniVersion\": \"1.1.0\", "),
    ("an array", b"[]"),
    ("null", b"null"),
    ("a number", b"7"),
    ("not UTF-8", b"{\"name\": \"\xff\xfe\"}"),
    ("two objects", b"{}{}"),
    ("very deep", &[b'['; 20_000]),
];

fn wrong_values() -> Vec<(&'static str, Value)> {
    vec![
        ("name", json!("")),
        ("name", json!("../etc")),
        ("name", json!(7)),
        ("mtu", json!("1500")),
        ("mtu", json!(-1)),
        ("mtu", json!(576)),
        ("mtu", json!(70000)),
        ("socket", json!(7)),
        ("socket", json!("hypha.sock")),
        ("ipam", json!("host-local")),
        ("ipam", json!(["host-local"])),
        ("ipam", json!({"type": "../../bin/sh"})),
        ("dns", json!([])),
        ("prevResult", json!("ok")),
        ("prevResult", json!({"ips": {}})),
        ("timeout", json!(0)),
        ("timeout", json!("soon")),
        ("runtimeConfig", json!(true)),
    ]
}

fn environment() -> Vec<Trial> {
    let set = |name: &'static str, value: &'static str| move |p: Plugin| p.env(name, value);
    let unset = |name: &'static str| move |p: Plugin| p.env_remove(name);
    vec![
        refused("CNI_COMMAND is missing", "ADD", unset("CNI_COMMAND"), 4, &["CNI_COMMAND"]),
        refused("CNI_COMMAND is unknown", "UPDATE", |p| p, 4, &["CNI_COMMAND", "UPDATE"]),
        refused("ADD: CNI_CONTAINERID is missing", "ADD", unset("CNI_CONTAINERID"), 4, &["CNI_CONTAINERID"]),
        refused("DEL: CNI_CONTAINERID is missing", "DEL", unset("CNI_CONTAINERID"), 4, &["CNI_CONTAINERID"]),
        refused("DEL: CNI_IFNAME is missing", "DEL", unset("CNI_IFNAME"), 4, &["CNI_IFNAME"]),
        refused("CHECK: CNI_NETNS is missing", "CHECK", unset("CNI_NETNS"), 4, &["CNI_NETNS"]),
        refused("ADD: CNI_NETNS is empty", "ADD", set("CNI_NETNS", ""), 4, &["CNI_NETNS"]),
        refused(
            "ADD: CNI_NETNS does not exist",
            "ADD",
            set("CNI_NETNS", "/nowhere"),
            4,
            &["CNI_NETNS", "/nowhere"],
        ),
        refused(
            "ADD: CNI_NETNS is the node's own",
            "ADD",
            set("CNI_NETNS", "/proc/self/ns/net"),
            4,
            &["CNI_NETNS"],
        ),
        refused(
            "ADD: CNI_CONTAINERID has a slash",
            "ADD",
            set("CNI_CONTAINERID", "a/b"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "ADD: CNI_CONTAINERID starts with a dot",
            "ADD",
            set("CNI_CONTAINERID", ".a"),
            4,
            &["CNI_CONTAINERID"],
        ),
        refused(
            "ADD: CNI_IFNAME is too long",
            "ADD",
            set("CNI_IFNAME", "sixteen-bytes-ab"),
            4,
            &["CNI_IFNAME"],
        ),
        refused("ADD: CNI_IFNAME has a slash", "ADD", set("CNI_IFNAME", "a/b"), 4, &["CNI_IFNAME"]),
        refused("ADD: CNI_IFNAME is ..", "ADD", set("CNI_IFNAME", ".."), 4, &["CNI_IFNAME"]),
        refused(
            "ADD: CNI_ARGS is no list of pairs",
            "ADD",
            set("CNI_ARGS", "A=1;B"),
            4,
            &["CNI_ARGS", "\"B\""],
        ),
        refused("ADD: CNI_ARGS has an unknown key", "ADD", set("CNI_ARGS", "MAC=x"), 4, &["CNI_ARGS", "MAC"]),
    ]
}

/// A case in which the plugin fails with `code` and the agent is not called.
fn refused(
    name: impl Into<String>,
    verb: &'static str,
    prepare: impl FnOnce(Plugin) -> Plugin + Send + 'static,
    code: u32,
    words: &[&'static str],
) -> Trial {
    let words = words.to_vec();
    case(name, move || {
        let place = Place::new();
        let agent = FakeAgent::obedient(&place.socket());
        let outcome: Outcome = prepare(place.plugin(verb)).run();
        outcome.error(code, &words);
        assert!(agent.calls().is_empty(), "{:?}", agent.calls());
        assert!(place.queued().is_empty());
    })
}

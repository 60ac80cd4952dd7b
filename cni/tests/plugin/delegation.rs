//! IPAM plugins: fake ones that write down how they were run, and the reference ones.

use std::fs;
use std::path::Path;

use hypha_cni::protocol::{Call, Response, code};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::agent::{FakeAgent, Reply, obey};
use crate::case;
use crate::harness::{CONTAINER, Place, Plugin};

/// Where Debian's containernetworking-plugins puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

const RESULT: &str = r#"{"ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}, {"address": "fd09::7/64"}],
    "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.9.0.1"]}}"#;

pub fn cases() -> Vec<Trial> {
    let mut cases = vec![
        case("ADD: the IPAM plugin gets our variables and input, the agent its addresses", add),
        case("DEL: the wiring goes before the addresses are released", || {
            let place = with_ipam(RESULT, 0);
            let _agent = noting(&place, |call| Reply::Say(obey(call)));
            delegating(&place, "DEL").run().silent_success();
            assert_eq!(notes(&place), ["agent del", "ipam DEL"]);
        }),
        case("DEL without an agent is queued, and the addresses are released", || {
            let place = with_ipam(RESULT, 0);
            delegating(&place, "DEL").run().silent_success();
            assert_eq!(notes(&place), ["ipam DEL"]);
            assert_eq!(place.queued().len(), 1);
        }),
        case("CHECK, GC and STATUS reach the IPAM plugin", || {
            let place = with_ipam("", 0);
            let _agent = noting(&place, |call| Reply::Say(obey(call)));
            let interface = json!({"name": "eth0", "sandbox": place.netns()});
            delegating(&place, "CHECK")
                .with("prevResult", json!({"interfaces": [interface]}))
                .run()
                .silent_success();
            delegating(&place, "GC").with("cni.dev/valid-attachments", json!([])).run().silent_success();
            delegating(&place, "STATUS").run().silent_success();
            let expected =
                ["agent check", "ipam CHECK", "agent gc", "ipam GC", "agent status", "ipam STATUS"];
            assert_eq!(notes(&place), expected);
        }),
        case("ADD: what the agent refuses is released again", || {
            let place = with_ipam(RESULT, 0);
            let _agent = noting(&place, |_| Reply::Say(Response::error(code::INTERNAL, "no veth", "EPERM")));
            delegating(&place, "ADD").run().error(999, &["no veth"]);
            assert_eq!(notes(&place), ["ipam ADD", "agent add", "ipam DEL"]);
        }),
        case("ADD: without an agent the addresses are released again", || {
            let place = with_ipam(RESULT, 0);
            delegating(&place, "ADD").run().error(11, &["not running"]);
            assert_eq!(notes(&place), ["ipam ADD", "ipam DEL"]);
        }),
        case("ADD of unknown outcome: first the wiring goes, then the addresses", || {
            let place = with_ipam(RESULT, 0);
            let _agent = noting(&place, |call| match call {
                Call::Add(_) => Reply::Silence,
                other => Reply::Say(obey(other)),
            });
            delegating(&place, "ADD").with("timeout", 0.5).run().error(11, &["does not answer"]);
            assert_eq!(notes(&place), ["ipam ADD", "agent add", "agent del", "ipam DEL"]);
        }),
        case("ADD of unknown outcome: addresses that may be in use stay reserved until DEL", || {
            let place = with_ipam(RESULT, 0);
            let _agent = noting(&place, |_| Reply::Silence);
            delegating(&place, "ADD").with("timeout", 0.5).run().error(11, &["does not answer"]);
            assert_eq!(notes(&place), ["ipam ADD", "agent add", "agent del"]);
        }),
        case("ADD: a failed IPAM plugin is run with DEL, and its error passed on", || {
            let place = with_ipam(
                r#"{"cniVersion": "1.1.0", "code": 120, "msg": "exhausted", "details": "10.9/24"}"#,
                1,
            );
            let _agent = noting(&place, |call| Reply::Say(obey(call)));
            delegating(&place, "ADD").run().error(120, &["fake-ipam", "exhausted", "10.9/24"]);
            assert_eq!(notes(&place), ["ipam ADD", "ipam DEL"]);
        }),
        case("an IPAM plugin that fails without an error object is quoted", || {
            let place = with_ipam("panic: oops", 2);
            delegating(&place, "ADD").run().error(999, &["fake-ipam", "exit status: 2", "panic: oops"]);
        }),
        case("an IPAM plugin's standard error reaches ours", || {
            let place = Place::new();
            place.script("fake-ipam", "echo some warning >&2; exit 1");
            assert!(delegating(&place, "DEL").run().stderr.contains("some warning"));
        }),
        case("an IPAM plugin that hangs is killed, its children too", hanging),
        case("an IPAM plugin that reads no input and prints much does no harm", || {
            let place = Place::new();
            let _agent = FakeAgent::obedient(&place.socket());
            place.script("fake-ipam", "head -c 300000 /dev/zero | tr '\\0' ' '; echo '{}'");
            let padding = "x".repeat(300_000);
            delegating(&place, "DEL").with("padding", padding).run().silent_success();
        }),
        case("an IPAM plugin that is not there is named", || {
            let place = Place::new();
            delegating(&place, "ADD").run().error(7, &["fake-ipam", "CNI_PATH="]);
        }),
        case("an IPAM plugin without CNI_PATH cannot be found", || {
            let place = with_ipam(RESULT, 0);
            delegating(&place, "ADD").env_remove("CNI_PATH").run().error(4, &["CNI_PATH"]);
        }),
    ];
    for (name, printed) in [
        ("no addresses", r#"{"ips": []}"#),
        ("nonsense", "ok"),
        ("no prefix", r#"{"ips": [{"address": "x"}]}"#),
    ] {
        cases.push(case(format!("ADD: an IPAM plugin that prints {name} is run with DEL"), move || {
            let place = with_ipam(printed, 0);
            let _agent = noting(&place, |call| Reply::Say(obey(call)));
            delegating(&place, "ADD").run().error(6, &["fake-ipam", "unusable"]);
            assert_eq!(notes(&place), ["ipam ADD", "ipam DEL"]);
        }));
    }
    for (name, body) in [("host-local", host_local as fn()), ("static", reference_static)] {
        let missing = !Path::new(REFERENCE).join(name).exists();
        cases.push(
            case(format!("the reference plugin {name} gives the addresses"), body).with_ignored_flag(missing),
        );
    }
    cases
}

fn add() {
    let place = with_ipam(RESULT, 0);
    let agent = noting(&place, |call| Reply::Say(obey(call)));
    let plugin = delegating(&place, "ADD").env("CNI_ARGS", "IP=10.9.0.7");
    let input = plugin.input();
    let result = plugin.run().result();
    assert_eq!(fs::read(place.file("stdin")).unwrap(), input, "byte for byte");
    let seen = fs::read_to_string(place.file("variables")).unwrap();
    assert_eq!(seen, format!("{CONTAINER} eth0 {} IP=10.9.0.7\n", place.netns().display()));
    let Call::Add(add) = &agent.calls()[0] else { panic!("{:?}", agent.calls()) };
    assert_eq!(add.addresses, Some(vec!["10.9.0.7/24".parse().unwrap(), "fd09::7/64".parse().unwrap()]));
    assert_eq!(result["dns"], json!({"nameservers": ["10.9.0.1"]}));
    assert_eq!(notes(&place), ["ipam ADD", "agent add"]);
}

/// The plugin's child holds a lock as long as it lives: once that can be had, it is gone.
fn hanging() {
    let place = Place::new();
    let lock = place.file("lock");
    fs::write(&lock, "").unwrap();
    let wait = format!("if [ $CNI_COMMAND = ADD ]; then flock {} sleep 600 & wait; fi", lock.display());
    place.script("fake-ipam", &wait);
    let outcome = delegating(&place, "ADD").with("timeout", 0.5).run();
    outcome.error(11, &["fake-ipam", "killed"]);
    let status =
        std::process::Command::new("flock").arg("--timeout=10").arg(&lock).arg("true").status().unwrap();
    assert!(status.success(), "the child outlived the plugin");
}

fn host_local() {
    let place = Place::new();
    let agent = FakeAgent::obedient(&place.socket());
    let ranges = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]);
    let ipam = json!({"type": "host-local", "dataDir": place.file("leases"), "ranges": ranges});
    let plugin = |verb| place.plugin(verb).with("cniVersion", "1.0.0").with("ipam", ipam.clone());
    let result = plugin("ADD").run().result();
    let ips: Vec<&Value> = result["ips"].as_array().unwrap().iter().map(|ip| &ip["address"]).collect();
    assert_eq!(ips, ["10.77.0.2/24", "fd77::2/64"]);
    let leases = || fs::read_dir(place.file("leases").join("pods")).unwrap();
    let held =
        || leases().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("77")).count();
    assert_eq!(held(), 2);
    plugin("CHECK").with("prevResult", result).run().silent_success();
    for _ in 0..2 {
        plugin("DEL").run().silent_success();
    }
    assert_eq!(held(), 0);
    assert_eq!(agent.calls().len(), 4);
}

fn reference_static() {
    let place = Place::new();
    let _agent = FakeAgent::obedient(&place.socket());
    let addresses = json!([{"address": "10.78.0.9/24"}, {"address": "fd78::9/64"}]);
    let ipam = json!({"type": "static", "addresses": addresses, "dns": {"nameservers": ["10.78.0.1"]}});
    let plugin = |verb| place.plugin(verb).with("cniVersion", "0.4.0").with("ipam", ipam.clone());
    let result = plugin("ADD").run().result();
    assert_eq!(result["ips"][0]["address"], "10.78.0.9/24");
    assert_eq!(result["ips"][1]["version"], "6");
    assert_eq!(result["dns"]["nameservers"], json!(["10.78.0.1"]));
    plugin("DEL").run().silent_success();
}

/// A place with an IPAM plugin that notes its verb, variables and input, prints `printed` and exits with `status`;
/// its DEL always succeeds.
fn with_ipam(printed: &str, status: u8) -> Place {
    let place = Place::new();
    fs::write(place.file("printed"), printed).unwrap();
    let file = |name: &str| place.file(name).display().to_string();
    let (notes, variables, stdin, output) =
        (file("notes"), file("variables"), file("stdin"), file("printed"));
    place.script(
        "fake-ipam",
        &format!(
            "echo ipam $CNI_COMMAND >> {notes}\n\
             echo $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS > {variables}\n\
             cat > {stdin}\n\
             [ $CNI_COMMAND = DEL ] && exit 0\n\
             cat {output}\n\
             exit {status}"
        ),
    );
    place
}

/// An agent that notes its calls in the same file as the IPAM plugin.
fn noting(place: &Place, mut answer: impl FnMut(&Call) -> Reply + Send + 'static) -> FakeAgent {
    let notes = place.file("notes");
    FakeAgent::start(&place.socket(), move |call| {
        let call_name = serde_json::to_value(call).unwrap()["call"].as_str().unwrap().to_owned();
        let so_far = fs::read_to_string(&notes).unwrap_or_default();
        fs::write(&notes, format!("{so_far}agent {call_name}\n")).unwrap();
        answer(call)
    })
}

/// What was called, in order.
fn notes(place: &Place) -> Vec<String> {
    fs::read_to_string(place.file("notes")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn delegating(place: &Place, verb: &str) -> Plugin {
    place.plugin(verb).with("ipam", json!({"type": "fake-ipam", "anything": [1, 2]}))
}

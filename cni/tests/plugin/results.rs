//! What ADD prints, in each version of the specification, alone and behind other plugins.

use std::path::Path;

use hypha_cni::protocol::{Add, Attachment, Call, PodName};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::agent::FakeAgent;
use crate::case;
use crate::harness::{CONTAINER, Place};

/// From Debian's containernetworking-plugins.
const PORTMAP: &str = "/usr/lib/cni/portmap";

pub fn cases() -> Vec<Trial> {
    let mut cases = Vec::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        cases.push(case(format!("ADD {version}: the result has exactly that version's shape"), move || {
            let place = Place::new();
            let _agent = FakeAgent::obedient(&place.socket());
            let result = place.plugin("ADD").with("cniVersion", version).run().result();
            assert_eq!(result, expected(version, &place.netns().display().to_string()));
        }));
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let name =
            format!("ADD {version}: the library that runtimes use reads the result, and loses nothing");
        let body = move || a_runtimes_library_reads(version);
        cases.push(case(name, body).with_ignored_flag(!Path::new(PORTMAP).exists()));
    }
    cases.push(case(
        "ADD: the agent gets the identity, the pod's name, the MTU and the namespace itself",
        || {
            let place = Place::new();
            let agent = FakeAgent::obedient(&place.socket());
            let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;OTHER=x";
            place.plugin("ADD").with("mtu", 1400).env("CNI_ARGS", args).run().result();
            let asked = agent.asked();
            assert_eq!(asked.len(), 1);
            assert_eq!(asked[0].inode, Some(place.netns_inode()), "the descriptor is that of CNI_NETNS");
            let pod = PodName { namespace: "shop".into(), name: "web-0".into(), uid: Some("u-1".into()) };
            assert_eq!(
                asked[0].call,
                Call::Add(Add {
                    attachment: Attachment {
                        container_id: CONTAINER.into(),
                        ifname: "eth0".into(),
                        network: "pods".into(),
                    },
                    netns: place.netns(),
                    mtu: Some(1400),
                    addresses: None,
                    pod: Some(pod),
                    port_mappings: Vec::new(),
                })
            );
        },
    ));
    cases.push(case(
        "ADD: two networks and two interfaces of one container are different attachments",
        || {
            let place = Place::new();
            let agent = FakeAgent::obedient(&place.socket());
            place.plugin("ADD").run().result();
            let second = place.plugin("ADD").with("name", "storage").env("CNI_IFNAME", "net1").run().result();
            assert_eq!(second["interfaces"][1]["name"], "net1");
            let [Call::Add(a), Call::Add(b)] = &agent.calls()[..] else { panic!("{:?}", agent.calls()) };
            assert_eq!((a.attachment.network.as_str(), a.attachment.ifname.as_str()), ("pods", "eth0"));
            assert_eq!((b.attachment.network.as_str(), b.attachment.ifname.as_str()), ("storage", "net1"));
            assert_eq!(a.attachment.container_id, b.attachment.container_id);
        },
    ));
    cases.push(case(
        "ADD behind other plugins: their result stays, ours follows and points at our interface",
        chained,
    ));
    cases.push(case(
        "ADD behind other plugins in 0.4.0: their addresses keep what that version requires",
        || {
            let place = Place::new();
            let _agent = FakeAgent::obedient(&place.socket());
            let previous =
                json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "192.0.2.9/24"}]});
            let result =
                place.plugin("ADD").with("cniVersion", "0.4.0").with("prevResult", previous).run().result();
            assert_eq!(result["ips"][0], json!({"version": "4", "address": "192.0.2.9/24"}));
            assert_eq!(result["ips"][1]["version"], "4");
            assert_eq!(result["ips"][2]["version"], "6");
        },
    ));
    cases.push(case("ADD: DNS settings of the configuration are passed on, the runtime's go first", || {
        let place = Place::new();
        let _agent = FakeAgent::obedient(&place.socket());
        let dns = json!({"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["svc"], "options": ["ndots:5"]});
        let result = place.plugin("ADD").with("dns", dns.clone()).run().result();
        assert_eq!(result["dns"], dns);
        let runtime = json!({"dns": {"servers": ["192.0.2.53"], "searches": ["example.org"]}});
        let result = place.plugin("ADD").with("dns", dns).with("runtimeConfig", runtime).run().result();
        assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"], "search": ["example.org"]}));
    }));
    cases
}

/// The reference plugin portmap, with no ports to map, reads `prevResult` by the library of all runtimes and prints
/// it again.
fn a_runtimes_library_reads(version: &str) {
    let place = Place::new();
    let _agent = FakeAgent::obedient(&place.socket());
    let result = place.plugin("ADD").with("cniVersion", version).run().result();
    let mut printed = place
        .plugin("ADD")
        .with("cniVersion", version)
        .with("type", "portmap")
        .with("prevResult", result.clone())
        .run_as(PORTMAP)
        .result();
    // Go prints an empty dictionary where we print none.
    if printed["dns"] == json!({}) {
        printed.as_object_mut().unwrap().remove("dns");
    }
    assert_eq!(printed, result);
}

fn chained() {
    let place = Place::new();
    let _agent = FakeAgent::obedient(&place.socket());
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": place.netns(), "pciID": "x"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "table": 7}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "somebody's": {"own": "key"},
    });
    let result = place.plugin("ADD").with("prevResult", previous.clone()).run().result();
    assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(result["ips"][0], previous["ips"][0]);
    assert_eq!(result["routes"][0], previous["routes"][0]);
    assert_eq!(result["dns"], previous["dns"]);
    assert_eq!(result["somebody's"], previous["somebody's"]);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["ips"][2]["interface"], 2);
    assert_eq!(result["routes"].as_array().unwrap().len(), 3);
}

/// Written out for each version, so that no helper can be wrong in both places.
fn expected(version: &str, netns: &str) -> Value {
    let routes = json!([
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1"},
    ]);
    let interfaces = json!([
        {"name": "hy0123456789abc", "mac": "0a:00:00:00:00:01"},
        {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": netns},
    ]);
    let ips = json!([
        {"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 1},
        {"address": "fd00:1::5/128", "gateway": "fe80::1", "interface": 1},
    ]);
    match version {
        "0.3.1" | "0.4.0" => json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": [
                {"version": "4", "address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"version": "6", "address": "fd00:1::5/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": routes,
        }),
        "1.0.0" => json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "routes": routes}),
        _ => json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "hy0123456789abc", "mac": "0a:00:00:00:00:01", "mtu": 1450},
                {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1450, "sandbox": netns},
            ],
            "ips": ips,
            "routes": routes,
        }),
    }
}

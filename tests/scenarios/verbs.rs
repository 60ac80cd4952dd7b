//! CNI as container runtimes use it, with all its repetitions and odd moments.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::addr::{GATEWAY_V4, GATEWAY_V6};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Protocol, Routing, Station, cni::Call, maps::Maps, poll, shell,
    traffic::exchange,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::scenario;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let one = |name: &str, body: fn(&mut Lab) -> Result<()>| {
        scenario(format!("verbs::{name}"), LabSpec::nodes(1, Routing::Native), body)
    };
    vec![
        one("the_result_says_what_was_wired", result),
        one("every_version_of_the_specification", versions),
        one("a_retried_add_neither_leaks_nor_duplicates", retried_add),
        one("check_notices_what_is_missing", check),
        one("delete_twice_and_without_namespace", delete_twice),
        one("delete_without_agent_is_replayed", delete_without_agent),
        one("garbage_collection_keeps_what_is_valid", garbage_collection),
        one("two_interfaces_in_one_container", two_interfaces),
        one("a_chain_of_plugins", chain),
        one("addresses_of_a_delegated_plugin", delegated_ipam),
        one("mtu_of_the_configuration", mtu),
        one("freed_addresses_are_reused_last", reused_last),
    ]
}

/// Addresses of pods that the maps hold.
fn endpoints(node: &Node) -> Result<Vec<IpAddr>> {
    let endpoints = Maps::of(node.bpf_dir()).endpoints()?;
    Ok(endpoints.into_iter().filter(|(_, endpoint)| endpoint.ifindex != 0).map(|(ip, _)| ip.into()).collect())
}

/// Host ends of pods' links.
fn pod_links(node: &Node) -> Result<usize> {
    let links = shell::ip(node.netns(), "-br link show type veth")?;
    Ok(links.lines().filter(|line| line.starts_with("hy")).count())
}

fn ensure_nothing_left(node: &Node) -> Result<()> {
    let (endpoints, links) = (endpoints(node)?, pod_links(node)?);
    ensure!(endpoints.is_empty() && links == 0, "left behind: endpoints {endpoints:?}, {links} links");
    let files = fs::read_dir(node.run_dir().join("state/endpoints")).map_or(0, Iterator::count);
    ensure!(files == 0, "{files} endpoint files left behind");
    Ok(())
}

fn result(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    let result = a.result();
    ensure!(result["cniVersion"] == node.network_config()?["cniVersion"], "version: {result}");
    let ips = result["ips"].as_array().context("no ips")?;
    ensure!(ips.len() == 2, "one address of each family: {result}");
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    for ip in ips {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        let interface =
            index.and_then(|index| interfaces.get(index)).context("an address without interface")?;
        ensure!(interface["name"] == "eth0", "the address is on {interface}");
        ensure!(interface["sandbox"] == json!(a.netns().path()), "sandbox: {interface}");
        let gateway: IpAddr = ip["gateway"].as_str().context("no gateway")?.parse()?;
        ensure!([IpAddr::from(GATEWAY_V4), IpAddr::from(GATEWAY_V6)].contains(&gateway), "gateway {gateway}");
    }
    ensure!(
        interfaces.iter().all(|interface| interface["mac"].is_string()),
        "an interface without MAC: {result}"
    );
    // What was said must be so.
    let host = shell::ip(node.netns(), &format!("-br link show dev {}", a.host_ifname()?))?;
    ensure!(host.contains("UP"), "the host end is down: {host}");
    for family in Family::BOTH {
        let has = shell::ip(a.netns(), &format!("{} -br address show dev eth0", family.flag()))?;
        let wanted = format!("{}/{}", a.address(family), family.bits());
        ensure!(has.contains(&wanted), "{wanted} is not on eth0: {has}");
    }
    Ok(())
}

fn versions(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod("v").config("cniVersion", json!(version)).add()?;
        ensure!(pod.result()["cniVersion"] == version, "asked for {version}: {}", pod.result());
        if version != "0.3.1" {
            pod.check()?.success()?;
        }
        exchange::exchange(&pod, lab.world(), Family::V4, Protocol::Icmp)?;
        pod.delete()?;
    }
    let unknown = node.pod("v").config("cniVersion", json!("7.0.0")).prepare()?;
    let (code, message) = unknown.verb("ADD")?.failure()?;
    ensure!(code == 1, "an unknown version is error 1, not {code}: {message}");
    ensure_nothing_left(node)
}

fn retried_add(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let b = node.add_pod("b")?;
    let first = node.add_pod("a")?;
    let again = first.prepared().add()?;
    ensure!(pod_links(node)? == 2, "{} links for two pods", pod_links(node)?);
    ensure!(endpoints(node)?.len() == 4, "endpoints: {:?}", endpoints(node)?);
    again.check()?.success()?;
    for family in Family::BOTH {
        exchange::exchange(&again, &b, family, Protocol::Tcp)?;
    }
    // A runtime that lost its container retries with a new namespace under the same id.
    again.delete()?;
    b.delete()?;
    ensure_nothing_left(node)
}

fn check(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    for breakage in [
        "address delete ADDRESS/32 dev eth0",
        "-6 route delete default",
        "link set eth0 down",
        "link delete eth0",
    ] {
        let pod = node.add_pod("a")?;
        pod.check()?.success()?;
        shell::ip(pod.netns(), &breakage.replace("ADDRESS", &pod.v4().to_string()))?;
        let (_, message) = pod.check()?.failure().with_context(|| format!("after ip {breakage}"))?;
        ensure!(!message.is_empty(), "no message after ip {breakage}");
        pod.delete()?;
    }
    ensure_nothing_left(node)
}

fn delete_twice(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    let container = a.prepared();
    a.delete()?;
    container.verb("DEL")?.success()?;

    let b = node.add_pod("b")?;
    let container = b.prepared();
    let mut config = container.config().clone();
    config["prevResult"] = b.result().clone();
    // Namespaces go before DEL when a node reboots; runtimes then call without one, or with a path that is gone.
    let call = |netns| Call { netns, ..container.call("DEL", &config) };
    node.cni(&call(None))?.success()?;
    node.cni(&call(Some("/run/netns/gone".into())))?.success()?;
    ensure_nothing_left(node)?;

    let never = node.pod("never").prepare()?;
    never.verb("DEL")?.success()?;
    Ok(())
}

fn delete_without_agent(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    node.kill_agent()?;
    let address = a.v4();
    let container = a.prepared();
    a.delete()?;
    container.verb("DEL")?.success().context("again")?;
    node.start_agent()?;
    poll::eventually("the queued delete is replayed", Duration::from_secs(5), || {
        let left = endpoints(node)?;
        ensure!(left.len() == 2 && !left.contains(&address), "the maps hold {left:?}");
        ensure!(pod_links(node)? == 1, "{} links", pod_links(node)?);
        Ok(())
    })?;
    exchange::exchange(&b, lab.world(), Family::V6, Protocol::Udp)?;
    Ok(())
}

fn garbage_collection(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    let mut config = node.newest_config()?;
    config["cni.dev/valid-attachments"] = json!([{ "containerID": a.container_id(), "ifname": a.ifname() }]);
    node.cni(&Call { command: "GC", container_id: "", netns: None, ifname: "", args: "", config: &config })?
        .success()?;
    let left = endpoints(node)?;
    ensure!(
        left.len() == 2 && left.contains(&a.v4()),
        "valid is {}, invalid {}, left {left:?}",
        a.v4(),
        b.v4()
    );
    a.check()?.success()?;
    exchange::exchange(&a, lab.world(), Family::V4, Protocol::Tcp)?;
    Ok(())
}

fn two_interfaces(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    let second = node.pod("a").inside(&a).ifname("net1").add()?;
    ensure!(a.v4() != second.v4() && a.v6() != second.v6(), "one address on two interfaces");
    for family in Family::BOTH {
        exchange::exchange(&a, &b, family, Protocol::Tcp)?;
        let mut ping = second.netns().command("ping");
        ping.args(["-n", "-c", "2", "-i", "0.1", "-W", "2", "-I", "net1", &b.address(family).to_string()]);
        shell::text(&mut ping).with_context(|| format!("{family} through the second interface"))?;
    }
    second.check()?.success()?;
    second.delete()?;
    a.check()?.success()?;
    exchange::exchange(&a, &b, Family::V4, Protocol::Tcp)?;
    a.delete()?;
    b.delete()?;
    ensure_nothing_left(node)
}

/// `tuning` after us gets our result and passes it on; `portmap` finds the pod's address in it.
fn chain(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    let container = a.prepared();
    let base =
        json!({ "cniVersion": "1.0.0", "name": "hypha", "prevResult": as_version(a.result(), "1.0.0") });
    let mut tuning = base;
    tuning["type"] = json!("tuning");
    tuning["sysctl"] = json!({ "net.ipv4.conf.eth0.log_martians": "1" });
    let reply = node.reference_plugin("tuning", &container.call("ADD", &tuning))?.success()?;
    ensure!(reply["ips"] == a.result()["ips"], "the chain lost our result: {reply}");
    let value = a.netns().enter(|| fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/log_martians"))??;
    ensure!(value.trim() == "1", "the chained plugin did not reach our interface");

    // Behind another plugin, what it said must come out again.
    let mut config = node.network_config()?;
    config["cniVersion"] = json!("1.0.0");
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "other0", "mac": "02:00:00:00:00:07", "sandbox": "" }],
        "ips": [],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let second = node.pod("b").prepare()?;
    let result = second.verb_with("ADD", &config)?.success()?;
    let names: Vec<_> =
        result["interfaces"].as_array().context("no interfaces")?.iter().map(|i| i["name"].clone()).collect();
    ensure!(names.contains(&json!("other0")) && names.contains(&json!("eth0")), "interfaces: {result}");
    ensure!(result["dns"]["nameservers"][0] == "192.0.2.53", "dns: {result}");
    Ok(())
}

fn as_version(result: &Value, version: &str) -> Value {
    let mut result = result.clone();
    result["cniVersion"] = json!(version);
    result
}

/// The reference plugin `host-local` chooses the address, and gets it back.
fn delegated_ipam(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let data = node.run_dir().join("host-local");
    let ipam = json!({
        "type": "host-local",
        "dataDir": data,
        "ranges": [[{ "subnet": "10.244.1.128/25" }], [{ "subnet": "fd00:10:244:1:1::/80" }]],
    });
    let a = node.pod("a").config("ipam", ipam.clone()).config("cniVersion", json!("1.0.0")).add()?;
    let b = node.add_pod("b")?;
    ensure!(
        matches!(a.v4(), IpAddr::V4(v4) if v4 >= Ipv4Addr::new(10, 244, 1, 128)),
        "{} is not host-local's",
        a.v4()
    );
    for family in Family::BOTH {
        exchange::exchange(&a, &b, family, Protocol::Tcp)?;
    }
    let reservation = data.join("hypha").join(a.v4().to_string());
    ensure!(reservation.exists(), "host-local has no {}", reservation.display());
    a.delete()?;
    ensure!(!reservation.exists(), "DEL did not reach host-local");
    Ok(())
}

fn mtu(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).pod("a").config("mtu", json!(1280)).add()?;
    let link = shell::ip(a.netns(), "link show dev eth0")?;
    ensure!(link.contains("mtu 1280"), "{link}");
    exchange::exchange(&a, lab.world(), Family::V6, Protocol::Tcp)?;
    Ok(())
}

fn reused_last(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let first = node.add_pod("a")?;
    let freed = first.v4();
    first.delete()?;
    node.kill_agent()?;
    node.start_agent()?;
    for number in 0..10 {
        let pod = node.add_pod(&format!("n{number}"))?;
        ensure!(pod.v4() != freed, "{freed} was given to the {number}th pod after it was freed");
        pod.delete()?;
    }
    Ok(())
}

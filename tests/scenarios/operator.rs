//! What an operator sees and does on a node.

use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Protocol, Routing, Station,
    netns::Netns,
    poll, programs, shell,
    traffic::{exchange, tools},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::{scenario, scenario_without_start};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    vec![
        scenario("operator::bpftool_shows_field_names", LabSpec::nodes(2, Routing::Native), field_names),
        scenario("operator::cleanup_removes_every_trace", LabSpec::nodes(2, Routing::Tunnel), cleanup),
        scenario("operator::cleanup_may_be_killed", LabSpec::nodes(1, Routing::Tunnel), killed_cleanups),
        scenario_without_start(
            "operator::settings_of_other_devices_are_left_alone",
            LabSpec::nodes(1, Routing::Tunnel),
            settings_left_alone,
        ),
        scenario_without_start(
            "operator::an_agent_that_no_runtime_can_find_is_not_ready",
            LabSpec::nodes(1, Routing::Tunnel),
            no_configuration,
        ),
    ]
}

/// Key and value fields that the stock bpftool must name.
const FIELDS: [(&str, &[&str], &[&str]); 4] = [
    ("endpoints", &["bytes"], &["ifindex", "mac", "flags", "id"]),
    ("routes", &[], &["next_hop", "ifindex", "mtu", "kind"]),
    (
        "conntrack",
        &["src", "dst", "src_port", "dst_port", "protocol"],
        &["created", "nat_address", "nat_port", "sent", "received"],
    ),
    ("nat", &["src", "dst", "src_port", "dst_port", "protocol"], &["created", "address", "port"]),
];

fn field_names(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    exchange::exchange(&a, lab.world(), Family::V4, Protocol::Udp)?;
    for (map, keys, values) in FIELDS {
        let dump = tools::bpftool_dump(&lab.node(0).bpf_dir().join(map))?;
        let entry =
            dump[0]["formatted"].as_object().with_context(|| format!("{map} has no field names: {dump}"))?;
        for (part, fields) in [("key", keys), ("value", values)] {
            let shown = entry.get(part).unwrap_or(&Value::Null);
            for field in fields {
                ensure!(shown.get(field).is_some(), "{map}: no {part} field {field} in {shown}");
            }
        }
    }
    Ok(())
}

/// What is in the way of the network configuration is named, and nothing else is needed once it is gone.
fn no_configuration(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let conf_dir = node.dir().join("cni");
    // Somebody may have made the directory already.
    let _made_by_the_agent = fs::remove_dir_all(&conf_dir);
    fs::write(&conf_dir, "").context("cannot put a file in the way")?;
    node.launch_agent()?;
    poll::eventually("the status names what is in the way", Duration::from_secs(20), || {
        let status = shell::said(&shell::run(&mut node.hypha_command(&["status"])?, b"")?);
        ensure!(status.contains("cannot write") && status.contains("--cni-conf-dir"), "{status}");
        Ok(())
    })?;
    fs::remove_file(&conf_dir).context("cannot take the file away")?;
    node.wait_ready()?;
    node.add_pod("a").map(drop)
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// The shim by its other name does what runtimes want of a plugin of that name.
fn loopback(node: &Netns, bin_dir: &Path) -> Result<()> {
    let sandbox = Netns::create(&format!("{}-lo", node.name()))?;
    shell::ip(&sandbox, "link set lo down")?;
    let call = |verb: &str| {
        let mut plugin = node.command(bin_dir.join("loopback"));
        plugin.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "a").env("CNI_IFNAME", "lo");
        plugin.env("CNI_PATH", bin_dir).env("CNI_NETNS", sandbox.path());
        let output = shell::run(&mut plugin, br#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#)?;
        Ok::<_, anyhow::Error>((output.status.success(), shell::said(&output)))
    };
    let (done, said) = call("CHECK")?;
    ensure!(!done && said.contains("lo is down"), "CHECK before ADD: {said}");
    for verb in ["ADD", "CHECK", "ADD", "DEL", "DEL"] {
        let (done, said) = call(verb)?;
        ensure!(done, "{verb}: {said}");
    }
    let addresses = shell::ip(&sandbox, "-br address show lo")?;
    ensure!(addresses.contains("127.0.0.1/8") && addresses.contains("::1/128"), "{addresses}");
    Ok(())
}

fn cleanup(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, c] = [node.add_pod("a")?, lab.node(1).add_pod("c")?];
    exchange::exchange(&a, &c, Family::V6, Protocol::Tcp)?;
    ensure!(count(node.bpf_dir()) > 0, "nothing is pinned: the directory is not what this test believes");
    let refused = node.hypha(&["cleanup"]);
    ensure!(
        refused.as_ref().is_err_and(|error| error.to_string().contains("an agent is running")),
        "cleanup under a running agent: {refused:?}"
    );
    node.stop_agent()?;
    ensure!(count(node.bpf_dir()) > 0, "stopping the agent must leave the datapath in place");
    let attached = || programs::attached(node.netns(), "eth0");
    ensure!(attached()? == ["from_uplink", "to_uplink"], "a stopped agent leaves {:?}", attached()?);
    let bin_dir = node.run_dir().with_file_name("plugins");
    let plugins = bin_dir.to_str().context("a path that is no text")?;
    node.hypha(&["install-cni", "--bin-dir", plugins])?;
    loopback(node.netns(), &bin_dir)?;
    fs::write(bin_dir.join("bridge"), "another's")?;
    let arguments = ["cleanup", "--cni-bin-dir", plugins];
    let said = node.hypha(&arguments)?;
    for trace in ["conflist", "pinned", "veth", "kernel routes", "VXLAN", "hypha-cni"] {
        ensure!(said.contains(trace), "cleanup says nothing of the {trace}: {said}");
    }
    let again = node.hypha(&arguments)?;
    ensure!(again.lines().count() == 1, "a second cleanup finds more than its own run directory: {again}");

    ensure!(count(&bin_dir) == 1, "of the plugins only hypha-cni goes");
    nothing_left(node)?;
    // And all can begin anew.
    node.start_agent()?;
    let b = node.add_pod("b")?;
    exchange::exchange(&b, &c, Family::V4, Protocol::Tcp)?;
    Ok(())
}

fn nothing_left(node: &Node) -> Result<()> {
    ensure!(!node.run_dir().exists(), "the run directory is left");
    ensure!(count(node.bpf_dir()) == 0, "{} pins left", count(node.bpf_dir()));
    ensure!(!node.conflist().exists(), "the CNI configuration is left");
    let links = shell::ip(node.netns(), "-br link")?;
    ensure!(
        !links.contains("hypha_vxlan") && !links.lines().any(|line| line.starts_with("hy")),
        "left: {links}"
    );
    for family in Family::BOTH {
        let routes = shell::ip(node.netns(), &format!("{} route show table all proto 72", family.flag()))?;
        ensure!(routes.is_empty(), "left: {routes}");
    }
    let attached = programs::attached(node.netns(), "eth0")?;
    ensure!(attached.is_empty(), "still attached: {attached:?}");
    Ok(())
}

/// Killed after ever longer times, most of which are somewhere in the middle; the next one goes on from there.
fn killed_cleanups(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let pods = (0..8).map(|number| node.add_pod(&format!("p{number}"))).collect::<Result<Vec<_>>>()?;
    node.stop_agent()?;
    for wait in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
        let mut command = node.hypha_command(&["cleanup"])?;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        thread::sleep(Duration::from_millis(wait));
        child.kill()?;
        child.wait()?;
    }
    node.hypha(&["cleanup"])?;
    nothing_left(node)?;
    drop(pods);
    node.start_agent()
}

/// Settings of the whole node and of its uplink that a strict administrator has made.
const STRICT: [&str; 6] = [
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/eth0/rp_filter",
    "ipv4/conf/eth0/forwarding",
    "ipv4/conf/default/forwarding",
    "ipv4/conf/all/accept_local",
    "ipv4/conf/eth0/proxy_arp",
];

/// The agent works with its own devices' settings: what it finds on others stays as it is.
fn settings_left_alone(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let read = || -> Result<Vec<String>> {
        let values = STRICT
            .iter()
            .map(|key| node.netns().enter(|| fs::read_to_string(Path::new("/proc/sys/net").join(key))));
        values.map(|value| Ok(value??.trim().to_owned())).collect()
    };
    let before = read()?;
    node.start_agent()?;
    let a = node.add_pod("a")?;
    for family in Family::BOTH {
        exchange::exchange(&a, lab.world(), family, Protocol::Tcp)?;
        exchange::exchange(node.as_ref(), &a, family, Protocol::Tcp)?;
    }
    let after = read()?;
    for ((key, before), after) in STRICT.iter().zip(before).zip(after) {
        ensure!(before == after, "{key} was {before} and is {after}");
    }
    Ok(())
}

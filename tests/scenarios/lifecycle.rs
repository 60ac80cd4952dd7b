//! Agents come and go; traffic and pods must not notice.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Protocol, Routing, Station, shell,
    traffic::{exchange, probe::Probe, stream::Stream},
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario, scenario_without_start};

/// How often the agent goes away in one scenario.
const ROUNDS: usize = 3;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        trials.extend([
            scenario(format!("lifecycle::{routing}::restart_under_traffic"), spec(), |lab| {
                under_traffic(lab, Node::stop_agent)
            }),
            scenario(format!("lifecycle::{routing}::kill_under_traffic"), spec(), |lab| {
                under_traffic(lab, Node::kill_agent)
            }),
            scenario_without_start(format!("lifecycle::{routing}::stale_pins"), spec(), stale_pins),
        ]);
    }
    let spec = || LabSpec::nodes(1, Routing::Native);
    trials.extend([
        scenario_without_start("lifecycle::pods_before_the_agent", spec(), pods_before_the_agent),
        scenario("lifecycle::pods_outlive_the_agent", spec(), pods_outlive_the_agent),
        scenario("lifecycle::killed_at_every_moment_of_start", spec(), killed_while_starting),
    ]);
    trials
}

/// 1 kHz of numbered packets in every direction and a busy connection, while agents end and start again.
fn under_traffic(lab: &mut Lab, end: fn(&Node) -> Result<()>) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let probes = [
        ("same node, IPv4 UDP", Probe::start(&a, &b, Family::V4, Protocol::Udp)?),
        ("another node, IPv6 ICMP", Probe::start(&a, &c, Family::V6, Protocol::Icmp)?),
        ("another node, IPv4 ICMP", Probe::start(&c, &a, Family::V4, Protocol::Icmp)?),
        ("world, IPv4 UDP", Probe::start(&a, lab.world(), Family::V4, Protocol::Udp)?),
        ("world, IPv6 ICMP", Probe::start(&a, lab.world(), Family::V6, Protocol::Icmp)?),
    ];
    let streams = [Stream::start(&a, &c, Family::V6)?, Stream::start(&a, lab.world(), Family::V4)?];
    for _ in 0..ROUNDS {
        for node in lab.nodes() {
            end(node)?;
            probes[0].1.wait_for_more(50)?;
            node.start_agent()?;
        }
        for (_, probe) in &probes {
            probe.wait_for_more(50)?;
        }
    }
    let mut checks = Checks::default();
    for (what, probe) in probes {
        checks.note(what, probe.finish().and_then(|report| report.ensure_nothing_lost(what)));
    }
    for stream in streams {
        let report = stream.finish()?;
        // A retransmission of a segment that was only late is the sender's guess on a busy machine, not a loss, and a gap without
        // any is a thread that had to wait for its CPU. Where packets are lost both are there: the flow stops for at least the
        // minimal retransmission timeout of 200 ms, and something is sent again.
        let lost = report.longest_gap >= Duration::from_millis(200) && report.retransmitted > 0;
        let gap = !lost && report.longest_gap < Duration::from_secs(2);
        checks.note("stream", gap.then_some(()).ok_or_else(|| anyhow::anyhow!("interrupted: {report:?}")));
    }
    checks.finish()
}

/// ADD without an agent fails with a clear message and leaves nothing; the same ADD works once the agent serves.
fn pods_before_the_agent(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let early = node.pod("early").prepare()?;
    let (code, message) = early.verb("ADD")?.failure()?;
    ensure!(code == 11, "an ADD without agent must be retried (code 11), not {code}: {message}");
    ensure!(message.contains("agent") || message.contains("hypha.sock"), "unclear: {message}");
    let (code, _) = node.cni_status()?.failure()?;
    ensure!(code == 50, "STATUS without agent must say unavailable (50), not {code}");
    let links = shell::ip(early.netns(), "-br link")?;
    ensure!(links.lines().count() == 1, "left behind in the pod: {links}");

    node.start_agent()?;
    let early = early.add()?;
    let late = node.add_pod("late")?;
    for family in Family::BOTH {
        exchange::exchange(&early, &late, family, Protocol::Tcp)?;
    }
    Ok(())
}

fn pods_outlive_the_agent(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    node.stop_agent()?;
    for family in Family::BOTH {
        exchange::exchange(&a, &b, family, Protocol::Tcp)?;
        exchange::exchange(&a, lab.world(), family, Protocol::Tcp)?;
    }
    node.start_agent()?;
    for pod in [&a, &b] {
        pod.check()?.success()?;
    }
    let c = node.add_pod("c")?;
    for family in Family::BOTH {
        ensure!(
            ![a.address(family), b.address(family)].contains(&c.address(family)),
            "{} given twice",
            c.address(family)
        );
        exchange::exchange(&c, &a, family, Protocol::Udp)?;
    }
    Ok(())
}

/// A pod is served whatever moment of its start the agent was killed at.
fn killed_while_starting(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    let probe = Probe::start(&a, &b, Family::V4, Protocol::Udp)?;
    for delay in [0, 5, 10, 20, 40, 80, 160] {
        node.kill_agent()?;
        node.launch_agent()?;
        // The moment of the kill is what is being varied.
        std::thread::sleep(Duration::from_millis(delay));
    }
    node.kill_agent()?;
    node.start_agent()?;
    probe.finish()?.ensure_nothing_lost("killed while starting")?;
    let late = node.add_pod("late")?;
    exchange::exchange(&late, &a, Family::V6, Protocol::Tcp)?;
    Ok(())
}

/// Maps of another kind are pinned under our names: the agent replaces them and works.
fn stale_pins(lab: &mut Lab) -> Result<()> {
    for node in lab.nodes() {
        for name in ["endpoints", "routes", "conntrack", "nat", "counters", "node"] {
            pin_foreign_map(&node.bpf_dir().join(name), name)?;
        }
        node.launch_agent()?;
    }
    for node in lab.nodes() {
        node.wait_ready()?;
    }
    let [a, c] = [lab.node(0).add_pod("a")?, lab.node(1).add_pod("c")?];
    for family in Family::BOTH {
        exchange::exchange(&a, &c, family, Protocol::Tcp)?;
        exchange::exchange(&a, lab.world(), family, Protocol::Udp)?;
    }
    Ok(())
}

fn pin_foreign_map(pin: &Path, name: &str) -> Result<()> {
    let mut command = Command::new("bpftool");
    command.args(["map", "create"]).arg(pin);
    command.args(["type", "hash", "key", "4", "value", "7", "entries", "3", "name", name]);
    shell::text(&mut command).map(drop)
}

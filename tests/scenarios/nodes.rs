//! The cluster changes while it runs: nodes come and go, and addresses move.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::Ip;
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Protocol, Routing, Station,
    maps::Maps,
    poll, shell,
    traffic::{exchange, probe::Probe, socket},
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::support::{Checks, scenario};

/// How long a change may take to reach all nodes.
const SOON: Duration = Duration::from_secs(5);
/// The same where an attempt may come too early and then waits for an answer that went to the old address.
const SOON_AFTER_A_MISS: Duration = Duration::from_secs(15);

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        trials.extend([
            scenario(format!("nodes::{routing}::added_and_removed"), spec(), added_and_removed),
            scenario(format!("nodes::{routing}::a_node_gets_another_address"), spec(), another_address),
            scenario(format!("nodes::{routing}::two_pods_swap_addresses"), spec(), pods_swap_addresses),
        ]);
    }
    trials
}

fn knows_pods_of(node: &Node, other: &Node) -> Result<bool> {
    let prefixes = Family::BOTH.map(|family| other.pod_cidr(family));
    let routes = Maps::of(node.bpf_dir()).routes()?;
    let known =
        |cidr: &String| routes.iter().any(|(ip, len, _)| format!("{}/{len}", IpAddr::from(*ip)) == *cidr);
    Ok(prefixes.iter().all(known))
}

fn added_and_removed(lab: &mut Lab) -> Result<()> {
    let [a, c] = [lab.node(0).add_pod("a")?, lab.node(1).add_pod("c")?];
    let probe = Probe::start(&a, &c, Family::V4, Protocol::Udp)?;

    let third = lab.add_node()?;
    let e = third.add_pod("e")?;
    for pod in [&a, &c] {
        for family in Family::BOTH {
            poll::eventually("the new node's pod is reached", SOON, || pod.ping(e.address(family)))?;
            exchange::exchange(&e, pod, family, Protocol::Tcp)?;
        }
    }
    let before = lab.nodes().to_vec();
    lab.remove_last_node()?;
    for node in lab.nodes() {
        poll::wait_until("the removed node's prefixes are forgotten", SOON, || {
            !knows_pods_of(node, &before[2]).unwrap_or(true)
        })?;
        for family in Family::BOTH {
            let command = format!("{} route show {}", family.flag(), third.pod_cidr(family));
            poll::wait_until("the kernel's route is gone", SOON, || {
                shell::ip(node.netns(), &command).is_ok_and(|routes| routes.is_empty())
            })?;
        }
        ensure!(
            knows_pods_of(node, &before[if node.name() == "node1" { 1 } else { 0 }])?,
            "too much forgotten"
        );
    }
    probe.wait_for_more(50)?;
    probe.finish()?.ensure_nothing_lost("between the nodes that stay")
}

/// The second node's uplink moves to other addresses: its flows to the world follow, and so do the other nodes.
fn another_address(lab: &mut Lab) -> Result<()> {
    let [a, c] = [lab.node(0).add_pod("a")?, lab.node(1).add_pod("c")?];
    let node = lab.node(1);
    let old_flows = Family::BOTH.map(|family| Dialogue::open(&c, lab.world(), family));
    let old_flows = old_flows.into_iter().collect::<Result<Vec<_>>>()?;
    for flow in &old_flows {
        flow.exchange()?;
    }
    node.netns().sysctl("ipv4/conf/eth0/promote_secondaries", "1")?;
    let fresh: [IpAddr; 2] = ["172.18.0.99".parse()?, "fd18::99".parse()?];
    shell::ip_batch(
        node.netns(),
        &format!(
            "address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\n\
             address delete {}/24 dev eth0\naddress delete {}/64 dev eth0\n\
             route replace default via {}\nroute replace default via {}\n",
            fresh[0],
            fresh[1],
            node.v4(),
            node.v6(),
            node.plan().gateway_v4,
            node.plan().gateway_v6
        ),
    )?;
    let mut object = node.object();
    object["status"]["addresses"] = json!(fresh.map(|ip| json!({ "type": "InternalIP", "address": ip })));
    lab.announce(node.name(), &object)?;

    let mut checks = Checks::default();
    for (family, fresh) in Family::BOTH.into_iter().zip(fresh) {
        let outcome = poll::eventually("the world sees the new address", SOON_AFTER_A_MISS, || {
            let seen = exchange::exchange(&c, lab.world(), family, Protocol::Udp)?;
            ensure!(seen == fresh, "the world still sees {seen}");
            Ok(())
        });
        checks.note(&format!("{family} to the world"), outcome);
        let outcome = poll::eventually("the other node's pod is reached", SOON, || a.ping(c.address(family)));
        checks.note(&format!("{family} between pods"), outcome);
        let outcome = poll::eventually("the new address is reached", SOON_AFTER_A_MISS, || a.ping(fresh));
        checks.note(&format!("{family} pod to the new address"), outcome);
    }
    for (flow, fresh) in old_flows.iter().zip(fresh) {
        let outcome = poll::eventually("a flow from before goes on", SOON_AFTER_A_MISS, || {
            let seen = flow.exchange()?;
            ensure!(seen == fresh, "the world still sees {seen}");
            Ok(())
        });
        checks.note(&format!("an old flow, now from {fresh}"), outcome);
    }
    checks.finish()
}

/// A UDP flow that is used again and again from the same port.
struct Dialogue {
    client: UdpSocket,
    server: UdpSocket,
}

impl Dialogue {
    fn open(from: &dyn Station, to: &dyn Station, family: Family) -> Result<Self> {
        let server = socket::udp(to.netns(), to.address(family))?;
        let client = socket::udp(from.netns(), family.unspecified())?;
        client.connect(server.local_addr()?)?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        }
        Ok(Self { client, server })
    }

    /// One question and its answer; returns whom the server saw.
    fn exchange(&self) -> Result<IpAddr> {
        self.client.send(b"question").context("cannot ask")?;
        let (_, peer) =
            socket::retry(|| self.server.recv_from(&mut [0; 16])).context("the question did not arrive")?;
        self.server.send_to(b"answer", peer).context("cannot answer")?;
        socket::retry(|| self.client.recv(&mut [0; 16]))
            .with_context(|| format!("the answer to {peer} did not come back"))?;
        Ok(peer.ip())
    }
}

/// Two pods with fixed addresses are made anew with each other's; their neighbours must not mix them up.
fn pods_swap_addresses(lab: &mut Lab) -> Result<()> {
    let peer = lab.node(1).add_pod("peer")?;
    let node = lab.node(0);
    let addresses = |number: u8| -> Result<[IpAddr; 2]> {
        Ok([format!("10.244.1.{number}").parse()?, format!("fd00:10:244:1::{number}").parse()?])
    };
    let (one, two) = (addresses(201)?, addresses(202)?);
    let add = |name: &str, [v4, v6]: [IpAddr; 2]| node.pod(name).addresses(v4, v6).add();
    let check = |from: &Pod, to: &Pod| -> Result<()> {
        for family in Family::BOTH {
            let seen = exchange::exchange(from, to, family, Protocol::Tcp)?;
            ensure!(seen == from.address(family), "{} appeared as {seen}", from.name());
        }
        Ok(())
    };
    let (mut x, mut y) = (add("x", one)?, add("y", two)?);
    for _ in 0..3 {
        for (from, to) in [(&x, &y), (&y, &x), (&peer, &x), (&peer, &y), (&x, &peer)] {
            check(from, to)?;
        }
        let (of_x, of_y) = ([x.v4(), x.v6()], [y.v4(), y.v6()]);
        x.delete()?;
        y.delete()?;
        (x, y) = (add("x", of_y)?, add("y", of_x)?);
    }
    let endpoints = Maps::of(node.bpf_dir()).endpoints()?;
    let holders = endpoints.iter().filter(|(ip, _)| *ip == Ip::from(x.v4()));
    ensure!(holders.count() == 1, "the map holds an address twice or not at all");
    Ok(())
}

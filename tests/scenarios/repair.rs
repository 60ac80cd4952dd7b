//! Somebody breaks what the agent has built; it puts it right within seconds.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{DropReason, Ip, addr::GATEWAY_MAC, maps::Endpoint};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Protocol, Routing, Station,
    maps::Maps,
    poll, shell,
    traffic::{
        exchange,
        raw::{RawSender, UdpFrame},
    },
};
use libtest_mimic::Trial;

use crate::support::scenario;

/// "Within seconds".
const SECONDS: Duration = Duration::from_secs(10);

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let native = || LabSpec::nodes(2, Routing::Native);
    let tunnel = || LabSpec::nodes(2, Routing::Tunnel);
    vec![
        scenario("repair::pin_directory_deleted", native(), pins_deleted),
        scenario("repair::programs_detached_from_a_pod", native(), detached_from_pod),
        scenario("repair::programs_detached_from_the_uplink", native(), detached_from_uplink),
        scenario("repair::routes_to_another_node_removed", native(), node_routes_removed),
        scenario("repair::routes_into_the_tunnel_removed", tunnel(), node_routes_removed),
        scenario("repair::routes_to_a_pod_removed", native(), pod_routes_removed),
        scenario("repair::vxlan_device_deleted", tunnel(), vxlan_deleted),
        scenario("repair::vxlan_device_replaced_by_another_kind", tunnel(), vxlan_replaced),
        scenario("repair::map_entries_removed_and_added", native(), map_entries),
    ]
}

/// Both families work in time.
fn works_again(what: &str, from: &dyn Station, to: &dyn Station) -> Result<()> {
    for family in Family::BOTH {
        poll::eventually(what, SECONDS, || from.ping(to.address(family)))?;
        exchange::exchange(from, to, family, Protocol::Tcp)?;
    }
    Ok(())
}

fn pins_deleted(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, c] = [node.add_pod("a")?, lab.node(1).add_pod("c")?];
    fs::remove_dir_all(node.bpf_dir()).context("cannot delete the pins")?;
    for family in Family::BOTH {
        exchange::exchange(&a, &c, family, Protocol::Tcp)?;
        exchange::exchange(&a, lab.world(), family, Protocol::Udp)?;
    }
    poll::wait_until("the maps are pinned again", SECONDS, || node.bpf_dir().join("endpoints").exists())?;
    poll::wait_until("the links are pinned again", SECONDS, || {
        fs::read_dir(node.bpf_dir().join("links")).is_ok_and(|links| links.count() >= 4)
    })?;
    // The next agent must find the state that the old one re-pinned, not an empty one.
    node.kill_agent()?;
    node.start_agent()?;
    let b = node.add_pod("b")?;
    works_again("old and new pods talk", &a, &b)
}

/// Detaches the programs of one device, found by the names of their pins.
fn detach(node: &Node, ifname: &str) -> Result<()> {
    let index = shell::ip(node.netns(), &format!("-o link show dev {ifname}"))?;
    let index = index.split(':').next().context("ip shows no index")?.to_owned();
    let links = fs::read_dir(node.bpf_dir().join("links")).context("no pinned links")?;
    let pins: Vec<_> = links.flatten().map(|entry| entry.path()).collect();
    let of_device: Vec<_> =
        pins.iter().filter(|path| path.to_string_lossy().ends_with(&format!("-{index}"))).collect();
    ensure!(of_device.len() == 2, "two programs on {ifname} ({index}), not {of_device:?} of {pins:?}");
    for pin in of_device {
        detach_link(pin)?;
    }
    Ok(())
}

fn detach_link(pin: &Path) -> Result<()> {
    shell::text(std::process::Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin)).map(drop)
}

fn detached_from_pod(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    detach(node, a.host_ifname()?)?;
    let maps = Maps::of(node.bpf_dir());
    let sender = RawSender::open(a.netns(), a.ifname())?;
    let lie = UdpFrame {
        macs: (a.mac()?, GATEWAY_MAC.bytes),
        src: b.v4(),
        dst: lab.world().v4(),
        ttl: 64,
        ports: (1, 2),
    };
    let before = maps.dropped(DropReason::SourceAddress)?;
    poll::eventually("the source check is back", SECONDS, || {
        sender.send(&lie.build(b"a lie")?)?;
        ensure!(maps.dropped(DropReason::SourceAddress)? > before, "a lie was not dropped");
        Ok(())
    })?;
    works_again("the pod talks", &a, &b)
}

fn detached_from_uplink(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    detach(node, "eth0")?;
    works_again("the pod reaches the world", &a, lab.world())
}

fn node_routes_removed(lab: &mut Lab) -> Result<()> {
    let [first, second] = [lab.node(0), lab.node(1)];
    let c = second.add_pod("c")?;
    let node: &dyn Station = first.as_ref();
    works_again("the node reaches the pod", node, &c)?;
    for family in Family::BOTH {
        shell::ip(first.netns(), &format!("{} route delete {}", family.flag(), second.pod_cidr(family)))?;
    }
    works_again("the node reaches the pod again", node, &c)
}

fn pod_routes_removed(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    for family in Family::BOTH {
        let target = format!("{}/{}", a.address(family), family.bits());
        shell::ip(node.netns(), &format!("{} route delete {target}", family.flag()))?;
    }
    works_again("the node reaches its pod", node.as_ref(), &a)
}

fn pods_on_both(lab: &Lab) -> Result<[Pod; 2]> {
    let pods = [lab.node(0).add_pod("a")?, lab.node(1).add_pod("c")?];
    works_again("the pods talk through the tunnel", &pods[0], &pods[1])?;
    Ok(pods)
}

fn vxlan_deleted(lab: &mut Lab) -> Result<()> {
    let [a, c] = pods_on_both(lab)?;
    shell::ip(lab.node(0).netns(), "link delete hypha_vxlan")?;
    works_again("the pods talk again", &a, &c)?;
    works_again("the node reaches the pod again", lab.node(0).as_ref(), &c)
}

fn vxlan_replaced(lab: &mut Lab) -> Result<()> {
    let [a, c] = pods_on_both(lab)?;
    let script = "link delete hypha_vxlan\nlink add hypha_vxlan type bridge\nlink set hypha_vxlan up\n";
    // The agent may be quicker than the second line: then it was tried, and the device is right already.
    let _agent_was_quicker = shell::ip_batch(lab.node(0).netns(), script);
    works_again("the pods talk again", &a, &c)
}

fn map_entries(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let [a, b] = [node.add_pod("a")?, node.add_pod("b")?];
    let maps = Maps::of(node.bpf_dir());
    let foreign = Ip::from("10.244.1.222".parse::<std::net::IpAddr>()?);
    let mut endpoint = maps.endpoint(b.v4())?.context("the pod is not in the map")?;
    endpoint.id = 4_000_000;
    maps.put_endpoint(foreign, &endpoint)?;
    for family in Family::BOTH {
        maps.remove_endpoint(b.address(family))?;
    }
    works_again("the pods talk again", &a, &b)?;
    poll::wait_until("the foreign entry is gone", SECONDS, || {
        maps.endpoint(foreign.into()).is_ok_and(|entry: Option<Endpoint>| entry.is_none())
    })
}

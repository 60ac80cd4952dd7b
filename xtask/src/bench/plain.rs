//! What Hypha is measured against: plain Linux, and the reference CNI plugins, set up as well as they can be.

use std::net::IpAddr;

use anyhow::Context as _;
use hypha_lab::cni::Call;
use hypha_lab::netns::Netns;
use hypha_lab::{Family, Lab, LabSpec, Node, PlainPod, Routing, Station, shell};
use serde_json::{Value, json};

use super::paths::{Group, Route};

/// The networks of plain Linux. Pods before the lab: they go first.
pub struct Plain {
    veth: [Host; 2],
    /// On the first node, on the second.
    routed: [PlainPod; 2],
    wrapped: [PlainPod; 2],
    masqueraded: PlainPod,
    ptp: [Host; 2],
    bridge: [Host; 2],
    lab: Lab,
}

/// The nodes of the lab by what they are used for: netfilter, once used, slows everything in its namespace.
const FIRST: usize = 0;
const SECOND: usize = 1;
const MASQUERADING: usize = 2;
const PLUGINS: usize = 3;

impl Plain {
    /// Builds all of them.
    pub fn build() -> anyhow::Result<Self> {
        let lab = LabSpec::nodes(4, Routing::Native).without_agents().prefix("bench").build()?;
        for node in lab.nodes() {
            // The lab's nodes check reverse paths as some distributions do: a route lookup per packet.
            node.netns().sysctl("ipv4/conf/default/rp_filter", "0")?;
            node.netns().sysctl("ipv4/conf/eth0/rp_filter", "0")?;
        }
        let pod = |index, name, number| PlainPod::add(lab.node(index), name, number);
        let plain = Self {
            veth: veth(&lab)?,
            routed: [pod(FIRST, "routed1", 2)?, pod(SECOND, "routed2", 2)?],
            wrapped: [pod(FIRST, "wrapped1", 3)?, pod(SECOND, "wrapped2", 3)?],
            masqueraded: pod(MASQUERADING, "masqueraded", 2)?,
            ptp: plugin_pods(&lab, "ptp", json!({ "ipMasq": false }))?,
            bridge: plugin_pods(&lab, "bridge", json!({ "bridge": "cni0", "isGateway": true }))?,
            lab,
        };
        for (from, to) in [(FIRST, SECOND), (SECOND, FIRST)] {
            plain.route(from, to)?;
            plain.wrap(from, to)?;
        }
        plain.lab.route_at_gateway(plain.lab.node(FIRST))?;
        masquerade(plain.lab.node(MASQUERADING))?;
        Ok(plain)
    }

    /// The paths; the first of each group is its measure.
    pub fn routes(&self, family: Family) -> Vec<Route<'_>> {
        let [node1, node2] = [self.lab.node(FIRST).as_ref(), self.lab.node(SECOND).as_ref()];
        let gateway = self.lab.gateway();
        let paths: [(Group, &'static str, [&dyn Station; 2]); 8] = [
            (Group::SameNode, "bare veth", [&self.veth[0], &self.veth[1]]),
            (Group::SameNode, "ptp plugin", [&self.ptp[0], &self.ptp[1]]),
            (Group::SameNode, "bridge plugin", [&self.bridge[0], &self.bridge[1]]),
            (Group::Native, "node to node", [node1, node2]),
            (Group::Native, "kernel routes", [&self.routed[0], &self.routed[1]]),
            (Group::Tunnel, "kernel VXLAN", [&self.wrapped[0], &self.wrapped[1]]),
            (Group::World, "no NAT", [&self.routed[0], gateway]),
            (Group::World, "nftables masquerade", [&self.masqueraded, gateway]),
        ];
        paths.map(|(group, name, [client, server])| Route::new(group, name, client, server, family)).into()
    }

    /// A kernel route to the other node's pods.
    fn route(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let to = self.lab.node(to);
        for family in Family::BOTH {
            let route =
                format!("{} route add {} via {}", family.flag(), to.pod_cidr(family), to.address(family));
            shell::ip(self.lab.node(from).netns(), &route)?;
        }
        Ok(())
    }

    /// The VXLAN device of a node, as flannel makes it: forwarding entries are fixed, nothing is learnt.
    fn wrap(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let node = self.lab.node(from);
        let mac = |index| format!("02:00:00:00:99:{index:02x}");
        let mut script = format!(
            "link add vxlan7 address {} type vxlan id 7 dstport 4789 local {} dev eth0 nolearning\n\
             link set vxlan7 up\n",
            mac(from),
            node.v4()
        );
        for (family, gateway) in
            Family::BOTH.into_iter().zip([format!("10.99.0.{to}"), format!("fd99::{to}")])
        {
            script += &format!(
                "neighbour add {gateway} lladdr {} dev vxlan7 nud permanent\n\
                 {} route add {}/{} via {gateway} dev vxlan7 onlink\n",
                mac(to),
                family.flag(),
                self.wrapped[to].address(family),
                family.bits(),
            );
        }
        // `ip -batch` takes no option within a line: the family shows in the addresses.
        let script = script.replace("-4 route", "route").replace("-6 route", "route");
        shell::ip_batch(node.netns(), &script)?;
        let entry = format!("fdb append {} dev vxlan7 dst {}", mac(to), self.lab.node(to).v4());
        shell::text(node.netns().command("bridge").args(entry.split(' ')))?;
        // What any network plugin sets, so that streams need not find out.
        shell::ip(self.wrapped[from].netns(), "link set eth0 mtu 1450").map(drop)
    }
}

/// Everything that leaves through the uplink takes its address.
fn masquerade(node: &Node) -> anyhow::Result<()> {
    for family in ["ip", "ip6"] {
        for line in [
            format!("add table {family} bench"),
            format!("add chain {family} bench out {{ type nat hook postrouting priority srcnat; }}"),
            format!("add rule {family} bench out oifname eth0 masquerade"),
        ] {
            shell::text(node.netns().command("nft").arg(line))?;
        }
    }
    Ok(())
}

/// A namespace with its addresses.
struct Host {
    netns: Netns,
    addresses: [IpAddr; 2],
}

impl Station for Host {
    fn name(&self) -> &str {
        self.netns.name()
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.addresses[0],
            Family::V6 => self.addresses[1],
        }
    }
}

/// Two namespaces and nothing between them but a veth pair.
fn veth(lab: &Lab) -> anyhow::Result<[Host; 2]> {
    let host = |number: u8| -> anyhow::Result<Host> {
        let netns = Netns::create(&format!("{}-veth{number}", lab.tag()))?;
        let addresses = [format!("192.0.2.{number}").parse()?, format!("fd02::{number}").parse()?];
        Ok(Host { netns, addresses })
    };
    let hosts = [host(1)?, host(2)?];
    shell::ip(
        &hosts[0].netns,
        &format!("link add eth0 type veth peer name eth0 netns {}", hosts[1].netns.name()),
    )?;
    for Host { netns, addresses: [v4, v6] } in &hosts {
        let script =
            format!("address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 up\n");
        shell::ip_batch(netns, &script)?;
    }
    Ok(hosts)
}

/// Two pods by a reference plugin with host-local addresses.
fn plugin_pods(lab: &Lab, plugin: &'static str, extra: Value) -> anyhow::Result<[Host; 2]> {
    let node = lab.node(PLUGINS);
    let config = plugin_config(node, plugin, extra);
    let pod = |number: u8| -> anyhow::Result<Host> {
        let netns = Netns::create(&format!("{}-{plugin}{number}", lab.tag()))?;
        let container_id = netns.name().to_owned();
        let path = Some(netns.path());
        let call = Call {
            command: "ADD",
            container_id: &container_id,
            netns: path,
            ifname: "eth0",
            args: "",
            config: &config,
        };
        let result = node.reference_plugin(plugin, &call)?.success()?;
        let address = |index: usize| -> anyhow::Result<IpAddr> {
            let cidr =
                result["ips"][index]["address"].as_str().context("no address in the plugin's result")?;
            Ok(cidr.split('/').next().unwrap_or_default().parse()?)
        };
        let addresses = [address(0)?, address(1)?];
        Ok(Host { netns, addresses })
    };
    Ok([pod(1)?, pod(2)?])
}

/// A dual-stack configuration of a reference plugin, its state kept with the node's.
pub fn plugin_config(node: &Node, plugin: &str, extra: Value) -> Value {
    let prefix = if plugin == "ptp" { 50 } else { 51 };
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": plugin,
        "type": plugin,
        "ipam": {
            "type": "host-local",
            "dataDir": node.run_dir().join(plugin),
            "ranges": [[{ "subnet": format!("10.{prefix}.0.0/16") }], [{ "subnet": format!("fd{prefix}::/64") }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    if let (Some(config), Value::Object(extra)) = (config.as_object_mut(), extra) {
        config.extend(extra);
    }
    config
}

//! Whom new flows appear as on nodes with several addresses and uplinks, and what becomes of flows whose address goes.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use datapath_ebpf::maps::Endpoint;
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Protocol, Routing, Station,
    maps::Maps,
    netns::Netns,
    poll, shell,
    traffic::{exchange, socket},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::{Checks, scenario, scenario_without_start};

/// By then a change must have an effect.
const SOON: Duration = Duration::from_secs(10);

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    let two = || spec().flag("--device=eth0").flag("--device=eth1");
    vec![
        scenario("addresses::a_route_that_prefers_another_address", spec(), preferred),
        scenario_without_start("addresses::every_uplink_has_its_own", two(), two_uplinks),
        scenario("addresses::new_addresses_are_known_soon", spec(), known_soon),
        scenario("addresses::a_replaced_address_is_followed", LabSpec::nodes(2, Routing::Native), replaced),
        scenario("addresses::flows_of_an_address_end_with_it", spec(), flows_end),
    ]
}

/// A station that is asked for by another of its addresses.
struct Alias<'a> {
    station: &'a dyn Station,
    addresses: [IpAddr; 2],
}

impl Station for Alias<'_> {
    fn name(&self) -> &str {
        self.station.name()
    }

    fn netns(&self) -> &Netns {
        self.station.netns()
    }

    fn address(&self, family: Family) -> IpAddr {
        self.addresses[usize::from(family == Family::V6)]
    }
}

/// An address of each family for a node's uplink, besides its own.
fn addresses(v4: &str, v6: &str) -> Result<[IpAddr; 2]> {
    Ok([v4.parse()?, v6.parse()?])
}

/// All protocols get to `to` and appear there as `expected`, IPv4 and IPv6.
fn appear_as(pod: &Pod, to: &dyn Station, expected: [IpAddr; 2]) -> Result<()> {
    let mut checks = Checks::default();
    for (family, expected) in Family::BOTH.into_iter().zip(expected) {
        for protocol in Protocol::ALL {
            let seen = exchange::exchange(pod, to, family, protocol).and_then(|seen| {
                ensure!(seen == expected, "seen as {seen}, not as {expected}");
                Ok(())
            });
            checks.note(&format!("{family} {protocol} to {}", to.name()), seen);
        }
    }
    checks.finish()
}

fn own(node: &Node) -> [IpAddr; 2] {
    Family::BOTH.map(|family| node.address(family))
}

/// What `hypha status` says of one device: destinations and source.
fn shown(node: &Node, device: &str) -> Result<Vec<(String, String)>> {
    let status: Value = serde_json::from_str(&node.hypha(&["status", "-o", "json"])?)?;
    let choices = status["masquerade"].as_array().context("hypha status shows no choices")?.iter();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let of_device = choices.filter(|choice| choice["device"] == device);
    Ok(of_device.map(|choice| (text(&choice["destinations"]), text(&choice["source"]))).collect())
}

fn ensure_shown(node: &Node, device: &str, expected: &[(&str, &str)]) -> Result<()> {
    poll::eventually("hypha status shows the choice", SOON, || {
        let shown = shown(node, device)?;
        for (destinations, source) in expected {
            let wanted = ((*destinations).to_owned(), (*source).to_owned());
            ensure!(shown.contains(&wanted), "{destinations} not as {source}: {shown:?}");
        }
        Ok(())
    })
}

/// The kernel has taken a route that the agent wanted, whenever it was.
fn ensure_no_refusal(node: &Node) -> Result<()> {
    let log = fs::read_to_string(node.agent_log())?;
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("the kernel refused a route")).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}

fn preferred(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let second = addresses("172.18.0.99", "fd18::99")?;
    let far = Alias { station: lab.world(), addresses: addresses("198.51.100.20", "2001:db8:5::20")? };
    shell::ip_batch(
        lab.world().netns(),
        "address add 198.51.100.20/32 dev lo\naddress add 2001:db8:5::20/128 dev lo nodad\n",
    )?;
    shell::ip_batch(
        lab.gateway().netns(),
        "route add 198.51.100.0/24 via 203.0.113.10\nroute add 2001:db8:5::/64 via 2001:db8:1::10\n",
    )?;
    let a = node.add_pod("a")?;
    appear_as(&a, &far, own(node)).context("with one address")?;
    shell::ip_batch(
        node.netns(),
        "address add 172.18.0.99/24 dev eth0\n\
         address add fd18::99/64 dev eth0 nodad preferred_lft 0\n\
         route add 198.51.100.0/24 via 172.18.0.1 src 172.18.0.99\n\
         route add 2001:db8:5::/64 via fd18::1 src fd18::99\n",
    )?;
    poll::eventually("the second address is taken", SOON, || appear_as(&a, &far, second))?;
    appear_as(&a, lab.world(), own(node)).context("by the default route, with two addresses")?;
    let [v4, v6] = own(node).map(|address| address.to_string());
    ensure_shown(
        node,
        "eth0",
        &[
            ("0.0.0.0/0", &v4),
            ("::/0", &v6),
            ("198.51.100.0/24", "172.18.0.99"),
            ("2001:db8:5::/64", "fd18::99"),
        ],
    )?;
    // The default route names the other address, the far network none.
    shell::ip_batch(
        node.netns(),
        "route replace default via 172.18.0.1 src 172.18.0.99\n\
         route replace default via fd18::1 src fd18::99\n\
         route replace 198.51.100.0/24 via 172.18.0.1\n\
         route delete 2001:db8:5::/64\n\
         route add 2001:db8:5::/64 via fd18::1\n",
    )?;
    poll::eventually("the default route's source is taken", SOON, || appear_as(&a, lab.world(), second))?;
    appear_as(&a, &far, own(node)).context("by the route that names no source")?;
    ensure_shown(node, "eth0", &[("0.0.0.0/0", "172.18.0.99"), ("::/0", "fd18::99")])
}

fn two_uplinks(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let annex = lab.connect_annex(node)?;
    node.start_agent()?;
    let a = node.add_pod("a")?;
    let there = Family::BOTH.map(|family| annex.node_address(family));
    let mut checks = Checks::default();
    checks.note("the world", appear_as(&a, lab.world(), own(node)));
    checks.note("the annex", appear_as(&a, &annex, there));
    let [v4, v6] = own(node).map(|address| address.to_string());
    checks.note("eth0", ensure_shown(node, "eth0", &[("0.0.0.0/0", &v4), ("::/0", &v6)]));
    let [v4, v6] = there.map(|address| address.to_string());
    checks.note("eth1", ensure_shown(node, "eth1", &[("0.0.0.0/0", &v4), ("::/0", &v6)]));
    checks.finish()
}

/// Wherever the node has it, an address is the node's own to the programs, and no longer when it is gone.
fn known_soon(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let maps = Maps::of(node.bpf_dir());
    let is_known = |address: IpAddr| -> Result<bool> {
        Ok(maps.endpoint(address)?.is_some_and(|endpoint| endpoint.flags & Endpoint::HOST != 0))
    };
    for (device, number) in [("eth0", 77), ("lo", 78)] {
        for (address, bits) in [(format!("192.0.2.{number}"), 32), (format!("2001:db8:77::{number}"), 128)] {
            let parsed: IpAddr = address.parse()?;
            for (change, expected) in [("add", true), ("delete", false)] {
                let nodad = if parsed.is_ipv6() && expected { " nodad" } else { "" };
                shell::ip(node.netns(), &format!("address {change} {address}/{bits} dev {device}{nodad}"))?;
                poll::eventually(&format!("{change} {address} on {device} is followed"), SOON, || {
                    ensure!(is_known(parsed)? == expected, "not yet");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// The node gets other addresses while its Node object still has the old ones, as with DHCP.
fn replace_addresses(node: &Node) -> Result<[IpAddr; 2]> {
    let plan = node.plan();
    shell::ip_batch(
        node.netns(),
        &format!(
            "address delete {}/24 dev eth0\n\
             address add 172.18.0.77/24 dev eth0\n\
             route replace default via {}\n\
             address add fd18::77/64 dev eth0 nodad\n\
             address delete {}/64 dev eth0\n\
             route replace default via {}\n",
            plan.v4, plan.gateway_v4, plan.v6, plan.gateway_v6
        ),
    )?;
    addresses("172.18.0.77", "fd18::77")
}

fn replaced(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    appear_as(&a, lab.world(), own(node)).context("before")?;
    let next = replace_addresses(node)?;
    poll::eventually("new flows take the new address", SOON, || appear_as(&a, lab.world(), next))?;
    let [v4, v6] = next.map(|address| address.to_string());
    ensure_shown(node, "eth0", &[("0.0.0.0/0", &v4), ("::/0", &v6)])?;
    // Pods that come now are wired with what is there, and reach the node and are reached.
    let b = node.add_pod("b")?;
    appear_as(&b, lab.world(), next).context("a pod that came later")?;
    for family in Family::BOTH {
        exchange::exchange(node.as_ref(), &b, family, Protocol::Tcp)?;
    }
    ensure_no_refusal(node)?;
    // The object follows: other nodes find the way again, and nothing is refused then either.
    let mut object = node.object();
    object["status"]["addresses"] = serde_json::json!([
        { "type": "InternalIP", "address": v4 },
        { "type": "InternalIP", "address": v6 },
    ]);
    lab.announce(node.name(), &object)?;
    let c = lab.node(1).add_pod("c")?;
    for family in Family::BOTH {
        poll::eventually("the other node follows", SOON, || {
            exchange::exchange(&c, &a, family, Protocol::Tcp)
        })?;
    }
    lab.nodes().iter().try_for_each(|node| ensure_no_refusal(node))
}

/// Connections end with an error instead of hanging, datagrams go on from the new address.
fn flows_end(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0);
    let a = node.add_pod("a")?;
    let mut connections = Vec::new();
    let mut datagrams = Vec::new();
    for family in Family::BOTH {
        connections.push((family, Connection::open(&a, lab.world(), family)?));
        datagrams.push((family, Exchange::open(&a, lab.world(), family)?));
    }
    for (family, exchange) in &datagrams {
        ensure!(exchange.once()? == node.address(*family), "{family}: not the node's address at first");
    }
    let next = replace_addresses(node)?;
    let mut checks = Checks::default();
    for ((family, exchange), next) in datagrams.iter().zip(next) {
        let follows = poll::eventually("datagrams come from the new address", SOON, || {
            let seen = exchange.once()?;
            ensure!(seen == next, "they still come from {seen}");
            Ok(())
        });
        checks.note(&format!("{family} UDP"), follows);
    }
    for (family, connection) in &mut connections {
        checks.note(&format!("{family} TCP"), connection.ends());
    }
    checks.finish()
}

/// A TCP connection from a pod to the world.
struct Connection {
    pod: TcpStream,
    /// Open until the end: it is not the world that closes.
    _world: TcpStream,
}

impl Connection {
    fn open(pod: &Pod, world: &dyn Station, family: Family) -> Result<Self> {
        let listener = socket::tcp_listener(world.netns(), world.address(family))?;
        let mut client = socket::tcp_connect(pod.netns(), listener.local_addr()?)?;
        let (mut server, _) = socket::tcp_accept(&listener)?;
        client.write_all(b"hello")?;
        server.read_exact(&mut [0; 5]).context("the connection carries nothing")?;
        client.set_nodelay(true)?;
        Ok(Self { pod: client, _world: server })
    }

    /// Writes until the connection is reset. A connection that hangs takes everything and says nothing.
    fn ends(&mut self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < SOON {
            match self.pod.write_all(b"still there?") {
                Ok(()) => std::thread::sleep(Duration::from_millis(50)),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(());
                }
                Err(error) => return Err(error).context("an unexpected end"),
            }
        }
        bail!("no error within {SOON:?}")
    }
}

/// One UDP socket of a pod, and one of the world that echoes.
struct Exchange {
    pod: UdpSocket,
    world: UdpSocket,
}

impl Exchange {
    fn open(pod: &Pod, world: &dyn Station, family: Family) -> Result<Self> {
        let server = socket::udp(world.netns(), world.address(family))?;
        let client = socket::udp(pod.netns(), family.unspecified())?;
        client.connect(server.local_addr()?)?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        }
        Ok(Self { pod: client, world: server })
    }

    /// One datagram there and back; returns whom the world saw.
    fn once(&self) -> Result<IpAddr> {
        self.pod.send(b"ping")?;
        let mut buffer = [0; 16];
        let (_, peer) = socket::retry(|| self.world.recv_from(&mut buffer)).context("nothing arrived")?;
        self.world.send_to(b"pong", peer).context("no way back")?;
        socket::retry(|| self.pod.recv(&mut buffer)).context("no answer came")?;
        Ok(peer.ip())
    }
}

//! How pods appear outside: under the node's address, unless they are exempt, and never mixed up with each other.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Protocol, Routing, Station,
    maps::Maps,
    poll,
    traffic::{exchange, socket},
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    let exempt = spec().flag("--exempt-cidr=203.0.113.0/24").flag("--exempt-cidr=2001:db8:1::/64");
    vec![
        scenario("masquerade::exempt_prefixes_see_pod_addresses", exempt, exempt_prefixes),
        scenario("masquerade::switched_off", spec().flag("--masquerade=false"), exempt_prefixes),
        scenario("masquerade::the_world_reaches_pods_that_it_has_a_route_to", spec(), inbound),
        scenario("masquerade::one_port_of_many_pods", spec(), one_port_of_many_pods),
        scenario("masquerade::a_port_of_the_host_is_not_taken", spec(), port_of_the_host),
        scenario("masquerade::errors_come_back_to_the_pod", spec(), errors_come_back),
        scenario("masquerade::flows_are_listed_and_forgotten_with_the_pod", spec(), flows_are_listed),
    ]
}

/// With a way back, the world and the pod see each other as they are.
fn exempt_prefixes(lab: &mut Lab) -> Result<()> {
    lab.route_at_gateway(lab.node(0))?;
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        for protocol in Protocol::ALL {
            let seen = exchange::exchange(&a, lab.world(), family, protocol).and_then(|seen| {
                ensure!(seen == a.address(family), "the world saw {seen}");
                Ok(())
            });
            checks.note(&format!("{family} {protocol}"), seen);
        }
    }
    checks.finish()
}

/// Replies to what the world has opened leave under the pod's address, though the pod's own flows are masqueraded.
fn inbound(lab: &mut Lab) -> Result<()> {
    lab.route_at_gateway(lab.node(0))?;
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        for protocol in Protocol::ALL {
            let seen = exchange::exchange(lab.world(), &a, family, protocol).and_then(|seen| {
                ensure!(seen == lab.world().address(family), "the pod saw {seen}");
                Ok(())
            });
            checks.note(&format!("in, {family} {protocol}"), seen);
            let seen = exchange::exchange(&a, lab.world(), family, protocol).and_then(|seen| {
                ensure!(seen == lab.node(0).address(family), "the world saw {seen}");
                Ok(())
            });
            checks.note(&format!("out, {family} {protocol}"), seen);
        }
    }
    checks.finish()
}

/// A UDP socket on a fixed port of a station. Each port is used once: a child that another test has just forked may hold
/// a closed socket open for a moment.
fn bound(at: &dyn Station, family: Family, port: u16) -> Result<UdpSocket> {
    let socket = at.netns().enter(|| UdpSocket::bind((family.unspecified(), port)))??;
    socket.set_read_timeout(Some(socket::PATIENCE))?;
    Ok(socket)
}

/// Sends the name of each sender from its socket; then answers each, and checks who gets which answer.
fn names_come_back(senders: &[(String, UdpSocket)], server: &UdpSocket) -> Result<Vec<SocketAddr>> {
    let to = server.local_addr()?;
    let mut peers = Vec::new();
    let mut buffer = [0; 64];
    for (name, socket) in senders {
        socket.send_to(name.as_bytes(), to).with_context(|| format!("{name} cannot send"))?;
        let (len, peer) = socket::retry(|| server.recv_from(&mut buffer))
            .with_context(|| format!("nothing came from {name}"))?;
        ensure!(buffer[..len] == *name.as_bytes(), "{name} arrived as something else");
        peers.push(peer);
    }
    for (peer, (name, _)) in peers.iter().zip(senders) {
        server.send_to(name.as_bytes(), peer)?;
    }
    for (name, socket) in senders {
        let len = socket::retry(|| socket.recv(&mut buffer))
            .with_context(|| format!("no answer came back to {name}"))?;
        ensure!(buffer[..len] == *name.as_bytes(), "{name} got the answer of another");
    }
    Ok(peers)
}

fn one_port_of_many_pods(lab: &mut Lab) -> Result<()> {
    let pods = (0..5).map(|n| lab.node(0).add_pod(&format!("p{n}"))).collect::<Result<Vec<_>>>()?;
    for (family, port) in [(Family::V4, 40_004), (Family::V6, 40_006)] {
        let server = socket::udp(lab.world().netns(), lab.world().address(family))?;
        let senders = pods.iter().map(|pod| Ok((pod.name().to_owned(), bound(pod, family, port)?)));
        let senders = senders.collect::<Result<Vec<_>>>()?;
        let peers = names_come_back(&senders, &server)?;
        let node = lab.node(0).address(family);
        ensure!(peers.iter().all(|peer| peer.ip() == node), "not all from {node}: {peers:?}");
        ensure!(peers.iter().any(|peer| peer.port() == port), "the first pod could keep its port: {peers:?}");
        // Once more on the same flows: a translation does not change while it is in use.
        ensure!(names_come_back(&senders, &server)? == peers, "a flow got another port");
    }
    Ok(())
}

/// A pod and the node itself talk from one port to one port of the world, whoever was first.
fn port_of_the_host(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let node: &dyn Station = lab.node(0).as_ref();
    for (family, base) in [(Family::V4, 41_004), (Family::V6, 41_006)] {
        for (port, host_first) in [(base, true), (base + 1, false)] {
            let server = socket::udp(lab.world().netns(), lab.world().address(family))?;
            let mut senders = vec![
                ("node".to_owned(), bound(node, family, port)?),
                ("pod".to_owned(), bound(&a, family, port)?),
            ];
            if !host_first {
                senders.reverse();
            }
            let peers = names_come_back(&senders, &server).with_context(|| {
                format!("{family}, the host {}", if host_first { "first" } else { "second" })
            })?;
            ensure!(peers[0] != peers[1], "both appear as {}", peers[0]);
        }
    }
    Ok(())
}

/// The world refuses a datagram; the error must find its way to the pod's socket.
fn errors_come_back(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    for family in Family::BOTH {
        let closed = {
            let socket = socket::udp(lab.world().netns(), lab.world().address(family))?;
            socket.local_addr()?
        };
        let client = socket::udp(a.netns(), family.unspecified())?;
        client.connect(closed)?;
        client.send(b"anybody there?")?;
        let error = socket::retry(|| client.recv(&mut [0; 16])).expect_err("nobody can have answered");
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{family}: {error} instead of a refusal");
    }
    Ok(())
}

fn flows_are_listed(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let maps = Maps::of(lab.node(0).bpf_dir());
    let addresses: Vec<IpAddr> = Family::BOTH.map(|family| a.address(family)).to_vec();
    for family in Family::BOTH {
        exchange::exchange(&a, lab.world(), family, Protocol::Udp)?;
    }
    let of_pod = || -> Result<(usize, usize)> {
        let flows = maps.conntrack()?;
        let backs = maps.nat()?;
        Ok((
            flows.iter().filter(|(key, _)| addresses.contains(&key.src.into())).count(),
            backs.iter().filter(|(_, back)| addresses.contains(&back.address.into())).count(),
        ))
    };
    ensure!(of_pod()? == (2, 2), "one flow of each family, not {:?}", of_pod()?);
    a.delete()?;
    // Not at once: they go with the next collection, which runs every ten seconds.
    poll::eventually("the flows are forgotten", Duration::from_secs(15), || {
        ensure!(of_pod()? == (0, 0), "flows of a deleted pod are left: {:?}", of_pod()?);
        Ok(())
    })
}

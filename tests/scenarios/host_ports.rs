//! Ports of the node that lead to pods: who reaches them and is seen as whom, and what becomes of them as pods come and go.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Routing, Station, poll,
    traffic::{exchange, socket},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let one = || LabSpec::nodes(1, Routing::Native);
    let mut all = vec![
        scenario("host_ports::a_path_too_narrow_is_found_out", one().world_mtu(1300), narrow_path),
        scenario("host_ports::without_masquerade", one().flag("--masquerade=false"), from_outside),
        scenario("host_ports::errors_come_back_to_the_client", one(), errors_come_back),
        scenario("host_ports::an_address_of_the_node_can_be_named", one(), named_address),
        scenario("host_ports::one_port_is_one_pods", one(), conflicts),
        scenario("host_ports::they_outlive_the_agent_and_pass_to_the_next_pod", one(), handed_over),
    ];
    for (name, routing) in [("native", Routing::Native), ("tunnel", Routing::Tunnel)] {
        let spec = LabSpec::nodes(2, routing);
        all.push(scenario(format!("host_ports::everybody_reaches_them::{name}"), spec, everybody));
        let spec = LabSpec::nodes(2, routing).routed();
        all.push(scenario(format!("host_ports::everybody_reaches_them::{name}_routed"), spec, everybody));
    }
    all
}

/// The node's port, and the pod's.
const HOST: u16 = 8080;
const POD: u16 = 80;

/// A runtime's wish for the usual port of TCP and UDP.
fn usual() -> Value {
    json!([
        { "hostPort": HOST, "containerPort": POD, "protocol": "tcp" },
        { "hostPort": HOST, "containerPort": POD, "protocol": "udp" },
    ])
}

fn add(node: &Arc<Node>, name: &str, mappings: &Value) -> Result<Pod> {
    node.pod(name).config("runtimeConfig", json!({ "portMappings": mappings })).add()
}

/// Carries data from a client to a host port and back; returns whom the pod saw.
fn tcp(client: &dyn Station, to: SocketAddr, pod: &Pod) -> Result<IpAddr> {
    let listener = socket::tcp_listener_at(pod.netns(), (Family::of(to.ip()).unspecified(), POD).into())?;
    exchange::tcp_through(client, to, &listener, 200_000)
}

/// The same with datagrams, of which some go in fragments.
fn udp(client: &dyn Station, to: SocketAddr, pod: &Pod) -> Result<IpAddr> {
    let server = socket::udp_at(pod.netns(), (Family::of(to.ip()).unspecified(), POD).into())?;
    exchange::udp_through(client, to, &server, &[1, 700, 4000, 9, 20_000])
}

/// Both protocols and families from one client; `expected` tells whom the pod should see.
fn reaches(
    checks: &mut Checks,
    client: &dyn Station,
    (node, pod): (&Node, &Pod),
    expected: impl Fn(Family) -> IpAddr,
) {
    for family in Family::BOTH {
        let to = SocketAddr::new(node.address(family), HOST);
        for (protocol, talked) in [("TCP", tcp(client, to, pod)), ("UDP", udp(client, to, pod))] {
            let seen = talked.and_then(|seen| {
                ensure!(seen == expected(family), "the pod saw {seen}, not {}", expected(family));
                Ok(())
            });
            checks.note(&format!("{} {family} {protocol}", client.name()), seen);
        }
    }
}

fn everybody(lab: &mut Lab) -> Result<()> {
    let (node, other) = (lab.node(0).clone(), lab.node(1).clone());
    let pod = add(&node, "server", &usual())?;
    let (neighbour, remote) = (node.add_pod("neighbour")?, other.add_pod("remote")?);
    let mut checks = Checks::default();
    let at = (node.as_ref(), &pod);
    reaches(&mut checks, lab.world(), at, |family| lab.world().address(family));
    reaches(&mut checks, lab.gateway(), at, |family| {
        // Its address on the node's segment, not the world's.
        let plan = node.plan();
        match family {
            Family::V4 => plan.gateway_v4.into(),
            Family::V6 => plan.gateway_v6.into(),
        }
    });
    reaches(&mut checks, &neighbour, at, |family| neighbour.address(family));
    reaches(&mut checks, &remote, at, |family| remote.address(family));
    reaches(&mut checks, other.as_ref(), at, |family| other.address(family));
    // To itself the pod looks like the node: nobody takes packets from their own address.
    reaches(&mut checks, &pod, at, |family| node.address(family));
    // And what is no host port stays the node's own.
    for family in Family::BOTH {
        let own = socket::tcp_listener(node.netns(), node.address(family))?;
        let connected = socket::tcp_connect(remote.netns(), own.local_addr()?);
        checks.note(&format!("{family}, a port of the node itself"), connected);
    }
    checks.finish()
}

fn from_outside(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let pod = add(&node, "server", &usual())?;
    let mut checks = Checks::default();
    reaches(&mut checks, lab.world(), (&node, &pod), |family| lab.world().address(family));
    reaches(&mut checks, &pod, (&node, &pod), |family| node.address(family));
    checks.finish()
}

/// The answers do not fit: the router's errors about them are understood by the pod. (A datagram that met one is lost.)
fn narrow_path(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let pod = add(&node, "server", &usual())?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let talked = tcp(lab.world(), (node.address(family), HOST).into(), &pod);
        checks.note(&format!("{family}"), talked);
    }
    checks.finish()
}

/// Nobody listens in the pod: the client is told, whoever it is.
fn errors_come_back(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let pod = add(&node, "server", &usual())?;
    let neighbour = node.add_pod("neighbour")?;
    let clients: [&dyn Station; 3] = [lab.world(), &neighbour, &pod];
    let mut checks = Checks::default();
    for client in clients {
        for family in Family::BOTH {
            let socket = socket::udp(client.netns(), family.unspecified())?;
            socket.connect((node.address(family), HOST))?;
            socket.send(b"anybody there?")?;
            let refused = || -> Result<()> {
                let error =
                    socket::retry(|| socket.recv(&mut [0; 16])).expect_err("nobody can have answered");
                ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error} instead of a refusal");
                Ok(())
            };
            checks.note(&format!("{} {family} UDP", client.name()), refused());
            let refused = client.netns().enter(|| {
                std::net::TcpStream::connect_timeout(&(node.address(family), HOST).into(), socket::PATIENCE)
            })?;
            let kind = refused.err().map(|error| error.kind());
            let refused = || -> Result<()> {
                ensure!(kind == Some(ErrorKind::ConnectionRefused), "{kind:?} instead of a refusal");
                Ok(())
            };
            checks.note(&format!("{} {family} TCP", client.name()), refused());
        }
    }
    checks.finish()
}

/// A mapping for one address of the node is for that one only.
fn named_address(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let mapping = |address: IpAddr| json!({ "hostPort": HOST, "containerPort": POD, "protocol": "tcp", "hostIP": address });
    let v4 = add(&node, "v4", &json!([mapping(node.address(Family::V4))]))?;
    let v6 = add(&node, "v6", &json!([mapping(node.address(Family::V6))]))?;
    for (family, pod) in [(Family::V4, &v4), (Family::V6, &v6)] {
        let seen = tcp(lab.world(), (node.address(family), HOST).into(), pod)?;
        ensure!(seen == lab.world().address(family), "{family}: the pod saw {seen}");
    }
    v4.delete()?;
    let refused = socket::tcp_connect(lab.world().netns(), (node.address(Family::V4), HOST).into());
    ensure!(refused.is_err(), "the other pod's mapping serves an address that it does not name");
    Ok(())
}

fn conflicts(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let first = add(&node, "first", &usual())?;
    ensure!(first.check()?.status.success(), "CHECK finds fault with what ADD has made");
    let wish = |mappings: Value| json!({ "portMappings": mappings });
    let second = node.pod("second").config("runtimeConfig", wish(usual())).prepare()?;
    let (code, message) = second.verb("ADD")?.failure()?;
    ensure!(code == 11, "code {code}: {message}");
    let listed = node.hypha(&["endpoint", "list"])?;
    ensure!(!listed.contains(second.netns().name()), "something is left of it:\n{listed}");
    // One address of the node is part of all of them.
    let named = json!([{ "hostPort": HOST, "containerPort": 81, "protocol": "udp", "hostIP": node.address(Family::V6) }]);
    let third = node.pod("third").config("runtimeConfig", wish(named)).prepare()?;
    third.verb("ADD")?.failure()?;
    let sctp = json!([{ "hostPort": 7, "containerPort": 8, "protocol": "sctp" }]);
    let fourth = node.pod("fourth").config("runtimeConfig", wish(sctp)).prepare()?;
    ensure!(fourth.verb("ADD")?.failure()?.0 == 2, "SCTP with two ports is not supported");
    // CHECK compares.
    let mut config = first.prepared().config().clone();
    config["prevResult"] = first.result().clone();
    config["runtimeConfig"] = wish(json!([{ "hostPort": HOST, "containerPort": POD, "protocol": "tcp" }]));
    let (code, message) = first.prepared().verb_with("CHECK", &config)?.failure()?;
    ensure!(code == 100, "code {code}: {message}");

    let ports = node.hypha(&["hostport", "list"])?;
    ensure!(ports.matches(&format!("{HOST}")).count() == 4, "two protocols, two families:\n{ports}");
    let shown = node.hypha(&["endpoint", "get", &first.address(Family::V4).to_string()])?;
    ensure!(shown.contains(&format!("*:{HOST}/udp to {POD}")), "the endpoint does not show them:\n{shown}");
    first.delete()?;
    let pod = second.add()?;
    let mut checks = Checks::default();
    reaches(&mut checks, lab.world(), (&node, &pod), |family| lab.world().address(family));
    checks.finish()
}

/// A client that never stops and never changes its port: the classic way to be stuck with a pod that is gone.
fn handed_over(lab: &mut Lab) -> Result<()> {
    let node = lab.node(0).clone();
    let mut pod = add(&node, "p0", &usual())?;
    let clients: Vec<(SocketAddr, UdpSocket)> = Family::BOTH
        .map(|family| -> Result<_> {
            let socket = socket::udp(lab.world().netns(), family.unspecified())?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok((SocketAddr::new(node.address(family), HOST), socket))
        })
        .into_iter()
        .collect::<Result<_>>()?;
    for round in 1..=3 {
        for (to, client) in &clients {
            let any = if to.is_ipv4() { Family::V4 } else { Family::V6 }.unspecified();
            let server = socket::udp_at(pod.netns(), (any, POD).into())?;
            server.set_read_timeout(Some(Duration::from_millis(100)))?;
            poll::eventually("a datagram gets to the pod of this round", Duration::from_secs(2), || {
                client.send_to(&[round], to)?;
                let mut byte = [0];
                let (_, peer) = server.recv_from(&mut byte)?;
                ensure!(byte == [round], "it is an old one");
                server.send_to(&byte, peer)?;
                let (_, from) = client.recv_from(&mut byte)?;
                ensure!(from == *to, "the answer came from {from}");
                Ok(())
            })?;
        }
        if round == 2 {
            node.kill_agent()?;
            let mut checks = Checks::default();
            reaches(&mut checks, lab.world(), (&node, &pod), |family| lab.world().address(family));
            node.start_agent()?;
            reaches(&mut checks, lab.world(), (&node, &pod), |family| lab.world().address(family));
            checks.finish()?;
        }
        // Nobody has the port for a moment, and the client goes on.
        pod.delete()?;
        clients.iter().try_for_each(|(to, client)| client.send_to(&[0], to).map(drop))?;
        pod = add(&node, &format!("p{round}"), &usual())?;
    }
    Ok(())
}

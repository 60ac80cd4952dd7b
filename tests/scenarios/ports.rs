//! Masquerade ports when they are scarce, and when the host wants the same ones.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{DropReason, maps::MASQUERADE_PORTS, packet::TCP};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Routing, Station,
    maps::Maps,
    netns::Netns,
    poll,
    traffic::socket::{self, PATIENCE, retry},
};
use libtest_mimic::Trial;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    connector::Connector,
    support::{Checks, scenario},
};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    let full = || {
        spec()
            // A closed connection's port is free again after a second instead of half a minute.
            .flag("--conntrack-timeout=tcp-closing=1s")
            .flag("--conntrack-timeout=tcp-opening=1s")
    };
    let mut scenarios = Vec::new();
    for family in Family::BOTH {
        let name = |what: &str| format!("ports::{what} ({family})");
        scenarios.push(scenario(name("every_port_towards_one_remote_end"), full(), move |lab| {
            every_port(lab, family)
        }));
        scenarios.push(scenario(name("host_and_pod_connect_from_one_port"), spec(), move |lab| {
            one_port_for_host_and_pod(lab, family)
        }));
        scenarios.push(scenario(name("services_of_the_host_are_not_hijacked"), spec(), move |lab| {
            services_of_the_host(lab, family)
        }));
    }
    scenarios
}

/// As many connections as there are ports, from several pods whose own choices of ports collide: the search finds the last free
/// one. The next is refused, which is said, and served as soon as one of the others has ended.
fn every_port(lab: &mut Lab, family: Family) -> Result<()> {
    const PORTS: usize = MASQUERADE_PORTS as usize;
    const PODS: usize = 4;
    let pods = (0..PODS).map(|n| lab.node(0).add_pod(&format!("p{n}"))).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        pod.netns().sysctl("ipv4/ip_local_port_range", "20000 60999")?;
    }
    let maps = Maps::of(lab.node(0).bpf_dir());
    let listener = listen_without_accepting(lab.world().netns(), lab.world().address(family))?;
    let to = listener.local_addr()?.as_socket().context("a listener without an address")?;
    let mut held = Vec::new();
    for pod in &pods {
        held.push(Connector::open(pod, to, PORTS / PODS)?);
    }
    ensure!(maps.dropped(DropReason::PortsExhausted)? == 0, "a port was free all the time");
    let claimed = maps.nat()?.iter().filter(|(key, _)| key.protocol == TCP).count();
    ensure!(claimed == PORTS, "{claimed} ports are claimed");

    ensure!(connect(&pods[0], to).is_err(), "a connection without a port");
    ensure!(maps.dropped(DropReason::PortsExhausted)? > 0, "the refusal was not counted");
    poll::eventually("the agent tells it", Duration::from_secs(5), || {
        let log = std::fs::read_to_string(lab.node(0).agent_log())?;
        ensure!(log.contains("every masquerade port"), "nothing about it in the agent's log");
        Ok(())
    })?;

    held[2].reset_one()?;
    poll::eventually("the port is used again", Duration::from_secs(15), || connect(&pods[3], to).map(drop))
}

fn connect(pod: &Pod, to: SocketAddr) -> Result<TcpStream> {
    Ok(pod.netns().enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)))??)
}

/// A listener with room for every connection in its queue: nobody has to hold the world's ends.
fn listen_without_accepting(netns: &Netns, address: IpAddr) -> Result<Socket> {
    netns.sysctl("core/somaxconn", "65535")?;
    let listen = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(address, 0).into())?;
        socket.listen(65_535)?;
        Ok(socket)
    };
    Ok(netns.enter(listen)??)
}

/// The host and a pod connect to one remote end from one port, whoever is first, and both are served.
fn one_port_for_host_and_pod(lab: &mut Lab, family: Family) -> Result<()> {
    let pod = lab.node(0).add_pod("a")?;
    let node: &dyn Station = lab.node(0).as_ref();
    let mut checks = Checks::default();
    for (port, order) in [(41_100, [node, &pod as &dyn Station]), (41_101, [&pod, node])] {
        let first = order[0].name().to_owned();
        checks.note(&format!("TCP, {first} first"), streams_from_one_port(lab, family, order, port));
        checks.note(&format!("echo, {first} first"), echoes_with_one_identifier(lab, family, order, port));
    }
    checks.finish()
}

/// Each sends its name on its connection and gets it back, twice: the second time both are there.
fn streams_from_one_port(lab: &Lab, family: Family, order: [&dyn Station; 2], port: u16) -> Result<()> {
    let listener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
    let to = listener.local_addr()?;
    let mut pairs = Vec::new();
    for station in order {
        let connect = || -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(family.unspecified(), port).into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        };
        let client =
            station.netns().enter(connect)?.with_context(|| format!("{} connects", station.name()))?;
        let (server, _) = socket::tcp_accept(&listener)?;
        pairs.push((station.name(), client, server));
    }
    let peers = [pairs[0].2.peer_addr()?, pairs[1].2.peer_addr()?];
    ensure!(peers[0] != peers[1] && peers[0].ip() == peers[1].ip(), "they appear as {peers:?}");
    for _ in 0..2 {
        for (name, client, server) in &mut pairs {
            let mut buffer = vec![0; name.len()];
            client.write_all(name.as_bytes())?;
            server.read_exact(&mut buffer).with_context(|| format!("{name} is not heard"))?;
            server.write_all(&buffer)?;
            client.read_exact(&mut buffer).with_context(|| format!("{name} gets no answer"))?;
            ensure!(buffer == name.as_bytes(), "{name} got the answer of another");
        }
    }
    Ok(())
}

/// The same with pings that have one identifier.
fn echoes_with_one_identifier(lab: &Lab, family: Family, order: [&dyn Station; 2], id: u16) -> Result<()> {
    let to = SocketAddr::new(lab.world().address(family), 0);
    let mut sockets = Vec::new();
    for station in order {
        station.netns().sysctl("ipv4/ping_group_range", "0 0")?;
        let open = || -> io::Result<Socket> {
            let protocol = if family == Family::V4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(protocol))?;
            // The "port" of such a socket is its identifier.
            socket.bind(&SocketAddr::new(family.unspecified(), id).into())?;
            socket.connect(&to.into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        sockets.push((station.name(), station.netns().enter(open)??));
    }
    for round in 0..2_u8 {
        for (name, socket) in &sockets {
            let request = if family == Family::V4 { 8 } else { 128 };
            socket.send(&[&[request, 0, 0, 0, 0, 0, 0, round], name.as_bytes()].concat())?;
            let mut answer = [0; 64];
            let length =
                retry(|| (&*socket).read(&mut answer)).with_context(|| format!("{name} gets no answer"))?;
            ensure!(answer[8..length] == *name.as_bytes(), "{name} got the answer of another");
        }
    }
    Ok(())
}

/// The host serves many ports of the masquerade range; pods send from just these ports. Nobody takes anything from the other.
fn services_of_the_host(lab: &mut Lab, family: Family) -> Result<()> {
    const FIRST: u16 = 42_000;
    const COUNT: u16 = 50;
    let pod = lab.node(0).add_pod("a")?;
    let node = lab.node(0);
    let serve = || -> io::Result<Vec<(TcpListener, UdpSocket)>> {
        let at = |port| SocketAddr::new(family.unspecified(), port);
        (FIRST..FIRST + COUNT)
            .map(|port| Ok((TcpListener::bind(at(port))?, UdpSocket::bind(at(port))?)))
            .collect()
    };
    let services = node.netns().enter(serve)??;
    let listener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
    let sink = socket::udp(lab.world().netns(), lab.world().address(family))?;
    let mut kept = Vec::new();
    for port in FIRST..FIRST + COUNT {
        let connect = || -> io::Result<(TcpStream, UdpSocket)> {
            let at = SocketAddr::new(family.unspecified(), port);
            let stream = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
            stream.bind(&at.into())?;
            stream.connect_timeout(&listener.local_addr()?.into(), PATIENCE)?;
            let datagrams = UdpSocket::bind(at)?;
            datagrams.send_to(b"hello", sink.local_addr()?)?;
            Ok((stream.into(), datagrams))
        };
        kept.push(pod.netns().enter(connect)?.with_context(|| format!("the pod connects from {port}"))?);
        let (_, peer) = socket::tcp_accept(&listener)?;
        ensure!(
            !(FIRST..FIRST + COUNT).contains(&peer.port()),
            "the pod appears as {peer}, a service of the host"
        );
        let (_, peer) = retry(|| sink.recv_from(&mut [0; 16]))?;
        ensure!(
            !(FIRST..FIRST + COUNT).contains(&peer.port()),
            "the pod appears as {peer}, a service of the host"
        );
    }
    for (port, (tcp, udp)) in (FIRST..).zip(&services) {
        let to = SocketAddr::new(node.address(family), port);
        let _client = socket::tcp_connect(lab.world().netns(), to)?;
        tcp.set_nonblocking(false)?;
        socket::tcp_accept(tcp).with_context(|| format!("the host's listener on {port}"))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        sink.send_to(b"to the host", to)?;
        retry(|| udp.recv(&mut [0; 16])).with_context(|| format!("the host's datagrams on {port}"))?;
    }
    Ok(())
}

//! ICMP errors through masquerade, with real routers and real sockets: path MTU discovery, traceroute, refusals, both ways.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{Forward, Outcome, Program};
use hypha_lab::{
    Family, Lab, LabSpec, Routing, Station,
    maps::Maps,
    poll,
    traffic::{
        icmp::EchoSocket,
        mtu,
        raw::UdpFrame,
        socket::{self, retry},
        tools, transfer,
    },
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(1, routing);
        trials.extend([
            scenario(format!("errors::{routing}::tcp_learns_the_path_mtu"), spec(), tcp_learns_the_path_mtu),
            scenario(format!("errors::{routing}::udp_learns_the_path_mtu"), spec(), udp_learns_the_path_mtu),
            scenario(format!("errors::{routing}::traceroute_shows_every_hop"), spec(), traceroute),
        ]);
    }
    let spec = || LabSpec::nodes(1, Routing::Native);
    trials.extend([
        scenario("errors::a_closed_port_of_a_pod_refuses_the_world", spec(), closed_port),
        scenario("errors::a_pod_tells_the_world_its_path_mtu", spec(), pod_tells_its_mtu),
    ]);
    trials
}

/// What the router sends on: less than the pods' MTU and all before it, enough for IPv6.
const NARROW: u32 = 1300;

/// How many errors the node has translated towards its pods.
fn translated(lab: &Lab) -> Result<u64> {
    let maps = Maps::of(lab.node(0).bpf_dir());
    Ok(maps.counter(Program::FromUplink, Outcome::Forward(Forward::RelatedError))?.packets)
}

/// Bulk data from a pod that believes in its own MTU: it gets through because the router's error reaches the pod.
fn tcp_learns_the_path_mtu(lab: &mut Lab) -> Result<()> {
    const BYTES: u64 = 5_000_000;
    let a = lab.node(0).add_pod("a")?;
    let beyond = lab.build_beyond(NARROW)?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = || -> Result<()> {
            let (before, errors) = (mtu::known(&a, &beyond, family)?, translated(lab)?);
            ensure!(before > NARROW, "the pod knows {before} bytes already");
            let up = transfer::upload(&a, &beyond, family, BYTES)?;
            ensure!(up.peer == lab.node(0).address(family), "came from {}", up.peer);
            let learnt = mtu::known(&a, &beyond, family)?;
            ensure!(learnt == NARROW, "the pod has learnt {learnt} bytes");
            ensure!(translated(lab)? > errors, "no error was translated");
            transfer::download(&a, &beyond, family, BYTES).map(drop)
        };
        checks.note(&format!("{family}"), outcome());
    }
    checks.finish()
}

/// A program that forbids fragments is told the size.
fn udp_learns_the_path_mtu(lab: &mut Lab) -> Result<()> {
    const LARGE: u32 = 1400;
    let a = lab.node(0).add_pod("a")?;
    let beyond = lab.build_beyond(NARROW)?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = || -> Result<()> {
            let found = mtu::discover(&a, &beyond, family, LARGE)?;
            ensure!(found == NARROW, "found {found}");
            let refuses = |size| mtu::is_refused(&a, &beyond, family, size);
            ensure!(refuses(NARROW + 1)?, "the kernel sends more than it knows to arrive");
            ensure!(!refuses(NARROW)?, "the kernel refuses what would arrive");
            Ok(())
        };
        checks.note(&format!("{family}"), outcome());
    }
    checks.finish()
}

fn traceroute(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let beyond = lab.build_beyond(NARROW)?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let plan = lab.node(0).plan();
        let gateway: IpAddr = match family {
            Family::V4 => plan.gateway_v4.into(),
            Family::V6 => plan.gateway_v6.into(),
        };
        let far = beyond.address(family);
        let expected = [lab.node(0).address(family), gateway, beyond.router(family), far].map(Some).to_vec();
        // Datagrams to ports that nobody listens on, echo requests, connection requests.
        for method in ["-U", "-I", "-T"] {
            let outcome = tools::traceroute(a.netns(), far, method).and_then(|hops| {
                ensure!(hops == expected, "saw {hops:?} instead of {expected:?}");
                Ok(())
            });
            checks.note(&format!("{family} by {method}"), outcome);
        }
    }
    checks.finish()
}

/// A flow between a pod's socket and one of the world's, both connected.
fn connected(a: &dyn Station, world: &dyn Station, family: Family) -> Result<(UdpSocket, UdpSocket)> {
    let server = socket::udp(world.netns(), world.address(family))?;
    let client = socket::udp(a.netns(), family.unspecified())?;
    client.connect(server.local_addr()?).context("the pod has no route")?;
    client.send(b"question")?;
    let (_, peer) = retry(|| server.recv_from(&mut [0; 16])).context("the question did not arrive")?;
    server.connect(peer)?;
    Ok((client, server))
}

/// The answer comes too late, and the world is told.
fn closed_port(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = || -> Result<()> {
            let (client, server) = connected(&a, lab.world(), family)?;
            drop(client);
            server.send(b"answer")?;
            match retry(|| server.recv(&mut [0; 16])) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => anyhow::bail!("the world's socket got {other:?}"),
            }
        };
        checks.note(&format!("{family}"), outcome());
    }
    checks.finish()
}

/// Whatever network is inside of the pod has a narrow link: the world's socket is told, though it talks to the node's address.
fn pod_tells_its_mtu(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let outcome = || -> Result<()> {
            let (client, server) = connected(&a, lab.world(), family)?;
            let before = mtu::of(&server, family)?;
            ensure!(before > NARROW, "the world knows {before} bytes already");
            let quote = answer(&server, SocketAddr::new(a.address(family), client.local_addr()?.port()))?;
            let number = if family == Family::V4 { (3, 4) } else { (2, 0) };
            EchoSocket::open(a.netns(), family)?.error(
                lab.world().address(family),
                number,
                NARROW,
                &quote,
            )?;
            poll::eventually("the world has learnt the path MTU", Duration::from_secs(5), || {
                let learnt = mtu::of(&server, family)?;
                ensure!(learnt == NARROW, "it believes in {learnt} bytes");
                Ok(())
            })
        };
        checks.note(&format!("{family}"), outcome());
    }
    checks.finish()
}

/// The start of the server's answer as the pod sees it.
fn answer(server: &UdpSocket, pod: SocketAddr) -> Result<Vec<u8>> {
    const ETHERNET: usize = 14;
    let server = server.local_addr()?;
    let (src, dst, ports) = (server.ip(), pod.ip(), (server.port(), pod.port()));
    let frame = UdpFrame { macs: ([2; 6], [2; 6]), src, dst, ttl: 62, ports }.build(&[7; 64])?;
    Ok(frame[ETHERNET..].to_vec())
}

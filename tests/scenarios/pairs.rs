//! Both halves of a flow live and die together: when the maps are full, and when pods come and go.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{
    DropReason,
    flow::{flow_of, way_back},
};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Routing, Station,
    maps::Maps,
    poll,
    traffic::socket::{self, retry},
};
use libtest_mimic::Trial;

use crate::support::scenario;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    let small = move || spec().flag(&format!("--conntrack-max={SMALL}"));
    let trial = |family: Family| {
        [
            scenario(format!("pairs::connections_survive_a_flood ({family})"), small(), move |lab| {
                connections_survive_a_flood(lab, family)
            }),
            scenario(format!("pairs::a_deleted_pod_takes_its_flows_along ({family})"), spec(), move |lab| {
                a_deleted_pod_takes_its_flows_along(lab, family)
            }),
            scenario(format!("pairs::an_address_inherits_nothing ({family})"), spec(), move |lab| {
                an_address_inherits_nothing(lab, family)
            }),
        ]
    };
    Family::BOTH.into_iter().flat_map(trial).collect()
}

/// Flows that fit, for a flood that is over in a moment.
const SMALL: usize = 4096;

/// Every translated flow has its own way back, every way back its flow.
fn no_half_is_alone(maps: &Maps<'_>) -> Result<()> {
    let flows: BTreeMap<_, _> = maps.conntrack()?.into_iter().collect();
    let backs: BTreeMap<_, _> = maps.nat()?.into_iter().collect();
    for (key, flow) in flows.iter().filter(|(_, flow)| !flow.is_inbound()) {
        let back = backs.get(&way_back(key, flow.nat_address, flow.nat_port));
        ensure!(
            back.is_some_and(|back| (back.address, back.port) == (key.src, key.src_port)),
            "a flow without its own way back: {key:?} {flow:?} {back:?}"
        );
    }
    for (key, back) in &backs {
        ensure!(
            flows.contains_key(&flow_of(key, back.address, back.port)),
            "a way back without flow: {key:?}"
        );
    }
    Ok(())
}

/// Connections between a pod and the world.
struct Connections {
    pairs: Vec<(TcpStream, TcpStream)>,
}

impl Connections {
    fn open(lab: &Lab, pod: &Pod, family: Family, count: usize) -> Result<Self> {
        let listener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
        let open = || {
            let client = socket::tcp_connect(pod.netns(), listener.local_addr()?)?;
            Ok((client, socket::tcp_accept(&listener)?.0))
        };
        Ok(Self { pairs: (0..count).map(|_| open()).collect::<Result<_>>()? })
    }

    /// A byte there and back on each.
    fn all_talk(&mut self) -> Result<()> {
        for (number, (client, server)) in self.pairs.iter_mut().enumerate() {
            let mut exchange = || -> io::Result<()> {
                client.write_all(b"x")?;
                server.read_exact(&mut [0])?;
                server.write_all(b"y")?;
                client.read_exact(&mut [0])
            };
            exchange().with_context(|| format!("connection {number} is dead"))?;
        }
        Ok(())
    }
}

/// Datagrams from a pod to `count` ports of the world where nobody listens, none of which is ever answered.
fn flood(pod: &Pod, lab: &Lab, family: Family, first: u16, count: usize) -> Result<()> {
    let send = || -> io::Result<()> {
        let socket = UdpSocket::bind((family.unspecified(), 0))?;
        for port in (first..).take(count) {
            // An earlier datagram's refusal may be what this one is told.
            let _refused = socket.send_to(b"flood", (lab.world().address(family), port));
        }
        Ok(())
    };
    Ok(pod.netns().enter(send)??)
}

/// Twice as many flows as the maps hold, none of them answered. Established connections go on, new flows fail for a moment and are
/// served when the agent has made room; at no time is there half a pair.
fn connections_survive_a_flood(lab: &mut Lab, family: Family) -> Result<()> {
    let pod = lab.node(0).add_pod("a")?;
    let maps = Maps::of(lab.node(0).bpf_dir());
    // No errors from the world: they would say that somebody is there.
    let world = lab.world().netns();
    for (key, value) in [("ipv4/icmp_ratelimit", "0"), ("ipv4/icmp_ratemask", "0")] {
        world.sysctl(key, value)?;
    }
    let mut connections = Connections::open(lab, &pod, family, 100)?;
    for round in 0..4_u16 {
        flood(&pod, lab, family, 1000 + round * 2048, SMALL / 2)?;
        connections.all_talk().with_context(|| format!("round {round}"))?;
        no_half_is_alone(&maps)?;
    }
    ensure!(maps.dropped(DropReason::ConntrackFull)? > 0, "the maps never were full");
    poll::eventually("there is room again", Duration::from_secs(15), || {
        Connections::open(lab, &pod, family, 1)?.all_talk()
    })?;
    connections.all_talk().context("after the flood")?;
    no_half_is_alone(&maps)
}

fn a_deleted_pod_takes_its_flows_along(lab: &mut Lab, family: Family) -> Result<()> {
    let (a, b) = (lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?);
    let maps = Maps::of(lab.node(0).bpf_dir());
    let _of_a = Connections::open(lab, &a, family, 20)?;
    let mut of_b = Connections::open(lab, &b, family, 20)?;
    flood(&a, lab, family, 1000, 200)?;
    let address = a.address(family).into();
    let of_pod = || -> Result<[usize; 2]> {
        let flows = maps.conntrack()?.iter().filter(|(key, _)| key.src == address).count();
        let backs = maps.nat()?.iter().filter(|(_, back)| back.address == address).count();
        Ok([flows, backs])
    };
    ensure!(of_pod()? == [220, 220], "{:?}", of_pod()?);
    a.delete()?;
    // Well before the next collection, which may be ten seconds away.
    poll::eventually("the flows are gone", Duration::from_secs(3), || {
        ensure!(of_pod()? == [0, 0], "{:?} are left", of_pod()?);
        Ok(())
    })?;
    of_b.all_talk().context("the other pod's connections")?;
    no_half_is_alone(&maps)
}

/// A reply that comes late for a pod that is gone does not reach the next pod with its address.
fn an_address_inherits_nothing(lab: &mut Lab, family: Family) -> Result<()> {
    const PORT: u16 = 45_000;
    let node = lab.node(0).clone();
    let world = socket::udp(lab.world().netns(), lab.world().address(family))?;
    let addresses = {
        let first = node.add_pod("first")?;
        let addresses = (first.address(Family::V4), first.address(Family::V6));
        first.delete()?;
        addresses
    };
    let bound = |pod: &Pod| -> Result<UdpSocket> {
        let socket = pod.netns().enter(|| UdpSocket::bind((family.unspecified(), PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    };
    let old = node.pod("old").addresses(addresses.0, addresses.1).add()?;
    bound(&old)?.send_to(b"to be answered", world.local_addr()?)?;
    let (_, masqueraded) = retry(|| world.recv_from(&mut [0; 32]))?;
    old.delete()?;
    let new = node.pod("new").addresses(addresses.0, addresses.1).add()?;
    let socket = bound(&new)?;
    world.send_to(b"too late", masqueraded)?;
    ensure!(retry(|| socket.recv(&mut [0; 32])).is_err(), "the new pod got the old one's answer");
    // The same port from the new pod is a flow of its own.
    socket.send_to(b"mine", world.local_addr()?)?;
    let (_, peer) = retry(|| world.recv_from(&mut [0; 32]))?;
    world.send_to(b"yours", peer)?;
    retry(|| socket.recv(&mut [0; 32])).context("the new pod's own flow")?;
    no_half_is_alone(&Maps::of(node.bpf_dir()))
}

//! Masquerade with every combination of offloads, at the pod, at the uplink and at the far end: whoever computes a checksum or splits a
//! segment, before or after the translation, what arrives is what was sent.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Routing, Station,
    netns::Netns,
    shell,
    traffic::{
        capture::{Capture, Frame},
        exchange,
        offload::{self, Offload, Offloads},
        pattern::Pattern,
        socket::{self, retry},
        transfer,
    },
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        trials.push(scenario(
            format!("offloads::{routing}::whoever_does_it_arrives_right"),
            LabSpec::nodes(1, routing),
            every_combination,
        ));
    }
    let spec = || LabSpec::nodes(1, Routing::Native);
    trials.extend([
        scenario("offloads::datagrams_without_checksum_arrive_without", spec(), no_checksum),
        scenario("offloads::tunnels_of_pods_arrive_right", spec(), tunnels_of_pods),
    ]);
    trials
}

/// The devices whose offloads are switched: the pod's, the node's uplink, the world's.
struct Ends<'a> {
    pod: &'a dyn Station,
    node: &'a dyn Station,
    world: &'a dyn Station,
}

/// What is on at the pod, at the uplink, and in the world.
type Setting = [Vec<Offload>; 3];

const DEVICE: &str = "eth0";

impl Ends<'_> {
    /// Switches all three; returns what cannot be switched.
    fn switch(&self, setting: &Setting) -> Result<Vec<&'static str>> {
        let mut fixed = Vec::new();
        for (station, on) in [self.pod, self.node, self.world].into_iter().zip(setting) {
            fixed.extend(offload::switch(station.netns(), DEVICE, on)?);
        }
        Ok(fixed)
    }
}

/// Every combination at each end while the others do all, and all or nothing at every end.
fn settings() -> Vec<Setting> {
    let all = || Offload::ALL.to_vec();
    let mut settings = Vec::new();
    for end in 0..3 {
        for bits in 0..1_usize << Offload::ALL.len() {
            let on = Offload::ALL.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
            let mut setting = [all(), all(), all()];
            setting[end] = on.map(|(_, offload)| *offload).collect();
            settings.push(setting);
        }
    }
    for bits in 0..1 << 3 {
        settings.push([0, 1, 2].map(|end| if bits >> end & 1 == 1 { all() } else { Vec::new() }));
    }
    settings
}

fn every_combination(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let ends = Ends { pod: &a, node: lab.node(0).as_ref(), world: lab.world() };
    let mut checks = Checks::default();
    let mut fixed = std::collections::BTreeSet::new();
    for setting in settings() {
        fixed.extend(ends.switch(&setting)?);
        let [pod, uplink, world] = &setting;
        let what = format!("pod {pod:?}, uplink {uplink:?}, world {world:?}");
        checks.note(&what, with_captures(&ends, &setting));
    }
    if !fixed.is_empty() {
        println!("not switched, because the device cannot: {fixed:?}");
    }
    checks.finish()
}

/// Sends everything, and looks at the checksums of what has arrived where somebody had to compute them on the way.
fn with_captures(ends: &Ends<'_>, setting: &Setting) -> Result<()> {
    let [pod, uplink, world] = setting;
    let sums = |on: Offloads<'_>| on.contains(&Offload::TransmitChecksum);
    let merges = |on: Offloads<'_>| on.contains(&Offload::Merging);
    let at_world = Capture::start(ends.world.netns(), DEVICE)?;
    let at_pod = Capture::start(ends.pod.netns(), DEVICE)?;
    for family in Family::BOTH {
        traffic(ends, family).with_context(|| family.to_string())?;
    }
    let (at_world, at_pod) = (at_world.finish()?, at_pod.finish()?);
    // What was merged on arrival is summed no more.
    if (!sums(pod) || !sums(uplink)) && !merges(world) {
        all_right(&at_world, |src| Family::BOTH.map(|family| ends.node.address(family)).contains(&src))?;
    }
    if !sums(world) && !merges(uplink) && !merges(pod) {
        all_right(&at_pod, |src| Family::BOTH.map(|family| ends.world.address(family)).contains(&src))?;
    }
    Ok(())
}

fn all_right(frames: &[Frame], from: impl Fn(IpAddr) -> bool) -> Result<()> {
    let mut seen = 0;
    for frame in frames.iter().filter(|frame| frame.fields().is_some_and(|fields| from(fields.src))) {
        match frame.has_right_checksum() {
            Some(true) => seen += 1,
            Some(false) => bail!("a wrong checksum arrived: {:?}", frame.fields()),
            None => {}
        }
    }
    ensure!(seen > 20, "only {seen} checksums were seen");
    Ok(())
}

fn none_at_all(frames: &[Frame], from: impl Fn(IpAddr) -> bool) -> Result<()> {
    let ours = || frames.iter().filter(|frame| frame.fields().is_some_and(|fields| from(fields.src)));
    ensure!(ours().count() > 20, "only {} packets were seen", ours().count());
    ensure!(ours().all(|frame| frame.udp_checksum() == Some(0)), "a checksum has appeared");
    Ok(())
}

/// TCP both ways, datagrams of several sizes, and datagrams that the kernel splits.
fn traffic(ends: &Ends<'_>, family: Family) -> Result<()> {
    const BYTES: u64 = 200_000;
    let masqueraded = ends.node.address(family);
    for transfer in [
        transfer::upload(ends.pod, ends.world, family, BYTES).context("upload")?,
        transfer::download(ends.pod, ends.world, family, BYTES).context("download")?,
    ] {
        ensure!(transfer.peer == masqueraded, "the world saw {}", transfer.peer);
    }
    exchange::udp(ends.pod, ends.world, family, &[0, 1, 900, 1300]).context("datagrams")?;
    segments(ends.pod, ends.world, family).context("split datagrams")
}

/// One call, many datagrams; and one that is not split in the same socket.
fn segments(from: &dyn Station, to: &dyn Station, family: Family) -> Result<()> {
    const SIZE: u16 = 1111;
    const COUNT: usize = 13;
    let server = socket::udp(to.netns(), to.address(family))?;
    let client = socket::udp(from.netns(), family.unspecified())?;
    client.connect(server.local_addr()?)?;
    let pattern = Pattern::new();
    let data = pattern.at(7, usize::from(SIZE) * COUNT - 100);
    if !offload::send_segmented(&client, data, SIZE)? {
        println!("datagrams are not split by this kernel where checksums are not offloaded");
        return Ok(());
    }
    for expected in data.chunks(SIZE.into()) {
        expect(&server, expected)?;
    }
    Ok(())
}

fn expect(server: &UdpSocket, expected: &[u8]) -> Result<SocketAddr> {
    let mut buffer = vec![0; 65_536];
    let (len, peer) = retry(|| server.recv_from(&mut buffer)).context("a datagram is missing")?;
    ensure!(buffer[..len] == *expected, "{} bytes arrived as {len} that differ", expected.len());
    Ok(peer)
}

/// IPv4 only: IPv6 has no datagrams without (but in tunnels).
fn no_checksum(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let capture = Capture::start(lab.world().netns(), DEVICE)?;
    let server = socket::udp(lab.world().netns(), lab.world().v4())?;
    let client = socket::udp(a.netns(), Family::V4.unspecified())?;
    offload::forgo_checksums(&client)?;
    offload::forgo_checksums(&server)?;
    client.connect(server.local_addr()?)?;
    client.send(b"question")?;
    let peer = expect(&server, b"question")?;
    server.send_to(b"answer", peer)?;
    expect(&client, b"answer")?;
    let frames = capture.finish()?;
    let ports = (peer.port(), server.local_addr()?.port());
    let both = [ports, (ports.1, ports.0)];
    let checksums = frames
        .iter()
        .filter(|frame| frame.fields().is_some_and(|f| f.ports.is_some_and(|p| both.contains(&p))));
    let checksums: Vec<_> = checksums.map(Frame::udp_checksum).collect();
    ensure!(checksums == [Some(0), Some(0)], "the checksums were {checksums:?}");
    Ok(())
}

/// A station's end of a tunnel.
struct Inside<'a> {
    outside: &'a dyn Station,
    v4: IpAddr,
    v6: IpAddr,
}

impl Station for Inside<'_> {
    fn name(&self) -> &str {
        self.outside.name()
    }

    fn netns(&self) -> &Netns {
        self.outside.netns()
    }

    fn address(&self, family: Family) -> IpAddr {
        if family == Family::V4 { self.v4 } else { self.v6 }
    }
}

/// VXLAN between a pod and the world, through masquerade: a checksum and segments inside of datagrams that are translated.
fn tunnels_of_pods(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    // Whatever the uplink gets, it sends out complete.
    offload::switch(lab.node(0).netns(), DEVICE, &[])?;
    // With and without a checksum outside; each tunnel has a port of its own, which masquerade keeps.
    for (number, (outer, checksum)) in
        [(Family::V4, false), (Family::V4, true), (Family::V6, false), (Family::V6, true)]
            .into_iter()
            .enumerate()
    {
        // The program may take a complete checksum for a partial one, for one in 65,536 combinations of addresses and lengths: a
        // tunnel with other MACs tells that from what is always wrong.
        let tried = tunnel_of_pod(lab, &a, number, outer, checksum);
        let outcome = tried.or_else(|_| tunnel_of_pod(lab, &a, number + 10, outer, checksum));
        checks.note(&format!("in {outer}, checksum {checksum}"), outcome);
    }
    checks.finish()
}

/// One tunnel with every setting of the pod's offloads, gone afterwards: what it has to say of its own now and then must not be
/// taken for the next one's.
fn tunnel_of_pod(lab: &Lab, a: &Pod, number: usize, outer: Family, checksum: bool) -> Result<()> {
    let node = lab.node(0).as_ref();
    let near = tunnel(a, lab.world().address(outer), number, 1, checksum)?;
    let far = tunnel(lab.world(), node.address(outer), number, 2, checksum)?;
    let mut checks = Checks::default();
    for on in [&Offload::ALL[..], &[Offload::TransmitChecksum], &[]] {
        for device in [DEVICE, &near.1] {
            offload::switch(a.netns(), device, on)?;
        }
        for inner in Family::BOTH {
            let what = format!("{inner}, with {on:?}");
            let capture = Capture::start(lab.world().netns(), DEVICE)?;
            checks.note(&what, inside(&near.0, &far.0, inner));
            let outside = capture.finish()?;
            let from_node = |src| src == node.address(outer);
            let outcome =
                if checksum { all_right(&outside, from_node) } else { none_at_all(&outside, from_node) };
            checks.note(&format!("{what}, outside"), outcome);
        }
    }
    for (end, device) in [&near, &far] {
        shell::ip(end.netns(), &format!("link delete {device}"))?;
    }
    checks.finish()
}

fn inside(near: &dyn Station, far: &dyn Station, family: Family) -> Result<()> {
    const BYTES: u64 = 200_000;
    exchange::udp(near, far, family, &[1, 700]).context("datagrams")?;
    transfer::upload(near, far, family, BYTES).context("upload")?;
    transfer::download(near, far, family, BYTES).context("download")?;
    Ok(())
}

/// One end of a tunnel, and the name of its device.
fn tunnel<'a>(
    at: &'a dyn Station,
    remote: IpAddr,
    number: usize,
    host: u8,
    checksum: bool,
) -> Result<(Inside<'a>, String)> {
    let (device, port) = (format!("tunnel{number}"), 40_100 + number);
    let checksum = match (checksum, remote) {
        (true, _) => "udpcsum",
        (false, IpAddr::V4(_)) => "noudpcsum",
        (false, IpAddr::V6(_)) => "udp6zerocsumtx udp6zerocsumrx",
    };
    let (v4, v6) = (format!("10.99.{number}.{host}"), format!("fd99:{number}::{host}"));
    shell::ip_batch(
        at.netns(),
        &format!(
            "link add {device} mtu 1380 type vxlan id 7 remote {remote} dev eth0 dstport {port} \
             srcport {port} {next} {checksum}\n\
             link set {device} up\n\
             address add {v4}/24 dev {device}\n\
             address add {v6}/64 dev {device} nodad\n",
            next = port + 1
        ),
    )?;
    Ok((Inside { outside: at, v4: v4.parse()?, v6: v6.parse()? }, device))
}

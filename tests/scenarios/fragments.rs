//! Fragments through masquerade in any order, cut by hand and put together by real stacks at both ends.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{DropReason, Forward, Outcome, Program, addr::GATEWAY_MAC};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Routing, Station,
    maps::Maps,
    poll,
    traffic::{
        capture::Capture,
        exchange,
        fragments::{Datagram, Ends},
        icmp::EchoSocket,
        pattern::Pattern,
        raw::RawSender,
        socket,
    },
};
use libtest_mimic::Trial;

use crate::support::{Checks, scenario};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = || LabSpec::nodes(1, Routing::Native);
    vec![
        scenario("fragments::udp_in_every_order_there_and_back", spec(), udp_in_every_order),
        scenario("fragments::echoes_in_every_order_there_and_back", spec(), echoes_in_every_order),
        scenario("fragments::sixty_kilobytes_last_piece_first", spec(), sixty_kilobytes),
        scenario("fragments::overlaps_and_copies", spec(), overlaps_and_copies),
        scenario("fragments::without_the_first_nothing_arrives_and_nothing_suffers", spec(), first_lost),
        scenario("fragments::extension_headers_before_the_fragment_header", spec(), extension_headers),
        scenario("fragments::one_identification_for_all", spec(), one_identification),
        scenario("fragments::first_and_last_at_the_same_moment", spec(), at_the_same_moment),
        scenario(
            "fragments::jumbo_frames_and_longer_ones",
            spec().mtu(12_000).world_mtu(12_000),
            jumbo_frames,
        ),
    ]
}

/// Every order of four pieces.
fn orders() -> Vec<[usize; 4]> {
    let mut orders = Vec::new();
    for a in 0..4 {
        for b in (0..4).filter(|&b| b != a) {
            for c in (0..4).filter(|&c| c != a && c != b) {
                orders.push([a, b, c, 6 - a - b - c]);
            }
        }
    }
    orders
}

/// A pod and the world with a UDP socket each, and both ends' devices for frames made by hand.
struct Stage {
    family: Family,
    pod: UdpSocket,
    world: UdpSocket,
    from_pod: RawSender,
    from_world: RawSender,
    /// From the pod to the world as the pod sends it.
    out: Ends,
    /// From the world to the pod as the world sends it: to the node.
    back: Ends,
    pattern: Pattern,
}

impl Stage {
    fn set(lab: &Lab, a: &Pod, family: Family) -> Result<Self> {
        let world = lab.world();
        let stage = |back| -> Result<Self> {
            Ok(Self {
                family,
                pod: socket::udp(a.netns(), a.address(family))?,
                world: socket::udp(world.netns(), world.address(family))?,
                from_pod: RawSender::open(a.netns(), a.ifname())?,
                from_world: RawSender::open(world.netns(), "eth0")?,
                out: Ends {
                    macs: (a.mac()?, GATEWAY_MAC.bytes),
                    src: a.address(family),
                    dst: world.address(family),
                },
                back,
                pattern: Pattern::new(),
            })
        };
        // The way back as the world's stack knows it, read off a frame that has come.
        let capture = Capture::start(world.netns(), "eth0")?;
        exchange::udp(a, world, family, &[100])?;
        let frames = capture.finish()?;
        let to_world =
            frames.iter().find(|frame| frame.fields().is_some_and(|f| f.dst == world.address(family)));
        let bytes = &to_world.context("nothing of the exchange was captured")?.bytes;
        let macs = (bytes[..6].try_into()?, bytes[6..12].try_into()?);
        stage(Ends { macs, src: world.address(family), dst: lab.node(0).address(family) })
    }

    fn ports(&self) -> Result<(u16, u16)> {
        Ok((self.pod.local_addr()?.port(), self.world.local_addr()?.port()))
    }

    /// A datagram from the pod's socket to the world's.
    fn datagram(&self, data: &[u8]) -> Result<Datagram> {
        Datagram::udp(self.out, self.ports()?, data)
    }

    /// Sends pieces from the pod.
    fn send(&self, pieces: &[Vec<u8>]) -> Result<()> {
        pieces.iter().try_for_each(|piece| self.from_pod.send(piece))
    }

    /// What must arrive at the world's socket next; returns whom it came from.
    fn arrives(&self, data: &[u8]) -> Result<SocketAddr> {
        receive(&self.world, data)
    }

    /// A whole exchange by the stacks themselves must still work, and nothing must have come before it.
    fn goes_on(&self) -> Result<()> {
        let sent = self.pattern.at(7, 5_000);
        self.pod.send_to(sent, self.world.local_addr()?)?;
        let peer = self.arrives(sent)?;
        self.world.send_to(sent, peer)?;
        receive(&self.pod, sent).map(drop)
    }
}

/// The next datagram of a socket, which must be this one.
fn receive(socket: &UdpSocket, data: &[u8]) -> Result<SocketAddr> {
    let mut buffer = vec![0; 65_536];
    let (len, peer) = socket::retry(|| socket.recv_from(&mut buffer))
        .with_context(|| format!("{} bytes did not arrive", data.len()))?;
    ensure!(buffer[..len] == *data, "{} bytes arrived as {len} that differ", data.len());
    Ok(peer)
}

fn for_each_family(lab: &mut Lab, check: impl Fn(&Lab, &Stage, &mut Checks) -> Result<()>) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        check(lab, &Stage::set(lab, &a, family)?, &mut checks)?;
    }
    checks.finish()
}

fn udp_in_every_order(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |lab, stage, checks| {
        for (id, order) in (100..).zip(orders()) {
            let data = stage.pattern.at(u64::from(id), 5_000);
            let there = || -> Result<SocketAddr> {
                let pieces = stage.datagram(data)?.id(id).pieces(1400)?;
                order.iter().try_for_each(|&piece| stage.from_pod.send(&pieces[piece]))?;
                let peer = stage.arrives(data)?;
                ensure!(peer.ip() == lab.node(0).address(stage.family), "the world saw {peer}");
                Ok(peer)
            };
            let Some(peer) = checks.note(&format!("{} out, {order:?}", stage.family), there()) else {
                continue;
            };
            let back = || -> Result<()> {
                let ports = (stage.ports()?.1, peer.port());
                let pieces = Datagram::udp(stage.back, ports, data)?.id(id).pieces(1400)?;
                order.iter().try_for_each(|&piece| stage.from_world.send(&pieces[piece]))?;
                receive(&stage.pod, data).map(drop)
            };
            checks.note(&format!("{} back, {order:?}", stage.family), back());
        }
        let held = Outcome::Forward(Forward::Held);
        let held = Maps::of(lab.node(0).bpf_dir()).counter(Program::FromPod, held)?.packets;
        // 24 orders of four: so many times does a piece come before the first one.
        let expected = 36 * if stage.family == Family::V4 { 1 } else { 2 };
        ensure!(held == expected, "{held} pieces were kept instead of {expected}");
        Ok(())
    })
}

fn echoes_in_every_order(lab: &mut Lab) -> Result<()> {
    let a = lab.node(0).add_pod("a")?;
    let mut checks = Checks::default();
    for family in Family::BOTH {
        let stage = Stage::set(lab, &a, family)?;
        let near = EchoSocket::open(a.netns(), family)?;
        for (id, order) in (300_u16..).zip(orders()) {
            let there = || -> Result<()> {
                let data = stage.pattern.at(u64::from(id), 5_000);
                let request = Datagram::echo(stage.out, true, id, data)?.id(u32::from(id));
                let pieces = request.pieces(1400)?;
                order.iter().try_for_each(|&piece| stage.from_pod.send(&pieces[piece]))?;
                near.expect("reply", |echo| !echo.is_request && echo.id == id && echo.payload == data)?;
                // Another reply, cut by hand; the identifier was free and is kept.
                let data = stage.pattern.at(u64::from(id) + 1, 5_000);
                let reply = Datagram::echo(stage.back, false, id, data)?.id(u32::from(id));
                let pieces = reply.pieces(1400)?;
                order.iter().try_for_each(|&piece| stage.from_world.send(&pieces[piece]))?;
                near.expect("second reply", |echo| {
                    !echo.is_request && echo.id == id && echo.payload == data
                })?;
                Ok(())
            };
            checks.note(&format!("{family} {order:?}"), there());
        }
    }
    checks.finish()
}

fn sixty_kilobytes(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |_, stage, checks| {
        for id in 1..=3 {
            let data = stage.pattern.at(u64::from(id), 60_000);
            let exchange = || -> Result<()> {
                let mut pieces = stage.datagram(data)?.id(id).pieces(1432)?;
                pieces.reverse();
                stage.send(&pieces)?;
                let peer = stage.arrives(data)?;
                stage.world.send_to(data, peer)?;
                receive(&stage.pod, data)?;
                let ports = (stage.ports()?.1, peer.port());
                let back = Datagram::udp(stage.back, ports, data)?.id(id);
                for piece in back.pieces(1432)?.iter().rev() {
                    stage.from_world.send(piece)?;
                }
                receive(&stage.pod, data).map(drop)
            };
            checks.note(&format!("{}, number {id}", stage.family), exchange());
        }
        Ok(())
    })
}

fn overlaps_and_copies(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |lab, stage, checks| {
        let maps = Maps::of(lab.node(0).bpf_dir());
        let data = stage.pattern.at(1, 4_000);
        let before = maps.dropped(DropReason::FragmentOverlap)?;
        let datagram = stage.datagram(data)?;
        // The second one overlaps the first; the last two could make it whole.
        let overlapping = [0..1400, 1392..2000, 1400..2800, 2800..datagram.len()];
        for id in 1..=20 {
            let datagram = datagram.clone().id(id);
            for range in &overlapping {
                stage.from_pod.send(&datagram.piece(range.clone())?)?;
            }
        }
        poll::eventually("three of each four pieces are dropped", Duration::from_secs(2), || {
            let dropped = maps.dropped(DropReason::FragmentOverlap)? - before;
            ensure!(dropped == 60, "{dropped} are counted");
            Ok(())
        })?;
        checks.note(&format!("{} after overlaps", stage.family), stage.goes_on());

        // Each piece three times, the first one in the middle.
        let pieces = datagram.id(100).pieces(1400)?;
        let order = [1, 1, 1, 0, 0, 0, 2, 2, 2];
        let sent = order.iter().try_for_each(|&piece| stage.from_pod.send(&pieces[piece]));
        let arrived = sent.and_then(|()| stage.arrives(data)).and_then(|_| stage.goes_on());
        checks.note(&format!("{} with copies", stage.family), arrived);
        Ok(())
    })
}

fn first_lost(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |_, stage, checks| {
        let good = stage.pattern.at(1, 5_000);
        let lost = stage.datagram(stage.pattern.at(2, 5_000))?;
        for round in 0..40 {
            // A hundred thousand of them would be no more: there are slots for sixty-four.
            for number in 0..50 {
                let orphan = lost.clone().id(10_000 + round * 50 + number);
                stage.from_pod.send(&orphan.piece(1400..2800)?)?;
            }
            let pieces = stage.datagram(good)?.id(1 + round).pieces(1400)?;
            let in_order = stage.send(&pieces).and_then(|()| stage.arrives(good));
            checks.note(&format!("{} in order, round {round}", stage.family), in_order);
            let mut pieces = stage.datagram(good)?.id(5_000 + round).pieces(1400)?;
            pieces.reverse();
            let reversed = stage.send(&pieces).and_then(|()| stage.arrives(good));
            checks.note(&format!("{} reversed, round {round}", stage.family), reversed);
        }
        checks.note(&format!("{} afterwards", stage.family), stage.goes_on());
        Ok(())
    })
}

fn extension_headers(lab: &mut Lab) -> Result<()> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    let a = lab.node(0).add_pod("a")?;
    let stage = Stage::set(lab, &a, Family::V6)?;
    let mut checks = Checks::default();
    let chains: [&[u8]; 3] = [&[HOP_BY_HOP], &[DESTINATION], &[HOP_BY_HOP, DESTINATION]];
    for (id, chain) in (1..).zip(chains) {
        let data = stage.pattern.at(u64::from(id), 5_000);
        let exchange = || -> Result<()> {
            let datagram = stage.datagram(data)?.id(id).extensions(chain);
            let mut pieces = datagram.pieces(1400)?;
            pieces.reverse();
            stage.send(&pieces)?;
            let ports = (stage.ports()?.1, stage.arrives(data)?.port());
            let back = Datagram::udp(stage.back, ports, data)?.id(id).extensions(chain);
            for piece in back.pieces(1400)?.iter().rev() {
                stage.from_world.send(piece)?;
            }
            receive(&stage.pod, data).map(drop)
        };
        checks.note(&format!("{chain:?}"), exchange());
    }
    checks.finish()
}

fn one_identification(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |_, stage, checks| {
        for (round, order) in (1..).zip(orders()) {
            let data = stage.pattern.at(round, 5_000);
            let pieces = stage.datagram(data)?.id(77).pieces(1400)?;
            let sent = order.iter().try_for_each(|&piece| stage.from_pod.send(&pieces[piece]));
            checks.note(&format!("{} round {round}", stage.family), sent.and_then(|()| stage.arrives(data)));
        }
        Ok(())
    })
}

/// Two senders, of which one knows only first pieces and the other only last ones: whichever of two CPUs is first, all arrives.
fn at_the_same_moment(lab: &mut Lab) -> Result<()> {
    const ROUNDS: u32 = 3_000;
    let a = lab.node(0).add_pod("a")?;
    for family in Family::BOTH {
        let stage = Stage::set(lab, &a, family)?;
        let data = stage.pattern.at(1, 2_000);
        let started = AtomicU32::new(0);
        let send = |piece: usize| -> Result<()> {
            let sender = RawSender::open(a.netns(), a.ifname())?;
            for id in 0..ROUNDS {
                let frame = stage.datagram(data)?.id(id).pieces(1400)?.swap_remove(piece);
                // Both wait awake, to start as close to each other as can be.
                while started.load(Ordering::Acquire) <= id {
                    std::hint::spin_loop();
                }
                sender.send(&frame)?;
            }
            Ok(())
        };
        thread::scope(|scope| -> Result<()> {
            let senders = [0, 1].map(|piece| scope.spawn(move || send(piece)));
            let arrived = (0..ROUNDS).try_for_each(|id| {
                started.store(id + 1, Ordering::Release);
                stage.arrives(data).with_context(|| format!("{family}, round {id}")).map(drop)
            });
            started.store(ROUNDS, Ordering::Release);
            let sent = senders
                .map(|sender| sender.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)));
            sent.into_iter().chain([arrived]).collect()
        })?;
    }
    let held = Maps::of(lab.node(0).bpf_dir()).counter(Program::FromPod, Outcome::Forward(Forward::Held))?;
    ensure!(held.packets > 0, "no last piece was ever first");
    Ok(())
}

/// Frames up to jumbo size are kept; a longer one must come after its first.
fn jumbo_frames(lab: &mut Lab) -> Result<()> {
    for_each_family(lab, |lab, stage, checks| {
        let maps = Maps::of(lab.node(0).bpf_dir());
        let data = stage.pattern.at(1, 20_000);
        let jumbo = || -> Result<()> {
            let mut pieces = stage.datagram(data)?.id(1).pieces(8_952)?;
            pieces.reverse();
            stage.send(&pieces)?;
            stage.arrives(data).map(drop)
        };
        checks.note(&format!("{} jumbo frames, reversed", stage.family), jumbo());
        let before = maps.dropped(DropReason::FragmentUnknown)?;
        let longer = || -> Result<()> {
            let pieces = stage.datagram(data)?.id(2).pieces(9_600)?;
            stage.send(&pieces)?;
            stage.arrives(data)?;
            let datagram = stage.datagram(data)?.id(3);
            stage.send(&[datagram.piece(9_600..19_200)?, datagram.piece(0..9_600)?])?;
            poll::eventually("the longer piece is dropped", Duration::from_secs(2), || {
                let dropped = maps.dropped(DropReason::FragmentUnknown)? - before;
                ensure!(dropped == 1, "{dropped} are counted");
                Ok(())
            })
        };
        checks.note(&format!("{} longer frames", stage.family), longer());
        checks.note(&format!("{} afterwards", stage.family), stage.goes_on());
        Ok(())
    })
}

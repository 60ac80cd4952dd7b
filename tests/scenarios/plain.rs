//! The lab tried on plain Linux: its traffic arrives where the kernel delivers it, and its checks fail when it does not.

use std::{
    env,
    io::{BufRead, BufReader},
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, PlainPod, Protocol, Routing, Station,
    netns::Netns,
    shell,
    traffic::{
        capture::{Capture, Frame},
        exchange, mtu,
        probe::Probe,
        raw,
        stream::Stream,
        tools, transfer,
    },
};
use libtest_mimic::Trial;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Checks, HOLD, scenario};

fn spec() -> LabSpec {
    LabSpec::nodes(2, Routing::Native).without_agents()
}

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    vec![
        scenario("plain::traffic_arrives_where_the_kernel_delivers_it", spec(), traffic_arrives),
        scenario("plain::the_world_does_not_answer_pods", spec(), world_does_not_answer),
        scenario("plain::probes_notice_an_interruption", spec(), probes_notice),
        scenario("plain::captures_see_fields_and_large_segments", spec(), captures_see),
        scenario("plain::path_mtu_is_learnt_from_routers", spec().world_mtu(1400), path_mtu),
        scenario("plain::routed_nodes_reach_each_other", spec().routed(), routed),
        scenario("plain::nothing_is_left_behind", spec(), nothing_left),
        scenario("plain::an_interrupted_run_cleans_up", spec(), |_| owner_ends(Signal::SIGINT)),
        scenario("plain::the_next_run_cleans_up_after_a_killed_one", spec(), |_| owner_ends(Signal::SIGKILL)),
    ]
}

/// Two pods on one node, and the routes that plain Linux needs for a pod on the other.
fn three_pods(lab: &Lab) -> Result<[PlainPod; 3]> {
    let [first, second] = [lab.node(0), lab.node(1)];
    for (from, to) in [(first, second), (second, first)] {
        for family in Family::BOTH {
            let route =
                format!("{} route add {} via {}", family.flag(), to.pod_cidr(family), to.address(family));
            shell::ip(from.netns(), &route)?;
        }
    }
    Ok([PlainPod::add(first, "a", 2)?, PlainPod::add(first, "b", 3)?, PlainPod::add(second, "c", 2)?])
}

fn traffic_arrives(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = three_pods(lab)?;
    let node: &dyn Station = lab.node(1).as_ref();
    let mut checks = Checks::default();
    for family in Family::BOTH {
        for to in [&b, &c, node] {
            for protocol in Protocol::ALL {
                if let Some(seen) = checks.note("exchange", exchange::exchange(&a, to, family, protocol)) {
                    assert_eq!(seen, a.address(family));
                }
            }
            checks.note("ping", a.ping(to.address(family)));
        }
        checks.note("1 to 65000 bytes", exchange::udp(&a, &c, family, &[1, 1472, 1473, 9000, 65_000]));
        let server = tools::HttpServer::start(&c, c.address(family))?;
        if let Some(answer) = checks.note("HTTP", server.get(&a)) {
            assert_eq!(answer.client, a.address(family));
        }
        checks.note("transfer", transfer::upload(&a, &c, family, 10 << 20));
    }
    checks.note("iperf3", tools::iperf3(&a, &b, b.v4(), 1));
    checks.finish()
}

fn world_does_not_answer(lab: &mut Lab) -> Result<()> {
    let [a, ..] = three_pods(lab)?;
    let node: &dyn Station = lab.node(0).as_ref();
    for family in Family::BOTH {
        exchange::exchange(node, lab.world(), family, Protocol::Icmp)?;
        let outcome = exchange::exchange(&a, lab.world(), family, Protocol::Icmp);
        let error = format!("{:#}", outcome.expect_err("the world has a way back to pods"));
        ensure!(
            error.contains("no echo reply"),
            "the request must arrive, and only the reply be lost: {error}"
        );
    }
    Ok(())
}

fn probes_notice(lab: &mut Lab) -> Result<()> {
    let [a, b, _] = three_pods(lab)?;
    for protocol in [Protocol::Udp, Protocol::Icmp] {
        for family in Family::BOTH {
            let quiet = Probe::start(&a, &b, family, protocol)?;
            quiet.wait_for_more(200)?;
            quiet.finish()?.ensure_nothing_lost("undisturbed")?;

            let disturbed = Probe::start(&a, &b, family, protocol)?;
            let stream = Stream::start(&a, &b, family)?;
            disturbed.wait_for_more(100)?;
            shell::ip(lab.node(0).netns(), "link set plain-3 down")?;
            std::thread::sleep(Duration::from_millis(50));
            let routes = format!("link set plain-3 up\nroute replace {}/32 dev plain-3\n", b.v4());
            let routes = format!(
                "{routes}address replace fe80::1/64 dev plain-3 nodad\nroute replace {}/128 dev plain-3\n",
                b.v6()
            );
            shell::ip_batch(lab.node(0).netns(), &routes)?;
            disturbed.wait_for_more(100)?;
            let report = disturbed.finish()?;
            ensure!(report.lost.len() >= 10, "50 ms without a link and only {} lost", report.lost.len());
            ensure!(report.ensure_nothing_lost("disturbed").is_err(), "loss must be an error");
            let stream = stream.finish()?;
            ensure!(
                stream.retransmitted > 0 && stream.longest_gap >= Duration::from_millis(40),
                "{stream:?}"
            );
        }
    }
    Ok(())
}

fn captures_see(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = three_pods(lab)?;
    let frame = raw::UdpFrame {
        macs: ([2, 0, 0, 0, 0, 1], [0xff; 6]),
        src: IpAddr::from([192, 0, 2, 1]),
        dst: c.v4(),
        ttl: 77,
        ports: (1111, 2222),
    };
    let capture = Capture::start(lab.node(0).netns(), "plain-2")?;
    raw::RawSender::open(a.netns(), "eth0")?.send(&frame.build(b"hello")?)?;
    let seen = capture.expect("the raw frame", |fields| fields.ports == Some((1111, 2222)))?;
    ensure!((seen.src, seen.dst, seen.ttl) == (frame.src, frame.dst, 77), "{seen:?}");

    transfer::upload(&a, &b, Family::V4, 4 << 20)?;
    let largest = capture.finish()?.iter().filter_map(Frame::fields).map(|fields| fields.len).max();
    ensure!(largest > Some(1500), "the largest segment was {largest:?} bytes");
    Ok(())
}

fn path_mtu(lab: &mut Lab) -> Result<()> {
    let node: &dyn Station = lab.node(0).as_ref();
    for family in Family::BOTH {
        let found = mtu::discover(node, lab.world(), family, 1500)?;
        ensure!(found == 1400, "{family}: found {found}");
    }
    let found = tools::tracepath(node.netns(), lab.world().v4())?;
    ensure!(found == 1400, "tracepath found {found}");
    Ok(())
}

fn routed(lab: &mut Lab) -> Result<()> {
    let [first, second]: [&dyn Station; 2] = [lab.node(0).as_ref(), lab.node(1).as_ref()];
    for family in Family::BOTH {
        exchange::exchange(first, second, family, Protocol::Tcp)?;
        let hops = tools::traceroute(first.netns(), second.address(family), "-U")?;
        ensure!(hops.len() == 2, "one router is on the way, not {hops:?}");
    }
    Ok(())
}

/// Whether anything on this machine carries the tag.
fn is_anything_left(tag: &str) -> bool {
    let named = Netns::names().into_iter().any(|name| name.starts_with(tag));
    named || ["/run/hypha-lab", "/sys/fs/bpf"].iter().any(|root| Path::new(root).join(tag).exists())
}

fn nothing_left(lab: &mut Lab) -> Result<()> {
    let other = spec().build()?;
    let tag = other.tag().to_owned();
    let mut sleeper = other.node(0).netns().command("sleep").arg("60").spawn()?;
    ensure!(is_anything_left(&tag), "a lab that lives must be seen");
    let start = Instant::now();
    drop(other);
    sleeper.wait()?;
    ensure!(start.elapsed() < Duration::from_secs(30), "a process outlived its lab");
    ensure!(!is_anything_left(&tag), "something of {tag} is left");
    lab.node(0).ping(lab.node(1).v4())?;
    Ok(())
}

/// A process that owns a lab is ended by a signal; its lab goes at once, or when the next lab is built.
fn owner_ends(signal: Signal) -> Result<()> {
    let mut owner = Command::new(env::current_exe()?).env(HOLD, "1").stdout(Stdio::piped()).spawn()?;
    let mut tag = String::new();
    BufReader::new(owner.stdout.take().context("no output")?).read_line(&mut tag)?;
    let tag = tag.trim();
    ensure!(!tag.is_empty() && is_anything_left(tag), "the other process built no lab: {tag:?}");
    kill(Pid::from_raw(owner.id().cast_signed()), signal)?;
    owner.wait()?;
    if signal == Signal::SIGKILL {
        drop(spec().build()?);
    }
    ensure!(!is_anything_left(tag), "something of {tag} is left");
    Ok(())
}

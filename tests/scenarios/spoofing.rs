//! A pod that lies about who it is gets nowhere, and is counted.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{DropReason, addr::GATEWAY_MAC};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Protocol, Routing, Station,
    maps::Maps,
    poll,
    traffic::{
        capture::Capture,
        exchange,
        raw::{RawSender, UdpFrame},
    },
};
use libtest_mimic::Trial;

use crate::support::scenario;

/// Frames sent of each kind.
const FRAMES: u64 = 25;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let mut trials = Vec::new();
    for routing in Routing::BOTH {
        let spec = || LabSpec::nodes(2, routing);
        trials.extend([
            scenario(format!("spoofing::{routing}::a_foreign_address_is_dropped"), spec(), foreign_address),
            scenario(format!("spoofing::{routing}::a_foreign_mac_is_dropped"), spec(), foreign_mac),
        ]);
    }
    trials
}

/// An honest frame of a pod to another.
fn frame(from: &Pod, to: &Pod, family: Family) -> Result<UdpFrame> {
    Ok(UdpFrame {
        macs: (from.mac()?, GATEWAY_MAC.bytes),
        src: from.address(family),
        dst: to.address(family),
        ttl: 64,
        ports: (4444, 5555),
    })
}

/// Sends the frame; it must be dropped for `reason` and counted once each. Honest frames sent after it, by the same
/// way, prove that it would have had the time to arrive.
fn expect_dropped(lab: &Lab, from: &Pod, to: &Pod, lie: UdpFrame, reason: DropReason) -> Result<()> {
    let maps = Maps::of(lab.node(0).bpf_dir());
    let before = maps.dropped(reason)?;
    let capture = Capture::start(to.netns(), to.ifname())?;
    let sender = RawSender::open(from.netns(), from.ifname())?;
    for _ in 0..FRAMES {
        sender.send(&lie.build(b"a lie")?)?;
    }
    let family = Family::of(lie.dst);
    let honest = UdpFrame { ports: (6666, 7777), ..frame(from, to, family)? };
    sender.send(&honest.build(b"the truth")?)?;
    capture.expect("the honest frame", |seen| seen.ports == Some(honest.ports))?;
    ensure!(
        capture.packets().iter().all(|seen| seen.ports != Some(lie.ports)),
        "a frame from {} ({:02x?}) arrived",
        lie.src,
        lie.macs.0
    );
    let what = format!("{FRAMES} drops are counted as {}", reason.name());
    poll::eventually(&what, Duration::from_secs(2), || {
        let dropped = maps.dropped(reason)? - before;
        ensure!(dropped == FRAMES, "{dropped} are");
        Ok(())
    })
}

fn foreign_address(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    let outsiders: [IpAddr; 2] = ["192.0.2.66".parse()?, "2001:db8:66::66".parse()?];
    for to in [&b, &c] {
        for (family, outsider) in Family::BOTH.into_iter().zip(outsiders) {
            let neighbour = if std::ptr::eq(to, &b) { &c } else { &b };
            for src in [outsider, neighbour.address(family), lab.node(0).address(family)] {
                let lie = UdpFrame { src, ..frame(&a, to, family)? };
                expect_dropped(lab, &a, to, lie, DropReason::SourceAddress)
                    .with_context(|| format!("{src} to {}", to.name()))?;
            }
        }
    }
    exchange::exchange(&a, &b, Family::V4, Protocol::Tcp)?;
    Ok(())
}

fn foreign_mac(lab: &mut Lab) -> Result<()> {
    let [a, b, c] = [lab.node(0).add_pod("a")?, lab.node(0).add_pod("b")?, lab.node(1).add_pod("c")?];
    for to in [&b, &c] {
        for family in Family::BOTH {
            let honest = frame(&a, to, family)?;
            for mac in [[2, 0, 0, 0, 0, 99], b.mac()?] {
                let lie = UdpFrame { macs: (mac, honest.macs.1), ..honest };
                expect_dropped(lab, &a, to, lie, DropReason::SourceMac)
                    .with_context(|| format!("{mac:02x?} to {}", to.name()))?;
            }
        }
    }
    Ok(())
}

//! Offloads of network devices, switched by `ethtool`, and datagrams that the kernel is to split.

use std::net::UdpSocket;

use anyhow::{Context, Result, bail, ensure};

use super::socket::{retry, set_option};
use crate::{netns::Netns, shell};

/// What can be switched; each stands for one or more of the kernel's features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offload {
    /// Checksums of what is sent.
    TransmitChecksum,
    /// Checksums of what is received.
    ReceiveChecksum,
    /// Segmentation of what is sent, TCP and UDP.
    Segmentation,
    /// Merging of what is received.
    Merging,
}

impl Offload {
    /// All.
    pub const ALL: [Self; 4] =
        [Self::TransmitChecksum, Self::ReceiveChecksum, Self::Segmentation, Self::Merging];

    /// The features as `ethtool -K` takes them, and as `ethtool -k` shows them.
    const fn features(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::TransmitChecksum => &[("tx", "tx-checksumming")],
            Self::ReceiveChecksum => &[("rx", "rx-checksumming")],
            Self::Segmentation => &[
                ("tso", "tcp-segmentation-offload"),
                ("gso", "generic-segmentation-offload"),
                ("tx-udp-segmentation", "tx-udp-segmentation"),
            ],
            Self::Merging => &[("gro", "generic-receive-offload")],
        }
    }
}

/// Which offloads a device has; what is not named is off.
pub type Offloads<'a> = &'a [Offload];

/// Switches all offloads of a device. What the device cannot have otherwise is returned by name; segmentation needs the checksums
/// of what is sent and goes with them.
pub fn switch(netns: &Netns, device: &str, on: Offloads<'_>) -> Result<Vec<&'static str>> {
    let mut command = netns.command("ethtool");
    command.args(["-K", device]);
    for offload in Offload::ALL {
        let state = if on.contains(&offload) { "on" } else { "off" };
        for (name, _) in offload.features() {
            command.args([*name, state]);
        }
    }
    // It fails when a feature is fixed; which, is seen below.
    let _told_below = shell::run(&mut command, b"")?;
    let mut command = netns.command("ethtool");
    let shown = shell::text(command.args(["-k", device]))?;
    let mut fixed = Vec::new();
    for offload in Offload::ALL {
        for (_, name) in offload.features() {
            let line = shown.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            let line = line.with_context(|| format!("ethtool does not know {name}:\n{shown}"))?;
            let wanted = on.contains(&offload);
            let needs_checksums =
                offload == Offload::Segmentation && !on.contains(&Offload::TransmitChecksum);
            if line.starts_with("on") == wanted || needs_checksums {
                continue;
            }
            ensure!(line.contains("[fixed]"), "{device}: {name} is {line}, though {wanted} was asked for");
            fixed.push(*name);
        }
    }
    Ok(fixed)
}

/// Sends `data` as datagrams of `size` bytes each in one call (`UDP_SEGMENT`). False: this kernel cannot on this device.
pub fn send_segmented(socket: &UdpSocket, data: &[u8], size: u16) -> Result<bool> {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size.into())?;
    let sent = retry(|| socket.send(data));
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0)?;
    match sent {
        Ok(len) if len == data.len() => Ok(true),
        Ok(len) => bail!("{len} of {} bytes were sent", data.len()),
        // Before Linux 6.11 without checksum offload.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
        Err(error) => Err(error).context("cannot send segments"),
    }
}

/// Leaves the checksum of datagrams away (IPv4).
pub fn forgo_checksums(socket: &UdpSocket) -> Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

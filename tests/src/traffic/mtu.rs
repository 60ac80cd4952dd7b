//! Path MTU as a socket learns it: from the ICMP errors that its oversized packets bring back.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{pattern::Pattern, socket};
use crate::{family::Family, poll, station::Station};

/// Sends datagrams that must not be fragmented, as large as `start` (an IP packet's length in bytes) and then as large
/// as the kernel has learnt to be possible, until one arrives whole; returns that length.
pub fn discover(from: &dyn Station, to: &dyn Station, family: Family, start: u32) -> Result<u32> {
    let server = socket::udp(to.netns(), to.address(family))?;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let client = unfragmented(from, SocketAddr::new(to.address(family), server.local_addr()?.port()))?;
    let pattern = Pattern::new();
    let mut buffer = vec![0; 65_536];
    let mut size = start;
    // Each router on the way may answer once: a handful of rounds is plenty.
    for _ in 0..8 {
        let payload = pattern.at(0, size as usize - family.header_len() - 8);
        // The ICMP error waits on the socket and would be taken for an error of this datagram.
        let _told_already = client.take_error()?;
        let sent = client.send(payload);
        if sent.is_ok()
            && let Ok((len, _)) = socket::retry(|| server.recv_from(&mut buffer))
        {
            ensure!(buffer[..len] == *payload, "a datagram of {size} bytes arrived changed");
            return Ok(size);
        }
        let learnt = poll::eventually("an ICMP error has told the path MTU", Duration::from_secs(2), || {
            let mtu = of(&client, family)?;
            ensure!(mtu < size, "the kernel still believes in {mtu} bytes");
            Ok(mtu)
        })?;
        size = learnt;
    }
    bail!("no datagram arrived; the last had {size} bytes")
}

/// Whether the kernel refuses to send so large an IP packet to a station, because it knows that it will not get there.
pub fn is_refused(from: &dyn Station, to: &dyn Station, family: Family, size: u32) -> Result<bool> {
    let client = unfragmented(from, SocketAddr::new(to.address(family), DISCARD))?;
    match client.send(Pattern::new().at(0, size as usize - family.header_len() - 8)) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(true),
        Err(error) => Err(error).context("cannot send"),
    }
}

/// What a station's kernel believes to be the path MTU to another, without sending anything.
pub fn known(from: &dyn Station, to: &dyn Station, family: Family) -> Result<u32> {
    let client = socket::udp(from.netns(), family.unspecified())?;
    client.connect(SocketAddr::new(to.address(family), DISCARD))?;
    of(&client, family)
}

/// The path MTU of a connected socket.
pub fn of(socket: &impl AsRawFd, family: Family) -> Result<u32> {
    let option = Options::of(family);
    Ok(u32::try_from(get_option(socket, option.level, option.mtu)?)?)
}

/// A port that nobody listens on.
const DISCARD: u16 = 9;

/// A connected socket whose datagrams nobody may fragment.
fn unfragmented(from: &dyn Station, to: SocketAddr) -> Result<UdpSocket> {
    let family = Family::of(to.ip());
    let client = socket::udp(from.netns(), family.unspecified())?;
    client.connect(to)?;
    let option = Options::of(family);
    socket::set_option(&client, option.level, option.discover, libc::IP_PMTUDISC_DO)?;
    Ok(client)
}

struct Options {
    level: i32,
    discover: i32,
    mtu: i32,
}

impl Options {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => {
                Self { level: libc::IPPROTO_IP, discover: libc::IP_MTU_DISCOVER, mtu: libc::IP_MTU }
            }
            Family::V6 => {
                Self { level: libc::IPPROTO_IPV6, discover: libc::IPV6_MTU_DISCOVER, mtu: libc::IPV6_MTU }
            }
        }
    }
}

fn get_option(socket: &impl AsRawFd, level: i32, name: i32) -> Result<i32> {
    let mut value = 0_i32;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` and `len` outlive the call and `len` is the size of `value`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    ensure!(result == 0, "cannot read socket option {name}: {}", std::io::Error::last_os_error());
    Ok(value)
}

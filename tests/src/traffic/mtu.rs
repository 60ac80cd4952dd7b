//! Path MTU as a socket learns it: from the ICMP errors that its oversized packets bring back.

use std::{net::SocketAddr, os::fd::AsRawFd, time::Duration};

use anyhow::{Result, bail, ensure};

use super::{pattern::Pattern, socket};
use crate::{family::Family, poll, station::Station};

/// Sends datagrams that must not be fragmented, as large as `start` (an IP packet's length in bytes) and then as large
/// as the kernel has learnt to be possible, until one arrives whole; returns that length.
pub fn discover(from: &dyn Station, to: &dyn Station, family: Family, start: u32) -> Result<u32> {
    let server = socket::udp(to.netns(), to.address(family))?;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let client = socket::udp(from.netns(), family.unspecified())?;
    client.connect(SocketAddr::new(to.address(family), server.local_addr()?.port()))?;
    let option = Options::of(family);
    set_option(&client, option.level, option.discover, libc::IP_PMTUDISC_DO)?;
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
            let mtu = u32::try_from(get_option(&client, option.level, option.mtu)?)?;
            ensure!(mtu < size, "the kernel still believes in {mtu} bytes");
            Ok(mtu)
        })?;
        size = learnt;
    }
    bail!("no datagram arrived; the last had {size} bytes")
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

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` outlives the call and `len` is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    ensure!(result == 0, "cannot set socket option {name}: {}", std::io::Error::last_os_error());
    Ok(())
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

//! Large TCP transfers, every byte compared with what was sent.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{pattern::Pattern, socket};
use crate::{family::Family, station::Station};

/// A finished transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes that arrived, all as sent.
    pub bytes: u64,
    /// From the connection to the last byte.
    pub elapsed: Duration,
    /// The source that the receiver saw.
    pub peer: IpAddr,
}

impl Transfer {
    /// Gigabits per second.
    pub fn gbits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Connects from one station to the other and sends `bytes` there.
pub fn upload(from: &dyn Station, to: &dyn Station, family: Family, bytes: u64) -> Result<Transfer> {
    let (client, server, peer) = connect(from, to, family)?;
    carry(client, server, peer, bytes)
}

/// Connects from one station to the other and fetches `bytes` from there.
pub fn download(by: &dyn Station, from: &dyn Station, family: Family, bytes: u64) -> Result<Transfer> {
    let (client, server, peer) = connect(by, from, family)?;
    carry(server, client, peer, bytes)
}

/// Both ends of a new connection, and the client's address as the server sees it.
fn connect(from: &dyn Station, to: &dyn Station, family: Family) -> Result<(TcpStream, TcpStream, IpAddr)> {
    let listener = socket::tcp_listener(to.netns(), to.address(family))?;
    let client = socket::tcp_connect(from.netns(), listener.local_addr()?)?;
    let (server, peer) = socket::tcp_accept(&listener)?;
    Ok((client, server, peer.ip()))
}

fn carry(mut source: TcpStream, mut sink: TcpStream, peer: IpAddr, bytes: u64) -> Result<Transfer> {
    let pattern = Pattern::new();
    let start = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| compare(&mut sink, &pattern));
        let sent = send(&mut source, &pattern, bytes);
        let received = receiver.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        sent?;
        ensure!(received == bytes, "{received} of {bytes} bytes arrived");
        Ok(Transfer { bytes, elapsed: start.elapsed(), peer })
    })
}

fn send(stream: &mut TcpStream, pattern: &Pattern, bytes: u64) -> Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let len = usize::try_from(bytes - sent).map_or(Pattern::WINDOW, |left| left.min(Pattern::WINDOW));
        stream.write_all(pattern.at(sent, len)).with_context(|| format!("cannot send after {sent} bytes"))?;
        sent += len as u64;
    }
    stream.shutdown(Shutdown::Write).context("cannot end the transfer")
}

/// Reads to the end; fails at the first byte that differs.
fn compare(stream: &mut impl Read, pattern: &Pattern) -> Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let len = socket::retry(|| stream.read(&mut buffer))
            .with_context(|| format!("nothing came after {received} bytes"))?;
        if len == 0 {
            return Ok(received);
        }
        ensure!(
            buffer[..len] == *pattern.at(received, len),
            "data differs within {len} bytes after {received}"
        );
        received += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_notices_loss_change_and_swap() {
        let pattern = Pattern::new();
        let good = pattern.at(0, 10_000).to_vec();
        assert_eq!(compare(&mut good.as_slice(), &pattern).unwrap(), 10_000);

        let mut changed = good.clone();
        changed[5_000] ^= 1;
        let mut lost = good.clone();
        lost.drain(1_448..2_896);
        let mut swapped = good;
        swapped.rotate_left(1_448);
        for bad in [changed, lost, swapped] {
            assert!(compare(&mut bad.as_slice(), &pattern).is_err());
        }
    }
}

//! One exchange between two stations: data there and back, compared, and the source that the far side saw.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{icmp::EchoSocket, pattern::Pattern, socket};
use crate::{
    family::{Family, Protocol},
    station::Station,
};

/// Tells apart the echo requests of one process.
static NEXT_ECHO: AtomicU16 = AtomicU16::new(1);

/// Carries data from one station to the other and back; returns the address that the far side saw as its peer.
pub fn exchange(from: &dyn Station, to: &dyn Station, family: Family, protocol: Protocol) -> Result<IpAddr> {
    let outcome = match protocol {
        Protocol::Tcp => tcp(from, to, family),
        Protocol::Udp => udp(from, to, family, &[700]),
        Protocol::Icmp => icmp(from, to, family, 56),
    };
    outcome.with_context(|| {
        let (source, target) = (from.address(family), to.address(family));
        format!("{protocol} from {} ({source}) to {} ({target})", from.name(), to.name())
    })
}

/// One TCP connection: 100 kB there and back.
fn tcp(from: &dyn Station, to: &dyn Station, family: Family) -> Result<IpAddr> {
    let listener = socket::tcp_listener(to.netns(), to.address(family))?;
    let port = listener.local_addr()?.port();
    tcp_through(from, (to.address(family), port).into(), &listener, 100_000)
}

/// One TCP connection to wherever `to` leads, which must be the listener: `len` bytes there and back. Returns the peer that the
/// listener saw.
pub fn tcp_through(from: &dyn Station, to: SocketAddr, listener: &TcpListener, len: usize) -> Result<IpAddr> {
    let pattern = Pattern::new();
    let sent = pattern.at(0, len);
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<IpAddr> {
            let (mut stream, peer) = socket::tcp_accept(listener)?;
            let mut received = vec![0; len];
            stream.read_exact(&mut received).context("the server did not get everything")?;
            stream.write_all(&received).context("the server cannot answer")?;
            Ok(peer.ip())
        });
        let client = || -> Result<()> {
            let mut stream = socket::tcp_connect(from.netns(), to)?;
            stream.write_all(sent).context("the client cannot send")?;
            stream.shutdown(Shutdown::Write)?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).context("the client did not get everything back")?;
            ensure!(back == sent, "what came back differs from what was sent");
            Ok(())
        };
        let client = client();
        let peer = server.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        client?;
        peer
    })
}

/// Datagrams of the given payload sizes, each echoed before the next; all must come from one source.
pub fn udp(from: &dyn Station, to: &dyn Station, family: Family, sizes: &[usize]) -> Result<IpAddr> {
    let server = socket::udp(to.netns(), to.address(family))?;
    let port = server.local_addr()?.port();
    udp_through(from, (to.address(family), port).into(), &server, sizes)
}

/// The same to wherever `to` leads, which must be the server.
pub fn udp_through(
    from: &dyn Station,
    to: SocketAddr,
    server: &UdpSocket,
    sizes: &[usize],
) -> Result<IpAddr> {
    let client = socket::udp(from.netns(), Family::of(to.ip()).unspecified())?;
    client.connect(to).with_context(|| format!("{} has no route", from.name()))?;
    let pattern = Pattern::new();
    let mut buffer = vec![0; 65_536];
    let mut seen = None;
    for &size in sizes {
        let sent = pattern.at(size as u64, size);
        client.send(sent).with_context(|| format!("cannot send {size} bytes"))?;
        let (len, peer) = socket::retry(|| server.recv_from(&mut buffer))
            .with_context(|| format!("{size} bytes did not arrive"))?;
        ensure!(buffer[..len] == *sent, "{size} bytes arrived as {len} bytes that differ");
        ensure!(seen.is_none_or(|seen| seen == peer), "source changed from {seen:?} to {peer}");
        seen = Some(peer);
        server.send_to(&buffer[..len], peer).with_context(|| format!("cannot answer {size} bytes"))?;
        let len =
            socket::retry(|| client.recv(&mut buffer)).with_context(|| format!("no echo of {size} bytes"))?;
        ensure!(buffer[..len] == *sent, "the echo of {size} bytes came as {len} bytes that differ");
    }
    seen.map(|peer| peer.ip()).context("no sizes to send")
}

/// One echo request with a payload of `size` bytes; the far side's kernel answers it.
pub fn icmp(from: &dyn Station, to: &dyn Station, family: Family, size: usize) -> Result<IpAddr> {
    let far = EchoSocket::open(to.netns(), family)?;
    let near = EchoSocket::open(from.netns(), family)?;
    let mark = NEXT_ECHO.fetch_add(1, Ordering::Relaxed);
    let pattern = Pattern::new();
    let payload = pattern.at(u64::from(mark), size);
    near.request(to.address(family), mark, 1, payload)?;
    let request = far.expect("echo request", |echo| echo.is_request && echo.payload == payload)?;
    near.expect("echo reply", |echo| !echo.is_request && echo.id == mark && echo.payload == payload)?;
    Ok(request.from)
}

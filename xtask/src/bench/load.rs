//! A load generator in the manner of netperf: transactions of one byte, and a stream.
//!
//! Client and server are pinned to one CPU and take turns on it, so that a rate is the inverse of the CPU time that a
//! transaction costs: sockets, devices, programs, everything between the two system calls. Nothing overlaps, and no
//! second core hides what a path really takes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use hypha_lab::netns::Netns;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use serde::Serialize;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// One byte there and back on a standing connection.
    TcpRr,
    /// Connect, one byte there and back, close.
    TcpCrr,
    /// One byte there and back in datagrams.
    UdpRr,
    /// As many bytes as fit.
    TcpStream,
}

impl Test {
    /// All, in the order of the table's columns.
    pub const ALL: [Self; 4] = [Self::TcpRr, Self::TcpCrr, Self::UdpRr, Self::TcpStream];

    /// The heading of its column, with the unit.
    pub fn heading(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP_RR /s",
            Self::TcpCrr => "TCP_CRR /s",
            Self::UdpRr => "UDP_RR /s",
            Self::TcpStream => "stream Gbit/s",
        }
    }

    /// How a figure of this test is written.
    pub fn format(self, rate: f64) -> String {
        match self {
            Self::TcpStream => format!("{:.2}", rate / 1e9),
            _ => format!("{rate:.0}"),
        }
    }
}

/// A peer that is silent for this long is gone, or its packet is.
const PATIENCE: Duration = Duration::from_millis(200);
const CHUNK: usize = 128 * 1024;

/// Runs one test from `client` to `address` in `server` for about `duration`: transactions (or bits) per second.
///
/// # Errors
///
/// When the server cannot be reached, or does not answer.
pub fn run(
    test: Test,
    client: &Netns,
    server: &Netns,
    address: IpAddr,
    duration: Duration,
) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    let (announce, ready) = channel();
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.enter(|| serve(test, address, &announce, &stop)));
        let measured = ready
            .recv()
            .map_err(|_| anyhow!("the server did not start"))
            .and_then(|port| client.enter(|| measure(test, SocketAddr::new(address, port), duration))?);
        stop.store(true, Ordering::Relaxed);
        let served = serving.join().map_err(|_| anyhow!("the server panicked"))?;
        served.and_then(|served| served).context("serving")?;
        measured
    })
}

/// Takes one CPU for both ends: the last that we may use, as the first one has more interrupts to handle. Whatever else
/// runs there has to wait, or a figure would tell how busy the machine is.
fn claim_cpu() -> anyhow::Result<()> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).context("asking for our CPUs")?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU to run on")?)?;
    sched_setaffinity(this_thread, &one).context("pinning to one CPU")?;
    let first_in_line = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads the parameters, changes the calling thread's policy, touches nothing else.
    let changed = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first_in_line) };
    ensure!(changed == 0, "asking for real-time scheduling: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Binds, tells the port, and answers until `stop`.
fn serve(test: Test, address: IpAddr, ready: &Sender<u16>, stop: &AtomicBool) -> anyhow::Result<()> {
    claim_cpu()?;
    if test == Test::UdpRr {
        let socket = UdpSocket::bind((address, 0)).with_context(|| format!("binding to {address}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        ready.send(socket.local_addr()?.port())?;
        return echo_datagrams(&socket, stop);
    }
    let listener = TcpListener::bind((address, 0)).with_context(|| format!("binding to {address}"))?;
    let patience = TimeVal::new(0, i64::from(PATIENCE.subsec_micros()));
    setsockopt(&listener, sockopt::ReceiveTimeout, &patience).context("limiting the wait for connections")?;
    ready.send(listener.local_addr()?.port())?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A connection that breaks shows at the client, which counts.
            Ok((connection, _)) => drop(answer(test, connection)),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("accepting"),
        }
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut byte) {
            Ok((_, from)) => drop(socket.send_to(&byte, from)),
            Err(error) if is_timeout(&error) => {}
            // The client's port is gone: the end of the test.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receiving"),
        }
    }
    Ok(())
}

/// The server's part of one connection.
fn answer(test: Test, mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE * 10))?;
    if test == Test::TcpStream {
        let mut chunk = vec![0; CHUNK];
        while connection.read(&mut chunk)? > 0 {}
        return Ok(());
    }
    let mut byte = [0];
    while connection.read(&mut byte)? > 0 {
        connection.write_all(&byte)?;
        if test == Test::TcpCrr {
            // The server closes first: it is the one to keep the closed connections in mind, and the client never runs
            // out of ports.
            break;
        }
    }
    Ok(())
}

fn measure(test: Test, server: SocketAddr, duration: Duration) -> anyhow::Result<f64> {
    claim_cpu()?;
    let rate = match test {
        Test::TcpRr => {
            let mut connection = connect(server)?;
            rate(duration, || exchange(&mut connection))
        }
        Test::TcpCrr => rate(duration, || {
            let mut connection = connect(server)?;
            exchange(&mut connection)?;
            // Up to the server's end, so that a transaction is over when it counts.
            let _end = connection.read(&mut [0])?;
            Ok(())
        }),
        Test::UdpRr => {
            let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            rate(duration, || exchange_datagram(&socket))
        }
        Test::TcpStream => stream(connect(server)?, duration),
    };
    rate.with_context(|| format!("{test:?} to {server}"))
}

/// Repeats a transaction and returns how many were done per second.
fn rate(duration: Duration, mut transaction: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    // Neighbours, routes and caches are found on the first.
    transaction()?;
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < duration {
        transaction()?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn connect(server: SocketAddr) -> anyhow::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, PATIENCE * 10).context("connecting")?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE * 10))?;
    Ok(connection)
}

fn exchange(connection: &mut TcpStream) -> anyhow::Result<()> {
    connection.write_all(b"x")?;
    Ok(connection.read_exact(&mut [0])?)
}

/// A lost datagram is sent again: the time it took then shows in the rate.
fn exchange_datagram(socket: &UdpSocket) -> anyhow::Result<()> {
    for _ in 0..10 {
        socket.send(b"x")?;
        match socket.recv(&mut [0]) {
            Ok(_) => return Ok(()),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(anyhow!("no answer to ten datagrams"))
}

/// Bits per second, counted up to the moment the server has read the last one.
fn stream(mut connection: TcpStream, duration: Duration) -> anyhow::Result<f64> {
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    let mut bytes = 0_u64;
    while start.elapsed() < duration {
        connection.write_all(&chunk)?;
        bytes += CHUNK as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    let _end = connection.read(&mut [0])?;
    #[expect(clippy::cast_precision_loss, reason = "a figure of four digits comes of it")]
    Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64())
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

//! Sockets inside a namespace, with deadlines so that a lost packet fails a test instead of hanging it.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// How long a receiver waits for something that should be there within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Calls again what a signal interrupted: the kernel does not restart a wait that has a deadline.
pub fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A listening TCP socket on a free port; `accept` gives up after [`PATIENCE`].
pub fn tcp_listener(netns: &Netns, address: IpAddr) -> Result<TcpListener> {
    tcp_listener_at(netns, (address, 0).into())
}

/// The same on a given port.
pub fn tcp_listener_at(netns: &Netns, address: SocketAddr) -> Result<TcpListener> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(address.port() != 0)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    netns.enter(listen)?.with_context(|| format!("cannot listen on {address} in {}", netns.name()))
}

/// A TCP connection; reads and writes give up after [`PATIENCE`].
pub fn tcp_connect(netns: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream = netns
        .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?
        .with_context(|| format!("cannot connect to {to} from {}", netns.name()))?;
    with_deadlines(&stream)?;
    Ok(stream)
}

/// Accepts one connection, with deadlines.
pub fn tcp_accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = retry(|| listener.accept()).context("nobody connected")?;
    with_deadlines(&stream)?;
    Ok((stream, peer))
}

fn with_deadlines(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).context("cannot set a deadline")?;
    stream.set_write_timeout(Some(PATIENCE)).context("cannot set a deadline")
}

/// A UDP socket on a free port, with buffers for whatever a test may queue; reads give up after [`PATIENCE`].
pub fn udp(netns: &Netns, address: IpAddr) -> Result<UdpSocket> {
    udp_at(netns, (address, 0).into())
}

/// The same on a given port.
pub fn udp_at(netns: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    netns.enter(bind)?.with_context(|| format!("cannot bind UDP to {address} in {}", netns.name()))
}

/// Sets a socket option that is a number.
pub(super) fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` outlives the call and `len` is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    ensure!(result == 0, "cannot set socket option {name}: {}", io::Error::last_os_error());
    Ok(())
}

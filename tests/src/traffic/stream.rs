//! One TCP connection that carries data all the time: was it interrupted, did anything have to be sent again.

use std::{
    io::{Read, Write},
    mem,
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{pattern::Pattern, socket};
use crate::{family::Family, poll, station::Station};

/// What is written at a time.
const CHUNK: usize = 1_000;
/// How often.
const INTERVAL: Duration = Duration::from_millis(1);

/// How the stream went.
#[derive(Clone, Copy, Debug)]
pub struct StreamReport {
    /// Bytes written and received as they were sent.
    pub bytes: u64,
    /// The longest time that the receiver waited for data.
    pub longest_gap: Duration,
    /// Segments the sender sent more than once.
    pub retransmitted: u32,
}

/// A connection under constant use, until finished or dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<Result<(u64, u32)>>>,
    receiver: Option<JoinHandle<Result<(u64, Duration)>>>,
}

impl Stream {
    /// Connects and waits until data flows.
    pub fn start(from: &dyn Station, to: &dyn Station, family: Family) -> Result<Self> {
        let listener = socket::tcp_listener(to.netns(), to.address(family))?;
        let client = socket::tcp_connect(from.netns(), listener.local_addr()?)?;
        client.set_nodelay(true)?;
        let (server, _) = socket::tcp_accept(&listener)?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sender = thread::spawn({
            let stop = stop.clone();
            move || send(client, &stop)
        });
        let receiver = thread::spawn({
            let received = received.clone();
            move || receive(server, &received)
        });
        let stream = Self { stop, received, sender: Some(sender), receiver: Some(receiver) };
        poll::wait_until("the stream flows", socket::PATIENCE, || stream.received() > 10 * CHUNK as u64)?;
        Ok(stream)
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the stream in order and tells how it went.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, retransmitted) = join(self.sender.take())??;
        let (bytes, longest_gap) = join(self.receiver.take())??;
        ensure!(sent == bytes, "{bytes} of {sent} bytes of the stream arrived");
        Ok(StreamReport { bytes, longest_gap, retransmitted })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = join(self.sender.take());
        let _ended = join(self.receiver.take());
    }
}

fn join<T>(thread: Option<JoinHandle<T>>) -> Result<T> {
    thread.context("already ended")?.join().map_err(|_| anyhow::anyhow!("a thread of the stream panicked"))
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> Result<(u64, u32)> {
    let pattern = Pattern::new();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        stream
            .write_all(pattern.at(sent, CHUNK))
            .with_context(|| format!("the stream broke after {sent} bytes"))?;
        sent += CHUNK as u64;
        thread::sleep(INTERVAL);
    }
    stream.shutdown(Shutdown::Write)?;
    // The far side closes when it has read everything: then all is acknowledged and the count is final.
    let _at_end = socket::retry(|| stream.read(&mut [0]))?;
    Ok((sent, retransmitted(&stream)?))
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> Result<(u64, Duration)> {
    let pattern = Pattern::new();
    let mut buffer = [0; 16 << 10];
    let (mut total, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
    loop {
        let len = socket::retry(|| stream.read(&mut buffer))
            .with_context(|| format!("the stream dried up after {total} bytes"))?;
        if len == 0 {
            return Ok((total, longest));
        }
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
        ensure!(buffer[..len] == *pattern.at(total, len), "the stream differs after {total} bytes");
        total += len as u64;
        received.store(total, Ordering::Relaxed);
    }
}

/// How many segments the kernel sent again on this connection.
fn retransmitted(stream: &TcpStream) -> Result<u32> {
    // SAFETY: all-zero is a valid `tcp_info`, a plain C structure of integers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info))?;
    // SAFETY: `info` and `len` outlive the call, and `len` is the size of `info`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    ensure!(result == 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(info.tcpi_total_retrans)
}

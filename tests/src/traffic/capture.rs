//! Packet captures: what really passed a device, before anything above saw it.

use std::{
    io,
    mem::MaybeUninit,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use socket2::Socket;

use super::raw;
use crate::netns::Netns;

/// How often the capturing thread looks whether it shall end.
const GLANCE: Duration = Duration::from_millis(20);

/// A captured frame, its Ethernet header included. Segments not yet split appear as one large frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The fields of a packet that scenarios ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fields {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes.
    pub len: usize,
    /// TCP or UDP ports.
    pub ports: Option<(u16, u16)>,
}

impl Frame {
    /// The packet's fields, or `None` when it is no IP packet.
    pub fn fields(&self) -> Option<Fields> {
        let packet = SlicedPacket::from_ethernet(&self.bytes).ok()?;
        let (src, dst, ttl): (IpAddr, IpAddr, u8) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.ttl())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
            }
            NetSlice::Arp(_) => return None,
        };
        let ports = match packet.transport {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        Some(Fields { src, dst, ttl, len: self.bytes.len() - 14, ports })
    }

    /// What the UDP header says; 0 for none.
    pub fn udp_checksum(&self) -> Option<u16> {
        match SlicedPacket::from_ethernet(&self.bytes).ok()?.transport? {
            TransportSlice::Udp(udp) => Some(udp.checksum()),
            _ => None,
        }
    }

    /// Whether TCP or UDP checksum, recomputed, is what the packet says; `None` for other packets, fragments, and datagrams without
    /// one.
    pub fn has_right_checksum(&self) -> Option<bool> {
        let packet = SlicedPacket::from_ethernet(&self.bytes).ok()?;
        let net = packet.net?;
        if net.ip_payload_ref()?.fragmented {
            return None;
        }
        let (said, right) = match (packet.transport?, net) {
            (TransportSlice::Tcp(tcp), NetSlice::Ipv4(ip)) => {
                let (src, dst) = (ip.header().source(), ip.header().destination());
                (tcp.checksum(), tcp.calc_checksum_ipv4(src, dst).ok()?)
            }
            (TransportSlice::Tcp(tcp), NetSlice::Ipv6(ip)) => {
                let (src, dst) = (ip.header().source(), ip.header().destination());
                (tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).ok()?)
            }
            (TransportSlice::Udp(udp), NetSlice::Ipv4(ip)) if udp.checksum() != 0 => {
                let (src, dst) = (ip.header().source(), ip.header().destination());
                (udp.checksum(), udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()).ok()?)
            }
            (TransportSlice::Udp(udp), NetSlice::Ipv6(ip)) => {
                let (src, dst) = (ip.header().source(), ip.header().destination());
                (udp.checksum(), udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).ok()?)
            }
            _ => return None,
        };
        Some(said == right)
    }
}

/// A capture on one device, in both directions, until finished or dropped.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Frame>>>>,
    frames: Arc<Mutex<Vec<Frame>>>,
}

impl Capture {
    /// Starts; everything that passes after this returned is captured.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let socket = raw::packet_socket(netns, device)?;
        socket.set_recv_buffer_size(32 << 20).context("cannot make room for the capture")?;
        socket.set_read_timeout(Some(GLANCE)).context("cannot set a deadline")?;
        let stop = Arc::new(AtomicBool::new(false));
        let frames = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (stop, frames) = (stop.clone(), frames.clone());
            move || capture(&socket, &stop, &frames)
        });
        Ok(Self { stop, thread: Some(thread), frames })
    }

    /// Waits for a packet that `wanted` describes.
    pub fn expect(&self, what: &str, wanted: impl Fn(&Fields) -> bool) -> Result<Fields> {
        let deadline = Instant::now() + super::socket::PATIENCE;
        loop {
            let found = self.packets().into_iter().find(|fields| wanted(fields));
            match found {
                Some(fields) => return Ok(fields),
                None if Instant::now() > deadline => {
                    bail!(
                        "{what} was not captured; {} packets were: {:?}",
                        self.packets().len(),
                        self.packets()
                    )
                }
                None => thread::sleep(GLANCE),
            }
        }
    }

    /// The IP packets captured so far.
    pub fn packets(&self) -> Vec<Fields> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter_map(Frame::fields).collect()
    }

    /// Stops and returns all frames; what had passed before the call is in them.
    pub fn finish(mut self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("already ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the capture panicked"))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn capture(socket: &Socket, stop: &AtomicBool, frames: &Mutex<Vec<Frame>>) -> Result<Vec<Frame>> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 1 << 18];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                // SAFETY: the kernel has written the first `len` bytes.
                let bytes = unsafe { buffer[..len].assume_init_ref() }.to_vec();
                frames.lock().unwrap_or_else(PoisonError::into_inner).push(Frame { bytes });
            }
            // Stop only when the queue is empty.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(std::mem::take(&mut *frames.lock().unwrap_or_else(PoisonError::into_inner)));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The device went down: there is nothing more to see, and what was seen counts.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error).context("the capture failed"),
        }
    }
}

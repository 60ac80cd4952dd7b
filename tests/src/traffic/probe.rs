//! Numbered packets at a steady rate: which were lost, which came twice, how long the longest silence was.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{icmp::EchoSocket, socket};
use crate::{
    family::{Family, Protocol},
    poll,
    station::Station,
};

/// The rate that disturbances are watched at: 1 kHz.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long the last answers may take.
const LATE: Duration = Duration::from_secs(2);
/// How often a receiver looks whether it shall end.
const GLANCE: Duration = Duration::from_millis(20);

/// What became of the probes.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// Requests sent.
    pub sent: u32,
    /// Numbers of the requests that were never answered.
    pub lost: Vec<u32>,
    /// Answers that came more than once.
    pub duplicates: u32,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl ProbeReport {
    /// Fails when anything was lost or doubled, or when there was nothing to lose.
    pub fn ensure_nothing_lost(&self, what: &str) -> Result<()> {
        ensure!(self.sent >= 100, "{what}: only {} probes were sent, which proves nothing", self.sent);
        ensure!(
            self.lost.is_empty() && self.duplicates == 0,
            "{what}: {} of {} probes lost (first numbers {:?}), {} doubled, longest silence {:?}",
            self.lost.len(),
            self.sent,
            &self.lost[..self.lost.len().min(20)],
            self.duplicates,
            self.longest_gap
        );
        Ok(())
    }
}

/// Echo requests (UDP or ICMP) at 1 kHz, until finished or dropped.
#[derive(Debug)]
pub struct Probe {
    stop_sending: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    sender: Option<JoinHandle<Result<u32>>>,
    receiver: Option<JoinHandle<Result<Answers>>>,
    echo: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Answers {
    seen: Vec<bool>,
    duplicates: u32,
    longest_gap: Duration,
}

impl Answers {
    fn note(&mut self, number: u32, last: &mut Option<Instant>) -> bool {
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        let index = number as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        let is_new = !std::mem::replace(&mut self.seen[index], true);
        self.duplicates += u32::from(!is_new);
        is_new
    }
}

/// The two ways of asking for an echo.
enum Asker {
    Udp(UdpSocket),
    Icmp(EchoSocket, IpAddr, u16),
}

impl Asker {
    fn send(&self, number: u32) -> Result<()> {
        match self {
            Self::Udp(socket) => socket.send(&number.to_be_bytes()).map(drop).context("cannot send a probe"),
            // The sequence number may wrap; the payload does not.
            Self::Icmp(socket, to, id) => socket.request(
                *to,
                *id,
                number.to_be_bytes()[2..].try_into().map_or(0, u16::from_be_bytes),
                &number.to_be_bytes(),
            ),
        }
    }

    fn receive(&self) -> Result<Option<u32>> {
        match self {
            Self::Udp(socket) => {
                let mut bytes = [0; 4];
                Ok(socket.recv(&mut bytes).is_ok_and(|len| len == 4).then(|| u32::from_be_bytes(bytes)))
            }
            Self::Icmp(socket, _, id) => {
                let echo = socket.receive(GLANCE)?.filter(|echo| !echo.is_request && echo.id == *id);
                Ok(echo.and_then(|echo| echo.payload.try_into().ok()).map(u32::from_be_bytes))
            }
        }
    }
}

/// Distinguishes concurrent ICMP probes of one process.
static NEXT_ID: AtomicU32 = AtomicU32::new(0x5000);

impl Probe {
    /// Starts probing, and waits until the first answer has come: whatever happens then happens under traffic.
    pub fn start(from: &dyn Station, to: &dyn Station, family: Family, protocol: Protocol) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let target = to.address(family);
        let (asker, echo) = if protocol == Protocol::Icmp {
            let id = u16::try_from(NEXT_ID.fetch_add(1, Ordering::Relaxed) & 0xffff).unwrap_or_default();
            (Asker::Icmp(EchoSocket::open(from.netns(), family)?, target, id), None)
        } else {
            let (server, address) = udp_echo(to, target, stop.clone())?;
            let client = socket::udp(from.netns(), family.unspecified())?;
            client.set_read_timeout(Some(GLANCE))?;
            client.connect(address).with_context(|| format!("{} has no route", from.name()))?;
            (Asker::Udp(client), Some(server))
        };
        let asker = Arc::new(asker);
        let stop_sending = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU32::new(0));
        let sender = thread::spawn({
            let (asker, stop) = (asker.clone(), stop_sending.clone());
            move || send(&asker, &stop)
        });
        let receiver = thread::spawn({
            let (stop, answered) = (stop.clone(), answered.clone());
            move || receive(&asker, &stop, &answered)
        });
        let probe =
            Self { stop_sending, stop, answered, sender: Some(sender), receiver: Some(receiver), echo };
        poll::wait_until("the first probe is answered", LATE, || probe.answered() > 0)?;
        Ok(probe)
    }

    /// How many probes have been answered so far.
    pub fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until that many more probes have been answered: traffic flows after what was just done.
    pub fn wait_for_more(&self, more: u32) -> Result<()> {
        let enough = self.answered() + more;
        let within = Duration::from_secs(10) + INTERVAL * more;
        poll::wait_until("more probes are answered", within, || self.answered() >= enough)
    }

    /// Stops sending, waits for the last answers and tells what happened.
    pub fn finish(mut self) -> Result<ProbeReport> {
        self.stop_sending.store(true, Ordering::Relaxed);
        let sent = join(self.sender.take())??;
        // The wait ends early when all is answered; what is missing at its end shows in the report.
        let _some_lost = poll::wait_until("all probes are answered", LATE, || self.answered() >= sent);
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = join(self.receiver.take())??;
        answers.seen.resize(sent as usize, false);
        let lost =
            (0..sent).zip(&answers.seen).filter(|(_, seen)| !**seen).map(|(number, _)| number).collect();
        Ok(ProbeReport { sent, lost, duplicates: answers.duplicates, longest_gap: answers.longest_gap })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        // Threads that failed were of interest to `finish` only.
        let _ended = join(self.sender.take());
        let _ended = join(self.receiver.take());
        let _ended = join(self.echo.take());
    }
}

fn join<T>(thread: Option<JoinHandle<T>>) -> Result<T> {
    let thread = thread.context("already ended")?;
    thread.join().map_err(|_| anyhow::anyhow!("a thread of the probe panicked"))
}

fn send(asker: &Asker, stop: &AtomicBool) -> Result<u32> {
    let start = Instant::now();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        asker.send(number)?;
        number += 1;
        // Paced by the clock from the start, so that a late wake-up is caught up with.
        thread::sleep((start + INTERVAL * number).saturating_duration_since(Instant::now()));
    }
    Ok(number)
}

fn receive(asker: &Asker, stop: &AtomicBool, answered: &AtomicU32) -> Result<Answers> {
    let mut answers = Answers::default();
    let mut last = None;
    while !stop.load(Ordering::Relaxed) {
        if let Some(number) = asker.receive()?
            && answers.note(number, &mut last)
        {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(answers)
}

/// A thread that returns every datagram to its sender.
fn udp_echo(
    at: &dyn Station,
    address: IpAddr,
    stop: Arc<AtomicBool>,
) -> Result<(JoinHandle<()>, SocketAddr)> {
    let server = socket::udp(at.netns(), address)?;
    server.set_read_timeout(Some(GLANCE))?;
    let address = server.local_addr()?;
    let echo = thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, peer)) = server.recv_from(&mut buffer) {
                // A failure shows as a lost probe.
                let _shows_as_loss = server.send_to(&buffer[..len], peer);
            }
        }
    });
    Ok((echo, address))
}

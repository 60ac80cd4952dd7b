//! The tools that engineers trust: ping, curl, iperf3, traceroute, tracepath.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::socket;
use crate::{netns::Netns, shell, station::Station};

/// What `ping` measured.
#[derive(Clone, Copy, Debug)]
pub struct PingReport {
    /// Requests answered.
    pub received: u32,
    /// The fastest answer.
    pub fastest: Duration,
    /// The average.
    pub average: Duration,
}

/// Sends `count` echo requests; fails unless all are answered.
pub fn ping(from: &Netns, to: IpAddr, count: u32) -> Result<PingReport> {
    let mut command = from.command("ping");
    command.args(["-n", "-i", "0.05", "-W", "2", "-c", &count.to_string(), &to.to_string()]);
    let output = shell::text(&mut command)?;
    let report = parse_ping(&output).with_context(|| format!("ping said something unexpected:\n{output}"))?;
    ensure!(
        report.received == count,
        "{} of {count} pings to {to} were answered:\n{output}",
        report.received
    );
    Ok(report)
}

fn parse_ping(output: &str) -> Option<PingReport> {
    let received = output.split(" received").next()?.rsplit(' ').next()?.parse().ok()?;
    let mut times = output.split("min/avg/max/mdev = ").nth(1)?.split('/');
    let mut millis = || Some(Duration::from_secs_f64(times.next()?.parse::<f64>().ok()? / 1e3));
    Some(PingReport { received, fastest: millis()?, average: millis()? })
}

/// What a web server saw and said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpAnswer {
    /// The client's address as the server saw it.
    pub client: IpAddr,
}

/// A small web server that answers every request with the client's address.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves at an address of a station.
    pub fn start(at: &dyn Station, address: IpAddr) -> Result<Self> {
        let listener = socket::tcp_listener(at.netns(), address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = stop.clone();
            move || serve(&listener, &stop)
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Fetches the page with curl.
    pub fn get(&self, from: &dyn Station) -> Result<HttpAnswer> {
        let url = format!("http://{}/", self.address);
        let mut command = from.netns().command("curl");
        // The environment may name a proxy, which is of another network.
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5", &url]);
        let body = shell::text(&mut command)?;
        let client = body.trim().parse().with_context(|| format!("unexpected answer {body:?}"))?;
        Ok(HttpAnswer { client })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    // Polled, so that the server ends without a last visitor.
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A client that goes away shows at the client.
            Ok((stream, peer)) => drop(stream.set_nonblocking(false).and_then(|()| answer(stream, peer))),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn answer(stream: std::net::TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(socket::PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{}\n", peer.ip());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    reader.into_inner().write_all((head + &body).as_bytes())
}

/// An iperf3 server for one test.
#[derive(Debug)]
struct Iperf3Server {
    child: Child,
    /// Kept open: the server must be able to go on talking.
    _output: BufReader<ChildStdout>,
}

impl Drop for Iperf3Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// TCP throughput by iperf3, in gigabits per second.
pub fn iperf3(from: &dyn Station, to: &dyn Station, address: IpAddr, seconds: u32) -> Result<f64> {
    let _server = start_iperf3(to, address)?;
    let mut command = from.netns().command("iperf3");
    command.args(["--json", "--client", &address.to_string(), "--time", &seconds.to_string()]);
    let output = shell::text(&mut command)?;
    let report: Value = serde_json::from_str(&output).context("iperf3 wrote no JSON")?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("iperf3 measured nothing: {}", report["error"]))? / 1e9)
}

fn start_iperf3(at: &dyn Station, address: IpAddr) -> Result<Iperf3Server> {
    let mut command = at.netns().command("iperf3");
    command
        .args(["--server", "--one-off", "--forceflush", "--bind", &address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start iperf3")?;
    let mut output = BufReader::new(child.stdout.take().context("iperf3 has no output")?);
    let listening = output.by_ref().lines().map_while(Result::ok).any(|line| line.contains("listening"));
    let server = Iperf3Server { child, _output: output };
    ensure!(listening, "the iperf3 server ended before it listened");
    Ok(server)
}

/// The routers that `traceroute` sees on the way, the target last; `None` for one that kept silent.
pub fn traceroute(from: &Netns, to: IpAddr, method: &str) -> Result<Vec<Option<IpAddr>>> {
    let mut command = from.command("traceroute");
    command.args(["-n", "-q", "1", "-w", "2", "-m", "8", method, &to.to_string()]);
    let output = shell::text(&mut command)?;
    let hops = output.lines().skip(1);
    Ok(hops.map(|line| line.split_whitespace().nth(1).and_then(|hop| hop.parse().ok())).collect())
}

/// The path MTU that `tracepath` finds.
pub fn tracepath(from: &Netns, to: IpAddr) -> Result<u32> {
    let mut command = from.command("tracepath");
    let output = shell::text(command.args(["-n", &to.to_string()]))?;
    let pmtu = output.lines().rev().find_map(|line| line.split("Resume: pmtu ").nth(1));
    let pmtu = pmtu.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    pmtu.with_context(|| format!("tracepath found no MTU:\n{output}"))
}

/// The stock `bpftool`'s dump of a pinned map.
pub fn bpftool_dump(pin: &std::path::Path) -> Result<Value> {
    let mut command = Command::new("bpftool");
    let output = shell::text(command.args(["--json", "map", "dump", "pinned"]).arg(pin))?;
    serde_json::from_str(&output).context("bpftool wrote no JSON")
}

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    let mut command = Command::new("sh");
    shell::text(command.args(["-c", "command -v \"$0\"", program])).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_reports_are_understood() {
        let output = "--- 10.0.0.1 ping statistics ---\n\
                      3 packets transmitted, 2 received, 33% packet loss, time 102ms\n\
                      rtt min/avg/max/mdev = 0.040/0.055/0.068/0.011 ms\n";
        let report = parse_ping(output).unwrap();
        assert_eq!(report.received, 2);
        assert_eq!(report.fastest, Duration::from_micros(40));
        assert_eq!(report.average, Duration::from_micros(55));
    }

    #[test]
    fn a_missing_program_is_noticed() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program-anywhere"));
    }
}

//! Requests to the API server at full speed: plain HTTP over connections that stay open, to a `kubectl proxy`, which has
//! the credentials. kubectl itself would make one process of each request.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hypha_lab::cluster::{ControlPlane, Program};
use hypha_lab::netns::Netns;
use hypha_lab::poll;

/// Where the proxy listens, in the control plane's namespace.
const PORT: u16 = 8001;

/// The proxy; ended on drop.
pub struct Feed {
    child: Child,
    netns: Netns,
}

/// One connection to it.
pub struct Connection(BufReader<TcpStream>);

impl Feed {
    /// Starts the proxy in the control plane's namespace, as the administrator.
    pub fn start(plane: &ControlPlane) -> anyhow::Result<Self> {
        let mut command: Command = plane.netns().command(plane.programs().path(Program::Kubectl)?);
        command.arg("--kubeconfig").arg(plane.dir().join("admin.kubeconfig"));
        let child = command
            .args(["proxy", "--port", &PORT.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .context("starting kubectl proxy")?;
        let feed = Self { child, netns: Netns::open(plane.netns().name())? };
        poll::eventually("kubectl proxy serves", Duration::from_secs(20), || feed.connect().map(drop))?;
        Ok(feed)
    }

    /// A connection, made in the proxy's namespace.
    pub fn connect(&self) -> anyhow::Result<Connection> {
        let stream = self.netns.enter(|| TcpStream::connect(("127.0.0.1", PORT)))??;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Connection {
    /// Sends a request with a JSON body and reads its answer.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        self.send(method, path, body)?;
        self.answer()
    }

    /// Sends a request.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + body).as_bytes()).context("sending a request")
    }

    /// Reads the answer to what was sent; anything but a success is an error.
    pub fn answer(&mut self) -> anyhow::Result<String> {
        let status = self.line()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().context("an odd length")?,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
                None => break,
            }
        }
        let body = if chunked { self.chunks()? } else { self.take(length)? };
        ensure!(status.contains(" 20"), "the API server answers {status}: {body}");
        Ok(body)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).context("reading an answer")? == 0 {
            bail!("kubectl proxy closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    fn take(&mut self, length: usize) -> anyhow::Result<String> {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).context("reading an answer")?;
        String::from_utf8(body).context("an answer that is no text")
    }

    fn chunks(&mut self) -> anyhow::Result<String> {
        let mut body = String::new();
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).context("an odd chunk")?;
            body.push_str(&self.take(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

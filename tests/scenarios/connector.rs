//! Many connections at once: a process may hold only so many open files, so each pod's connections are held by a child.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use hypha_lab::{Pod, Station as _};
use socket2::SockRef;

/// Environment variable that makes this program open connections ("ADDRESS COUNT") and hold them until its input ends.
pub const CONNECT: &str = "HYPHA_LAB_CONNECT";

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What makes the child reset one of its connections.
const RESET: &str = "reset";

/// Connections of a pod, held by a child in its namespace.
pub struct Connector {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Connector {
    /// Opens `count` connections from the pod.
    pub fn open(pod: &Pod, to: SocketAddr, count: usize) -> Result<Self> {
        let mut command = pod.netns().command(env::current_exe()?);
        command.env(CONNECT, format!("{to} {count}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a child to hold connections")?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the child has no pipes");
        };
        let mut connector = Self { child, commands, answers: BufReader::new(answers) };
        connector
            .expect("connected")
            .with_context(|| format!("{} connects {count} times to {to}", pod.name()))?;
        Ok(connector)
    }

    /// Ends one of the connections by an RST.
    pub fn reset_one(&mut self) -> Result<()> {
        writeln!(self.commands, "{RESET}")?;
        self.expect(RESET)
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim() != wanted {
            bail!("the child says {:?}", line.trim());
        }
        Ok(())
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// What a program with [`CONNECT`] does.
pub fn hold_connections(task: &str) -> ExitCode {
    match hold(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold(task: &str) -> Result<()> {
    let (to, count) = task.split_once(' ').context("not ADDRESS COUNT")?;
    let (to, count): (SocketAddr, usize) = (to.parse()?, count.parse()?);
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let connected = TcpStream::connect_timeout(&to, PATIENCE);
        held.push(connected.with_context(|| format!("connection {number}"))?);
    }
    println!("connected");
    for line in io::stdin().lines() {
        if line? == RESET {
            let ended = held.pop().context("no connection left")?;
            SockRef::from(&ended).set_linger(Some(Duration::ZERO))?;
            drop(ended);
            println!("{RESET}");
        }
    }
    Ok(())
}

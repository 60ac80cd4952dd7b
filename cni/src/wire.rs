//! Lines and file descriptors over the agent's Unix socket.
//!
//! [`Lines`] serves both sides: it never blocks by itself, so that an async server can drive it from its own
//! readiness notifications, and a plain client from a socket with a timeout. [`call`] is the whole client.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, send, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::protocol::{ProtocolError, Request, Response};

/// Longest line accepted, in bytes: a `GC` of ten thousand attachments is about 1 MiB.
pub const MAX_LINE: usize = 4 << 20;

/// How a call to the agent can fail. All variants name the socket.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens: the agent is not running, or uses another run directory.
    #[error("no agent listens on {}: {source}", socket.display())]
    Unreachable {
        /// The socket's path.
        socket: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The agent did not take the call or did not answer in time.
    #[error("the agent on {} did not answer within {:.1} s", socket.display(), timeout.as_secs_f64())]
    Timeout {
        /// The socket's path.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection broke after it was made: the agent was stopped in the middle of the call.
    #[error("the connection to the agent on {} broke: {source}", socket.display())]
    Broken {
        /// The socket's path.
        socket: PathBuf,
        /// What the socket said.
        source: io::Error,
    },
    /// The answer (or the request) is not a message.
    #[error("the agent on {} speaks another language: {source}", socket.display())]
    Protocol {
        /// The socket's path.
        socket: PathBuf,
        /// What is wrong with it.
        source: ProtocolError,
    },
}

/// Sends `request`, with `netns` attached to its first byte, and waits for the answer.
///
/// `timeout` bounds the whole call, the connection included.
///
/// # Errors
/// Says whether the agent is down ([`CallError::Unreachable`]), slow, or gone halfway. An error that the agent
/// reports is not one of these: it is [`Response::Error`].
pub fn call(
    path: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<Response, CallError> {
    let deadline = Deadline { at: Instant::now() + timeout, timeout, socket: path };
    let protocol = |source| CallError::Protocol { socket: path.to_owned(), source };
    let line = request.encode().map_err(protocol)?;
    let stream = open(&deadline)?;
    send_line(&stream, &line, netns, &deadline)?;
    let mut lines = Lines::default();
    loop {
        if let Some(line) = lines.next_line() {
            return Response::decode(&line).map_err(protocol);
        }
        set_timeout(&stream, sockopt::ReceiveTimeout, &deadline)?;
        match lines.fill(stream.as_fd()) {
            Ok(0) => return Err(deadline.broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(deadline.classify(e)),
        }
    }
}

/// The end of one call's time, with what its errors need.
struct Deadline<'a> {
    at: Instant,
    timeout: Duration,
    socket: &'a Path,
}

impl Deadline<'_> {
    fn remaining(&self) -> Result<TimeVal, CallError> {
        let left = self.at.saturating_duration_since(Instant::now());
        // A zero timeval means "for ever" to the kernel.
        if left < Duration::from_micros(1) {
            return Err(self.expired());
        }
        let micros = i64::from(left.subsec_micros());
        Ok(TimeVal::new(i64::try_from(left.as_secs()).unwrap_or(i64::MAX), micros))
    }

    fn expired(&self) -> CallError {
        CallError::Timeout { socket: self.socket.to_owned(), timeout: self.timeout }
    }

    fn broken(&self, source: io::Error) -> CallError {
        CallError::Broken { socket: self.socket.to_owned(), source }
    }

    /// A socket timeout that ran out shows as `EAGAIN`.
    fn classify(&self, error: io::Error) -> CallError {
        if error.kind() == io::ErrorKind::WouldBlock { self.expired() } else { self.broken(error) }
    }
}

/// Connects. `SO_SNDTIMEO` bounds `connect` too, which blocks while a stuck agent's backlog is full.
fn open(deadline: &Deadline<'_>) -> Result<UnixStream, CallError> {
    let unreachable =
        |errno: Errno| CallError::Unreachable { socket: deadline.socket.to_owned(), source: errno.into() };
    let address = UnixAddr::new(deadline.socket).map_err(unreachable)?;
    let fd =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(unreachable)?;
    let stream = UnixStream::from(fd);
    loop {
        set_timeout(&stream, sockopt::SendTimeout, deadline)?;
        match connect(stream.as_raw_fd(), &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(deadline.expired()),
            Err(errno) => return Err(unreachable(errno)),
        }
    }
}

fn set_timeout(
    stream: &UnixStream,
    option: impl nix::sys::socket::SetSockOpt<Val = TimeVal>,
    deadline: &Deadline<'_>,
) -> Result<(), CallError> {
    setsockopt(stream, option, &deadline.remaining()?).map_err(|e| deadline.broken(e.into()))
}

fn send_line(
    stream: &UnixStream,
    line: &[u8],
    netns: Option<BorrowedFd<'_>>,
    deadline: &Deadline<'_>,
) -> Result<(), CallError> {
    let mut sent = 0;
    while sent < line.len() {
        set_timeout(stream, sockopt::SendTimeout, deadline)?;
        match send_some(stream, &line[sent..], netns.filter(|_| sent == 0)) {
            Ok(n) => sent += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(deadline.classify(errno.into())),
        }
    }
    Ok(())
}

/// One `send`; without `SIGPIPE`, which would end the shim without a word on its standard output.
fn send_some(stream: &UnixStream, bytes: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let Some(netns) = netns else {
        return send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL);
    };
    let fds = [netns.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)
}

/// Bytes and a descriptor received so far, cut into lines.
///
/// An async server calls [`Lines::fill`] when its socket is readable (tokio: `stream.async_io(Interest::READABLE,
/// || lines.fill(stream.as_fd()))`), then takes what is complete.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Lines {
    /// Receives once; returns the number of bytes, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` on a non-blocking socket without data or a blocking one whose timeout ran out, `InvalidData`
    /// when a line grows beyond [`MAX_LINE`], and whatever else `recvmsg` says.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut chunk = [0; 8192];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for rights in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = rights {
                for fd in fds {
                    // SAFETY: the kernel just installed this descriptor for us; nobody else knows its number.
                    self.fd = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let received = message.bytes;
        if self.bytes.len() + received > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line longer than 4 MiB"));
        }
        self.bytes.extend_from_slice(&chunk[..received]);
        Ok(received)
    }

    /// The next complete line, without its newline.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.iter().position(|&byte| byte == b'\n')?;
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    /// The descriptor that came with the last request, once.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::linux::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_the_first_byte() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let deadline = Deadline {
            at: Instant::now() + Duration::from_secs(9),
            timeout: Duration::ZERO,
            socket: Path::new("x"),
        };
        send_line(&ours, b"one\ntwo\n", Some(file.as_fd()), &deadline).unwrap();
        let mut lines = Lines::default();
        lines.fill(theirs.as_fd()).unwrap();
        let received = std::fs::File::from(lines.take_fd().unwrap());
        assert_eq!(received.metadata().unwrap().st_ino(), file.metadata().unwrap().st_ino());
        assert!(lines.take_fd().is_none());
        assert_eq!(lines.next_line().unwrap(), b"one");
        assert_eq!(lines.next_line().unwrap(), b"two");
        assert_eq!(lines.next_line(), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while ours.write_all(&[b'x'; 8192]).is_ok() {});
        let mut lines = Lines::default();
        let error = std::iter::repeat_with(|| lines.fill(theirs.as_fd())).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            lines in prop::collection::vec("[^\n]{0,40}", 0..6),
            cuts in prop::collection::vec(1_usize..30, 0..12),
        ) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let bytes: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            let mut received = Lines::default();
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                if now.is_empty() {
                    continue;
                }
                ours.write_all(now).unwrap();
                received.fill(theirs.as_fd()).unwrap();
                found.extend(std::iter::from_fn(|| received.next_line()));
            }
            let expected: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

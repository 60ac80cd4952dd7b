//! A fake agent: answers each call as the case wants, and remembers what it was asked.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hypha_cni::protocol::{Added, Call, Deleted, Request, Response, code};
use hypha_cni::wire::Lines;
use nix::sys::socket::{Shutdown, shutdown};

/// What the agent does about a call.
pub enum Reply {
    /// Answers.
    Say(Response),
    /// Answers with bytes that need not be a message.
    Raw(&'static [u8]),
    /// Closes the connection without an answer, as one that is killed does.
    HangUp,
    /// Keeps the connection and says nothing.
    Silence,
}

/// A call that arrived, with the inode of the file whose descriptor came along.
#[derive(Debug, Clone)]
pub struct Asked {
    pub call: Call,
    pub inode: Option<u64>,
}

/// Listens until it is dropped.
pub struct FakeAgent {
    listener: UnixListener,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// Starts listening on `socket`; `answer` is called for each request.
    pub fn start(socket: &Path, mut answer: impl FnMut(&Call) -> Reply + Send + 'static) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (record, accepting) = (Arc::clone(&asked), listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            let mut silent = Vec::new();
            // An error is the end: the listener was shut down.
            while let Ok((stream, _)) = accepting.accept() {
                let Some(request) = read(&stream) else { continue };
                let reply = answer(&request.call);
                record.lock().unwrap().push(request);
                match reply {
                    Reply::Say(response) => say(&stream, &response.encode().unwrap()),
                    Reply::Raw(bytes) => say(&stream, bytes),
                    Reply::HangUp => drop(stream),
                    Reply::Silence => silent.push(stream),
                }
            }
        });
        Self { listener, socket: socket.to_owned(), asked, thread: Some(thread) }
    }

    /// An agent that does what it is asked.
    pub fn obedient(socket: &Path) -> Self {
        Self::start(socket, |call| Reply::Say(obey(call)))
    }

    /// Everything asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The calls asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.asked().into_iter().map(|asked| asked.call).collect()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = std::fs::remove_file(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer of an agent for which all goes well.
pub fn obey(call: &Call) -> Response {
    match call {
        Call::Add(add) => Response::Added(Added {
            host_ifname: "hy0123456789abc".into(),
            host_mac: "0a:00:00:00:00:01".into(),
            container_ifname: add.attachment.ifname.clone(),
            mac: "0a:00:00:00:00:02".into(),
            mtu: add.mtu.unwrap_or(1450),
            addresses: add
                .addresses
                .clone()
                .unwrap_or_else(|| vec!["10.1.0.5/32".parse().unwrap(), "fd00:1::5/128".parse().unwrap()]),
            gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        }),
        Call::Del(_) => Response::Deleted(Deleted { addresses: vec!["10.1.0.5".parse().unwrap()] }),
        Call::Check(_) => Response::Checked,
        Call::Gc(_) => Response::Collected { removed: 0 },
        Call::Status => Response::Ready,
        Call::Info | Call::Endpoints => {
            Response::error(code::INTERNAL, "the shim has no business with this", "")
        }
    }
}

fn read(stream: &UnixStream) -> Option<Asked> {
    let mut lines = Lines::default();
    let line = loop {
        if let Some(line) = lines.next_line() {
            break line;
        }
        if lines.fill(stream.as_fd()).unwrap() == 0 {
            return None;
        }
    };
    let request = Request::decode(&line).unwrap();
    let inode = lines.take_fd().map(|fd| std::fs::File::from(fd).metadata().unwrap().st_ino());
    Some(Asked { call: request.call, inode })
}

/// The shim may be gone already: that is the case's business.
fn say(mut stream: &UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

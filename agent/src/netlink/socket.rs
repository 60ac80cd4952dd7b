//! A blocking rtnetlink socket: many requests in one system call, consistent dumps, the kernel's own words on errors.
//!
//! The kernel runs an rtnetlink request inside `sendmsg`, and some take their time: a veth's deletion waits for RCU
//! grace periods. On an asynchronous connection that wait would stop a worker of the runtime and every task on it, and
//! all requests queue behind the slowest. So the agent opens a socket per operation (2 us) on a thread that may block;
//! operations on different devices then overlap as far as the kernel lets them.

use std::io;

use nix::errno::Errno;
use rtnetlink::{
    packet_core::{
        DoneMessage, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
        NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
    },
    packet_route::RouteNetlinkMessage,
    sys::{self, SocketAddr, protocols::NETLINK_ROUTE},
};
use tracing::debug;

use super::NetlinkError;

/// Requests per datagram: their acknowledgements must fit the socket's receive buffer.
const BATCH: usize = 64;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often a dump that something changed under is repeated.
const DUMP_ATTEMPTS: usize = 10;
/// The extended acknowledgement's attribute with the kernel's message (`NLMSGERR_ATTR_MSG`).
const EXTENDED_ACK_MESSAGE: u16 = 1;
/// An error echoes the request's header (and no more, by `NETLINK_CAP_ACK`) before its attributes.
const ECHOED_HEADER: usize = 16;

/// One request, with what to say when it fails.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Completes "cannot ...": what is done to what.
    pub what: String,
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_*` besides `REQUEST` and `ACK`.
    pub flags: u16,
}

impl Request {
    /// A request with `flags` besides those every request carries.
    pub fn new(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what: what.into(), message, flags }
    }
}

/// What one request brought: the messages the kernel sent before its acknowledgement, or its refusal.
pub(super) type Reply = Result<Vec<RouteNetlinkMessage>, NetlinkError>;

/// A blocking rtnetlink socket, bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    inner: sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<sys::Socket> {
            let mut socket = sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            // The kernel filters dumps by the request's fields only when it may check them strictly.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let inner = open().map_err(NetlinkError::Open)?;
        Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends all requests, in order, and returns what became of each. A refused request does not stop those after it.
    pub fn exchange(&mut self, requests: &[Request]) -> Result<Vec<Reply>, NetlinkError> {
        let mut replies = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            self.exchange_batch(batch, &mut replies)?;
        }
        Ok(replies)
    }

    /// Sends all requests, in order, and fails with the first refusal.
    pub fn run(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        self.exchange(requests)?.into_iter().try_for_each(|reply| reply.map(drop))
    }

    /// Sends one request and returns the message it asks for, if the kernel sent one.
    pub fn one(&mut self, request: Request) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        match self.exchange(&[request])?.pop() {
            Some(reply) => Ok(reply?.into_iter().next()),
            None => Ok(None),
        }
    }

    /// Everything that matches `message`, as it was at one moment.
    ///
    /// An entry that cannot be decoded (a kernel newer than the decoder) is left out rather than failing the rest.
    pub fn dump(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(entries) = self.dump_once(what, message)? {
                return Ok(entries);
            }
        }
        Err(NetlinkError::Inconsistent { what: what.into() })
    }

    fn exchange_batch(&mut self, batch: &[Request], replies: &mut Vec<Reply>) -> Result<(), NetlinkError> {
        let Some(first) = batch.first() else { return Ok(()) };
        let failed = |source| NetlinkError::Socket { what: first.what.clone(), source };
        let base = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for request in batch {
            self.append(&mut datagram, request.message.clone(), NLM_F_ACK | request.flags);
        }
        self.inner.send(&datagram, 0).map_err(failed)?;

        let mut answers: Vec<Vec<RouteNetlinkMessage>> = batch.iter().map(|_| Vec::new()).collect();
        let mut outcomes: Vec<Option<ErrorMessage>> = vec![None; batch.len()];
        while outcomes.iter().any(Option::is_none) {
            for (header, payload) in self.receive().map_err(failed)? {
                let index = header.sequence_number.wrapping_sub(base) as usize;
                let (Some(answer), Some(outcome)) = (answers.get_mut(index), outcomes.get_mut(index)) else {
                    continue;
                };
                match payload {
                    NetlinkPayload::InnerMessage(message) => answer.push(message),
                    NetlinkPayload::Error(error) => *outcome = Some(error),
                    _ => {}
                }
            }
        }
        replies.extend(
            outcomes
                .into_iter()
                .flatten()
                .zip(answers)
                .zip(batch)
                .map(|((outcome, answer), request)| refusal(&request.what, &outcome).map_or(Ok(answer), Err)),
        );
        Ok(())
    }

    /// `None` when the table changed while the kernel dumped it.
    fn dump_once(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, NetlinkError> {
        let failed = |source| NetlinkError::Socket { what: what.into(), source };
        let mut datagram = Vec::new();
        self.append(&mut datagram, message.clone(), NLM_F_DUMP);
        let sequence = self.sequence;
        self.inner.send(&datagram, 0).map_err(failed)?;

        let (mut entries, mut consistent) = (Vec::new(), true);
        loop {
            for (header, payload) in self.receive().map_err(failed)? {
                if header.sequence_number != sequence {
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => entries.push(message),
                    NetlinkPayload::Done(done) => {
                        return match ended(what, &done) {
                            Some(error) => Err(error),
                            None => Ok(consistent.then_some(entries)),
                        };
                    }
                    NetlinkPayload::Error(error) => {
                        if let Some(error) = refusal(what, &error) {
                            return Err(error);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut datagram[start..]);
    }

    /// The messages of the next datagram.
    fn receive(&mut self) -> io::Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>> {
        self.buffer.clear();
        while let Err(error) = self.inner.recv(&mut self.buffer, 0) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let mut rest = self.buffer.as_slice();
        let mut messages = Vec::new();
        while let Ok(length) = NetlinkBuffer::new_checked(&rest).map(|message| message.length() as usize) {
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message.into_parts()),
                Err(error) => debug!(%error, "left out a netlink message that cannot be decoded"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn refusal(what: &str, error: &ErrorMessage) -> Option<NetlinkError> {
    let code = error.code?;
    let attributes = error.header.get(ECHOED_HEADER..).unwrap_or_default();
    Some(refused(what, code.get(), attributes))
}

fn ended(what: &str, done: &DoneMessage) -> Option<NetlinkError> {
    (done.code != 0).then(|| refused(what, done.code, &done.extended_ack))
}

fn refused(what: &str, code: i32, attributes: &[u8]) -> NetlinkError {
    let explanation = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == EXTENDED_ACK_MESSAGE)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    NetlinkError::Refused { what: format!("cannot {what}"), errno: Errno::from_raw(-code), explanation }
}

//! What goes into one run of a program, and what must have come out of it.

use std::collections::BTreeMap;

use datapath_ebpf::{DropReason, Forward, Outcome, Program, maps::MARK_HANDLED};

use super::{
    frames::{self, Packet},
    topology::{Family, GATEWAY_MAC},
};

/// By program and outcome: packets and bytes.
pub type Moved = BTreeMap<(&'static str, &'static str), (u64, u64)>;

/// A frame and what the stack knows about it.
#[derive(Clone, Debug)]
pub struct Input {
    pub frame: Vec<u8>,
    pub gso_size: u32,
    pub mark: u32,
    /// The device, when it is not the one the program usually runs on here.
    pub ifindex: Option<u32>,
}

impl Input {
    /// Still to be split into segments of this many payload bytes.
    pub fn gso_size(self, gso_size: u32) -> Self {
        Self { gso_size, ..self }
    }

    /// Marked.
    pub fn mark(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    /// Seen on another device.
    pub fn on(self, ifindex: u32) -> Self {
        Self { ifindex: Some(ifindex), ..self }
    }
}

impl From<Vec<u8>> for Input {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, gso_size: 0, mark: 0, ifindex: None }
    }
}

impl From<&Packet> for Input {
    fn from(packet: &Packet) -> Self {
        packet.bytes().into()
    }
}

/// What one run did.
#[derive(Debug)]
pub struct Run {
    pub program: Program,
    pub input: Input,
    pub verdict: i32,
    pub frame: Vec<u8>,
    pub mark: u32,
    pub moved: Moved,
}

const NEXT: i32 = -1;
/// The verdict of a drop.
pub const DROP: i32 = 2;
const REDIRECT: i32 = 7;

impl Run {
    /// The packet must have gone this way and look like this, byte by byte.
    #[track_caller]
    pub fn forwarded(&self, forward: Forward, expected: &Packet) {
        self.went(forward);
        self.left(&expected.bytes());
    }

    /// The packet must have gone this way: counter, verdict and mark.
    #[track_caller]
    pub fn went(&self, forward: Forward) {
        self.counted(Outcome::Forward(forward));
        let ingress = !matches!(self.program, Program::ToPod | Program::ToUplink);
        let stays = matches!(forward, Forward::Stack | Forward::Handled);
        assert_eq!(self.verdict, if ingress && !stays { REDIRECT } else { NEXT }, "verdict");
        // Redirects into a pod cross into its namespace, where marks end; everything else meets our own later hooks.
        let into_pod = matches!(forward, Forward::Pod | Forward::Unmasquerade | Forward::HostPort)
            || (matches!(forward, Forward::RelatedError | Forward::HostPortReply)
                && self.frame[6..12] == GATEWAY_MAC);
        let marked = ingress && !stays && !into_pod;
        assert_eq!(self.mark, if marked { MARK_HANDLED } else { self.input.mark }, "mark");
    }

    /// The packet must have gone to the stack as it came.
    #[track_caller]
    pub fn left_to_the_stack(&self) {
        self.counted(Outcome::Forward(Forward::Stack));
        assert_eq!((self.verdict, self.mark), (NEXT, self.input.mark), "verdict, mark");
        self.left(&self.input.frame);
    }

    /// The packet must have been dropped for this reason, before anything was done to it.
    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        self.counted(Outcome::Drop(reason));
        assert_eq!((self.verdict, self.mark), (DROP, self.input.mark), "verdict, mark");
        self.left(&self.input.frame);
    }

    /// The fragment must have been kept until the first one of its datagram comes.
    #[track_caller]
    pub fn kept(&self) {
        self.counted(Outcome::Forward(Forward::Held));
        assert_eq!((self.verdict, self.mark), (DROP, self.input.mark), "verdict, mark");
        self.left(&self.input.frame);
    }

    /// Exactly one counter moved: this one, by one packet and its bytes.
    #[track_caller]
    pub fn counted(&self, outcome: Outcome) {
        let name = match outcome {
            Outcome::Forward(forward) => forward.name(),
            Outcome::Drop(reason) => reason.name(),
        };
        let bytes = self.input.frame.len() as u64;
        assert_eq!(self.moved, Moved::from([((self.program.name(), name), (1, bytes))]), "counters");
    }

    /// The frame must look like this.
    #[track_caller]
    pub fn left(&self, expected: &[u8]) {
        let differs = self.frame.iter().zip(expected).position(|(a, b)| a != b);
        assert!(
            self.frame == expected,
            "frames differ from byte {}:\n  left     {}\n  expected {}",
            differs.unwrap_or(expected.len().min(self.frame.len())),
            hex(&self.frame),
            hex(expected),
        );
    }

    /// The source port or identifier the frame has after its fixed IP header.
    pub fn src_port(&self, family: Family) -> u16 {
        let transport = frames::ETHERNET + family.header();
        let protocol = self.frame[frames::ETHERNET + family.pick(9, 6)];
        let at = if matches!(protocol, 1 | 58) { transport + 4 } else { transport };
        u16::from_be_bytes([self.frame[at], self.frame[at + 1]])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(2).map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect::<String>() + " ").collect()
}

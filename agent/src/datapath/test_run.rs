//! Running a program on one packet by `BPF_PROG_TEST_RUN`: the real program and the real maps, without a device.

use std::time::Duration;

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use datapath_ebpf::Program;

use super::DatapathError;

/// What a program grows a packet by at most: the headers of an ICMP error.
const GROWTH: usize = 256;

/// A packet to run a program on.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The frame, Ethernet header included; at least 14 bytes.
    pub frame: &'a [u8],
    /// The device the program sees it on, of the caller's network namespace; 0 for the loopback device.
    pub ifindex: u32,
    /// Payload bytes per segment of a packet that is still to be split, else 0.
    pub gso_size: u32,
    /// `skb->mark` before.
    pub mark: u32,
    /// How often to run; the packet is not restored in between.
    pub repeat: u32,
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// `TCX_NEXT` (-1), `TCX_PASS` (0), `TCX_DROP` (2) or `TCX_REDIRECT` (7).
    pub verdict: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// `skb->mark` afterwards.
    pub mark: u32,
    /// Mean time of one run.
    pub duration: Duration,
}

pub(super) fn run(
    program: &SchedClassifier,
    which: Program,
    packet: &Packet<'_>,
) -> Result<Ran, DatapathError> {
    let mut frame = vec![0; packet.frame.len() + GROWTH];
    let context_in = context(packet);
    let mut context_out = context_in;
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet.frame);
    options.data_out = Some(&mut frame);
    options.ctx_in = Some(&context_in);
    options.ctx_out = Some(&mut context_out);
    options.repeat = packet.repeat.max(1);
    let result = program.test_run(options).map_err(DatapathError::program(which.name(), packet.ifindex))?;
    frame.truncate(result.data_size_out as usize);
    let verdict = result.return_value.cast_signed();
    Ok(Ran { verdict, frame, mark: word(&context_out, MARK), duration: result.duration })
}

/// `struct __sk_buff` of `linux/bpf.h` as bytes, and where the fields used here start.
type Context = [u8; 192];
const MARK: usize = 8;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;

/// The kernel takes only a few fields, and refuses a context in which any other is not zero.
fn context(packet: &Packet<'_>) -> Context {
    let mut context = [0; size_of::<Context>()];
    context[MARK..][..4].copy_from_slice(&packet.mark.to_ne_bytes());
    context[IFINDEX..][..4].copy_from_slice(&packet.ifindex.to_ne_bytes());
    context[GSO_SIZE..][..4].copy_from_slice(&packet.gso_size.to_ne_bytes());
    context
}

fn word(context: &Context, offset: usize) -> u32 {
    u32::from_ne_bytes([context[offset], context[offset + 1], context[offset + 2], context[offset + 3]])
}

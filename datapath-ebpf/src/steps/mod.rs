//! What the programs are made of.

use datapath_ebpf::{DropReason, Forward};

pub mod bits;
pub mod claim;
pub mod clock;
pub mod counters;
pub mod deliver;
pub mod events;
pub mod flows;
pub mod forward;
pub mod fragments;
pub mod host_ports;
pub mod icmp_error;
pub mod inbound;
pub mod masquerade;
pub mod quote;
pub mod related;
pub mod rewrite;
pub mod scratch;
pub mod skb;
pub mod sockets;
pub mod source;
pub mod tables;
pub mod transport;
pub mod wrap;

/// How a packet ends: the way it went, or why it was dropped.
pub type Verdict = Result<Forward, DropReason>;

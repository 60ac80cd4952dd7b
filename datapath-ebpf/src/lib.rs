//! What the eBPF programs and user space share: map keys and values, constants, drop reasons and the pure packet logic.
//!
//! Everything here compiles for target `bpf` and for the host, where it is unit-tested.
//!
//! Addresses, ports and MACs are kept as bytes in network order, wrapped in types with accessors, so that no call site
//! ever swaps bytes. IPv4 addresses are stored IPv4-mapped (`::ffff:a.b.c.d`): one map serves both families.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod addr;
pub mod checksum;
pub mod collect;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod maps;
pub mod outcome;
pub mod packet;
pub mod transport;

pub use addr::{Ip, Mac, Port};
pub use outcome::{DropReason, Forward, Outcome, Program};

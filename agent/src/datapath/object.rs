//! The eBPF object, embedded: a node needs no file of ours but the binary.

use aya::include_bytes_aligned;

/// The object's bytes, as `agent/build.rs` built them; empty when it was told to skip that.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hypha.o"));

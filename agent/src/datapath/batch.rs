//! Reading whole hash maps by batches: aya has no batch operations, and one system call an entry is too slow for maps
//! with hundreds of thousands of flows.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::DatapathError;

/// Entries per call: large enough that a bucket always fits, which the kernel demands.
const ENTRIES: usize = 4096;

/// Every entry of a hash map whose keys are `K` and values `V`. Entries that come or go meanwhile may be missed or seen.
pub fn read<K: Pod, V: Pod>(map: &'static str, data: &MapData) -> Result<Vec<(K, V)>, DatapathError> {
    let mut all = Vec::new();
    let mut keys = vec![mem::MaybeUninit::<K>::uninit(); ENTRIES];
    let mut values = vec![mem::MaybeUninit::<V>::uninit(); ENTRIES];
    // The kernel's cursor: a hash map's is a bucket number.
    let (mut cursor, mut next) = (0u32, 0u32);
    let mut first = true;
    loop {
        // SAFETY: all-zero is a valid value of this plain C union.
        let mut attr: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: every bit pattern is valid for the variant's integers.
        let batch = unsafe { &mut attr.batch };
        batch.in_batch = if first { 0 } else { (&raw const cursor).expose_provenance() as u64 };
        batch.out_batch = (&raw mut next).expose_provenance() as u64;
        batch.keys = keys.as_mut_ptr().expose_provenance() as u64;
        batch.values = values.as_mut_ptr().expose_provenance() as u64;
        batch.count = ENTRIES as u32;
        batch.map_fd = data.fd().as_fd().as_raw_fd().cast_unsigned();
        let ended = match lookup_batch(&mut attr) {
            Ok(()) => false,
            // The kernel's way to say that this was the last batch.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(source) => return Err(DatapathError::Batch { call: "BPF_MAP_LOOKUP_BATCH", map, source }),
        };
        // SAFETY: the kernel has written the count.
        let count = unsafe { attr.batch.count } as usize;
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel has written this many keys and values; every bit pattern of a `Pod` is valid.
            all.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        if ended {
            return Ok(all);
        }
        (first, cursor) = (false, next);
    }
}

fn lookup_batch(attr: &mut bpf_attr) -> io::Result<()> {
    let command = bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_long;
    // SAFETY: the attributes point to buffers as large as they say, which live across the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<bpf_attr>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

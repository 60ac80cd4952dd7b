//! Reading and writing hash maps by batches: aya has no batch operations, and one system call an entry is too slow for maps with
//! hundreds of thousands of flows.

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
    chunks(map, data, |chunk| {
        all.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(all)
}

/// The same, some thousand entries at a time.
pub fn chunks<K: Pod, V: Pod>(
    map: &'static str,
    data: &MapData,
    mut take: impl FnMut(&[(K, V)]) -> Result<(), DatapathError>,
) -> Result<(), DatapathError> {
    let mut chunk = Vec::with_capacity(ENTRIES);
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
        // SAFETY: the attributes point to buffers as large as they say, which live across the call.
        let ended = match unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(()) => false,
            // The kernel's way to say that this was the last batch.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(source) => return Err(DatapathError::Batch { call: "BPF_MAP_LOOKUP_BATCH", map, source }),
        };
        // SAFETY: the kernel has written the count.
        let count = unsafe { attr.batch.count } as usize;
        chunk.clear();
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel has written this many keys and values; every bit pattern of a `Pod` is valid.
            chunk.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        take(&chunk)?;
        if ended {
            return Ok(());
        }
        (first, cursor) = (false, next);
    }
}

/// Inserts entries in their order; returns how many there was room for.
pub fn write<K: Pod, V: Pod>(
    map: &'static str,
    data: &MapData,
    entries: &[(K, V)],
) -> Result<usize, DatapathError> {
    if entries.is_empty() {
        return Ok(0);
    }
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    // SAFETY: all-zero is a valid value of this plain C union.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: every bit pattern is valid for the variant's integers.
    let batch = unsafe { &mut attr.batch };
    batch.keys = keys.as_ptr().expose_provenance() as u64;
    batch.values = values.as_ptr().expose_provenance() as u64;
    batch.count = entries.len() as u32;
    batch.map_fd = data.fd().as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the attributes point to as many keys and values as they say, which live across the call.
    match unsafe { call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) } {
        Ok(()) => Ok(entries.len()),
        // SAFETY: the kernel has written the count.
        Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(unsafe { attr.batch.count } as usize),
        Err(source) => Err(DatapathError::Batch { call: "BPF_MAP_UPDATE_BATCH", map, source }),
    }
}

/// # Safety
/// The attributes must be what `command` expects, and every address in them valid for the lengths they say.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: by contract; the size is that of the union.
    match unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attr, size_of::<bpf_attr>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

//! Setting and clearing bits that several CPUs share.
//!
//! The BPF target has no atomic read-modify-write operations in `core::sync::atomic`, because old instruction sets lack them; the
//! instructions themselves are there since version 3 (Linux 5.12), which the programs are built for.

use core::intrinsics::{AtomicOrdering::Relaxed, atomic_and, atomic_or};

/// Sets these bits.
///
/// # Safety
/// `word` must be valid for reads and writes, and be accessed only by whole words while programs run.
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: by contract.
    unsafe { atomic_or::<u64, u64, { Relaxed }>(word, bits) };
}

/// Clears these bits.
///
/// # Safety
/// As for [`set`].
#[inline(always)]
pub unsafe fn clear(word: *mut u64, bits: u64) {
    // SAFETY: by contract.
    unsafe { atomic_and::<u64, u64, { Relaxed }>(word, !bits) };
}

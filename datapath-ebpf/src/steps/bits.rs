//! Words that several CPUs share: bits set and cleared, counters, and words that change only from what was expected.
//!
//! The BPF target has no atomic read-modify-write operations in `core::sync::atomic`, because old instruction sets lack them; the
//! instructions themselves are there since version 3 (Linux 5.12), which the programs are built for. The kernel makes those that
//! return the old value full barriers.

use core::intrinsics::{
    AtomicOrdering::{Relaxed, SeqCst},
    atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg,
};

/// Sets these bits.
///
/// # Safety
/// `word` must be valid for reads and writes, and be accessed only by whole words while programs run.
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: by contract.
    unsafe { atomic_or::<u64, u64, { Relaxed }>(word, bits) };
}

/// Sets these bits and tells what the word was; a full barrier.
///
/// # Safety
/// As for [`set`].
#[inline(always)]
pub unsafe fn fetch_set(word: *mut u64, bits: u64) -> u64 {
    // SAFETY: by contract.
    unsafe { atomic_or::<u64, u64, { SeqCst }>(word, bits) }
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

/// Adds and tells what the word was; a full barrier.
///
/// # Safety
/// As for [`set`].
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, number: u64) -> u64 {
    // SAFETY: by contract.
    unsafe { atomic_xadd::<u64, u64, { SeqCst }>(word, number) }
}

/// Writes the word; a full barrier.
///
/// # Safety
/// As for [`set`].
#[inline(always)]
pub unsafe fn replace(word: *mut u64, new: u64) -> u64 {
    // SAFETY: by contract.
    unsafe { atomic_xchg::<u64, { SeqCst }>(word, new) }
}

/// Writes the word if it is still `old`, and tells whether it was; a full barrier.
///
/// # Safety
/// As for [`set`].
#[inline(always)]
pub unsafe fn replace_if(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: by contract.
    unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new).0 == old }
}

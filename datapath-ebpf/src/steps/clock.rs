//! The time, as flows keep it.

use aya_ebpf::helpers::generated as helpers;
use datapath_ebpf::flow;

/// The monotonic clock in nanoseconds, as of the last timer interrupt: a few milliseconds' error for the price of a load.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: no arguments.
    unsafe { helpers::bpf_ktime_get_coarse_ns() }
}

/// The same in ticks.
#[inline(always)]
pub fn ticks() -> u32 {
    flow::ticks(nanoseconds())
}

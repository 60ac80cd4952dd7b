//! Every packet is counted once per program, under what became of it.

use datapath_ebpf::{Program, outcome::counter_index};

use super::tables::COUNTERS;

/// Adds a packet to this CPU's slot.
#[inline(always)]
pub fn count(program: Program, number: u8, length: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter_index(program, number)) {
        // SAFETY: the slot is this CPU's own, and TC programs do not interrupt each other on one CPU.
        unsafe {
            (*counter).packets = (*counter).packets.wrapping_add(1);
            (*counter).bytes = (*counter).bytes.wrapping_add(length as u64);
        }
    }
}

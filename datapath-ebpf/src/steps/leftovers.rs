//! What flows leave behind elsewhere: ways back without a flow, pools that nobody searches any more, traces of fragmented
//! datagrams of pods that are gone. Part of the program `collect`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated as helpers;
use datapath_ebpf::{
    collect::{AUDIT, OWNERS},
    flow::{flow_of, ticks_of_seconds},
    maps::{Endpoint, FlowKey, Fragment, FragmentKey, Pool, PoolKey, Reverse},
};

use super::{
    claim,
    tables::{CONNTRACK, FRAGMENTS, NAT, PORTS, find_endpoint},
};
use crate::programs::collect::{HALF_MADE, Run};

/// A pool that was not searched for so long is not needed: random tries find a port again.
const POOL_UNUSED: u32 = ticks_of_seconds(60);

/// Walks the smaller maps, as the request's mode says.
#[inline(always)]
pub fn collect(run: &mut Run) {
    let mode = run.mode;
    let state = core::ptr::from_mut(run).cast::<c_void>();
    // SAFETY: the callbacks have the signature that the helper calls, and `run` outlives the calls.
    unsafe {
        if mode & AUDIT != 0 {
            let (backs, pools) = ((&raw const NAT).cast_mut().cast(), (&raw const PORTS).cast_mut().cast());
            helpers::bpf_for_each_map_elem(backs, visit_back as *const () as *mut c_void, state, 0);
            helpers::bpf_for_each_map_elem(pools, visit_pool as *const () as *mut c_void, state, 0);
        }
        if mode & OWNERS != 0 {
            let fragments = (&raw const FRAGMENTS).cast_mut().cast();
            helpers::bpf_for_each_map_elem(fragments, visit_fragment as *const () as *mut c_void, state, 0);
        }
    }
}

/// Whether something that happened at `then` is longer ago than `age`.
#[inline(always)]
fn is_older(then: u32, age: u32, now: u32) -> bool {
    let elapsed = now.wrapping_sub(then);
    elapsed > age && elapsed <= i32::MAX as u32
}

#[inline(never)]
extern "C" fn visit_back(_map: *mut c_void, key: *const FlowKey, back: *const Reverse, run: *mut Run) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `collect` gave it.
    let (key, back, run) = unsafe { (*key, *back, &mut *run) };
    if is_older(back.created, HALF_MADE, run.now)
        && CONNTRACK.get_ptr(&flow_of(&key, back.address, back.port)).is_none()
        && is_still(&key, &back)
    {
        let _ = NAT.remove(&key);
        claim::forget(&key);
        // SAFETY: `collect`'s caller gave a valid pointer.
        unsafe { (*run.found).orphans += 1 };
    }
    0
}

/// The entry's memory may have become another's while it was read.
#[inline(always)]
fn is_still(key: &FlowKey, back: &Reverse) -> bool {
    // SAFETY: compared at once.
    unsafe { NAT.get(key) }.is_some_and(|now| {
        now.address == back.address && now.port == back.port && now.created == back.created
    })
}

#[inline(never)]
extern "C" fn visit_pool(_map: *mut c_void, key: *const PoolKey, pool: *const Pool, run: *mut Run) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `collect` gave it.
    let (key, last_used, run) = unsafe { (*key, (*pool).last_used, &mut *run) };
    if is_older(last_used, POOL_UNUSED, run.now) {
        let _ = PORTS.remove(&key);
        // SAFETY: `collect`'s caller gave a valid pointer.
        unsafe { (*run.found).pools += 1 };
    }
    0
}

#[inline(never)]
extern "C" fn visit_fragment(
    _map: *mut c_void,
    key: *const FragmentKey,
    fragment: *const Fragment,
    run: *mut Run,
) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `collect` gave it.
    let (key, address, run) = unsafe { (*key, (*fragment).address, &mut *run) };
    // On the way in the destination is the node's and the address the owner's; on the way out the source is the owner's.
    let inwards = find_endpoint(&key.dst).is_some_and(|it| it.flags & Endpoint::HOST != 0);
    let owner = if inwards { address } else { key.src };
    if find_endpoint(&owner).is_none() {
        let _ = FRAGMENTS.remove(&key);
        // SAFETY: `collect`'s caller gave a valid pointer.
        unsafe { (*run.found).fragments += 1 };
    }
    0
}

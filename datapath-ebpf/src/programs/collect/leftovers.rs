//! What flows leave behind elsewhere: ways back without a flow, pools that nobody searches any more, traces of fragmented
//! datagrams of pods that are gone. Part of the program `collect`.

use core::ffi::c_void;

use aya_ebpf::helpers::generated as helpers;
use datapath_ebpf::{
    collect::{AUDIT, OWNERS},
    flow::{elapsed, flow_of, ticks_of_seconds},
    maps::{FlowKey, Fragment, FragmentKey, Pool, PoolKey, Reverse},
};

use super::{HALF_MADE, Run};
use crate::steps::{
    claim,
    tables::{CONNTRACK, FRAGMENTS, NAT, PORTS, find_endpoint},
};

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

#[inline(never)]
extern "C" fn visit_back(_map: *mut c_void, key: *const FlowKey, back: *const Reverse, run: *mut Run) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `collect` gave it.
    let (key, back, run) = unsafe { (*key, *back, &mut *run) };
    if elapsed(back.created, run.now) > HALF_MADE
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
    if elapsed(last_used, run.now) > POOL_UNUSED {
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
    // What comes from the world has no pod's device in its key, and the owner's address in its value.
    let owner = if key.ifindex == 0 { address } else { key.src };
    if find_endpoint(&owner).is_none() {
        let _ = FRAGMENTS.remove(&key);
        // SAFETY: `collect`'s caller gave a valid pointer.
        unsafe { (*run.found).fragments += 1 };
    }
    0
}

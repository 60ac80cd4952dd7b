//! Ending flows: walks `conntrack` inside the kernel and removes what has ended, both halves of it. The agent runs this and
//! reads what it found ([`Collection`]); no flow is ever copied out of the kernel.
//!
//! It runs in the agent's context, with interrupts on: programs on packets go on, on this CPU too. So it keeps away from what
//! they have per CPU (`scratch`), and every entry may change, go or come while it looks:
//! - An entry that is looked at may be removed and its memory given to another flow. Before anything is removed it is looked up by a
//!   copy of its key, and judged again.
//! - The way back goes first and the flow second. As long as the flow is there its packets claim nothing, so when one of them finds no
//!   flow any more and makes both halves anew, nothing here is left to be done that could hit them. (The other way round, the
//!   packet could take the old way back for its own just before that is removed, and insert a flow without one.)
//! - A packet of the flow that comes between the two is translated once more; its answer then finds no way back. The flow had ended, or it
//!   had to go: this is the same as coming a moment later.
//! - A flow that a program ends at the same time because its route has changed may be made anew between the look at its way back
//!   and the removal of that. Then one half can be left; both kinds of halves are looked for in an audit.

mod leftovers;

use core::ffi::c_void;

use aya_ebpf::{helpers::generated as helpers, programs::RawTracePointContext};
use datapath_ebpf::{
    collect::{AUDIT, Argument, CAUSES, Cause, Collection, EVICT, OWNERS},
    flow::{TIMEOUTS, elapsed, is_echo, ticks, ticks_of_seconds, way_back},
    maps::{Flow, FlowKey},
};

use crate::steps::{
    claim,
    flows::leads_to,
    tables::{COLLECTION, CONNTRACK, NAT, find_endpoint, is_host_address},
};

/// A half of a flow may be one that is just being made; an older one was cut short.
const HALF_MADE: u32 = ticks_of_seconds(10);

/// The argument of the callbacks.
#[repr(C)]
struct Run {
    found: *mut Collection,
    mode: u64,
    quota: u64,
    classes: u64,
    remote: [u64; 3],
    now: u32,
    idle: u32,
}

/// Answers one request.
#[inline(always)]
pub fn handle(ctx: &RawTracePointContext) {
    let Some(found) = COLLECTION.get_ptr_mut(0) else { return };
    let argument = |which: Argument| ctx.arg::<u64>(which as usize);
    let remote = Argument::Remote as usize;
    let mut run = Run {
        found,
        mode: argument(Argument::Mode),
        quota: argument(Argument::Quota),
        classes: argument(Argument::Classes),
        remote: [ctx.arg(remote), ctx.arg(remote + 1), ctx.arg(remote + 2)],
        now: argument(Argument::Now) as u32,
        idle: argument(Argument::Idle) as u32,
    };
    let state = (&raw mut run).cast::<c_void>();
    let flows = (&raw const CONNTRACK).cast_mut().cast::<c_void>();
    // SAFETY: the callbacks have the signature that the helper calls, and `run` outlives the calls.
    unsafe {
        if run.mode & EVICT != 0 {
            helpers::bpf_for_each_map_elem(flows, evict as *const () as *mut c_void, state, 0);
            return;
        }
        helpers::bpf_for_each_map_elem(flows, visit as *const () as *mut c_void, state, 0);
    }
    // The walk was cut short: the agent asks again.
    if run.quota != 0 {
        leftovers::collect(&mut run);
    }
}

/// One flow of a regular collection; 1 ends the walk.
#[inline(never)]
extern "C" fn visit(_map: *mut c_void, key: *const FlowKey, flow: *const Flow, run: *mut Run) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `handle` gave it.
    let (found, key, flow, run) = unsafe { (&mut *(*run).found, &*key, &*flow, &mut *run) };
    found.seen += 1;
    let class = flow.class(key.protocol) as usize & (TIMEOUTS - 1);
    if has_ended(key, flow, run).is_some() {
        let key = *key;
        // SAFETY: used before anything else touches the map.
        if let Some(flow) = unsafe { CONNTRACK.get(&key) }
            && let Some(cause) = has_ended(&key, flow, run)
        {
            end(&key, flow);
            found.ended[cause as usize & (CAUSES - 1)][class] += 1;
            run.quota = run.quota.saturating_sub(1);
        }
        return if run.quota == 0 { 1 } else { 0 };
    }
    found.entries[class] += 1;
    found.translated += !flow.nat_address.is_unspecified() as u64;
    0
}

/// Why this flow is to go, if it is.
#[inline(never)]
fn has_ended(key: &FlowKey, flow: &Flow, run: &Run) -> Option<Cause> {
    // SAFETY: `handle` gave a valid pointer.
    let limits = unsafe { &(*run.found).limits };
    if flow.idle(run.now) > limits[flow.class(key.protocol) as usize & (TIMEOUTS - 1)] {
        return Some(Cause::Idle);
    }
    if run.mode & OWNERS != 0 {
        if find_endpoint(&key.src).is_none() {
            return Some(Cause::Owner);
        }
        if !flow.nat_address.is_unspecified() && !is_host_address(&flow.nat_address) {
            return Some(Cause::Address);
        }
    }
    let settled = elapsed(ticks(flow.created), run.now) > HALF_MADE;
    if run.mode & AUDIT != 0 && settled && !flow.nat_address.is_unspecified() {
        let back = way_back(key, flow.nat_address, flow.nat_port);
        if !leads_to(&back, key) {
            return Some(Cause::Half);
        }
    }
    None
}

/// Removes both halves of a flow, and gives its port back. `key` is no pointer into the map.
#[inline(never)]
fn end(key: &FlowKey, flow: &Flow) {
    let is_translated = !flow.nat_address.is_unspecified();
    let back = way_back(key, flow.nat_address, flow.nat_port);
    if is_translated && leads_to(&back, key) {
        let _ = NAT.remove(&back);
    }
    let _ = CONNTRACK.remove(key);
    if is_translated {
        claim::forget(&back);
    }
}

/// One flow when room must be made; 1 ends the walk.
#[inline(never)]
extern "C" fn evict(_map: *mut c_void, key: *const FlowKey, flow: *const Flow, run: *mut Run) -> u64 {
    // SAFETY: the helper passes an entry's key and value, and what `handle` gave it.
    let (key, flow, run) = unsafe { (&*key, &*flow, &mut *run) };
    // SAFETY: `handle` gave a valid pointer.
    let found = unsafe { &mut *run.found };
    found.seen += 1;
    if !is_dispensable(key, flow, run) {
        return 0;
    }
    let key = *key;
    // SAFETY: used before anything else touches the map.
    if let Some(flow) = unsafe { CONNTRACK.get(&key) }
        && is_dispensable(&key, flow, run)
    {
        let class = flow.class(key.protocol) as usize & (TIMEOUTS - 1);
        end(&key, flow);
        found.ended[Cause::Evicted as usize][class] += 1;
        run.quota = run.quota.saturating_sub(1);
    }
    if run.quota == 0 { 1 } else { 0 }
}

#[inline(never)]
fn is_dispensable(key: &FlowKey, flow: &Flow, run: &Run) -> bool {
    run.classes >> (flow.class(key.protocol) as u64 & 63) & 1 != 0
        && flow.idle(run.now) >= run.idle
        && (run.remote[2] == 0 || is_towards(key, &run.remote))
}

#[inline(always)]
fn is_towards(key: &FlowKey, remote: &[u64; 3]) -> bool {
    let [a, b, c, d] = key.dst.words();
    let port = if is_echo(key.protocol) { 0 } else { key.dst_port.get() as u64 };
    remote[0] == (a as u64 | (b as u64) << 32)
        && remote[1] == (c as u64 | (d as u64) << 32)
        && remote[2] == (port | (key.protocol as u64) << 16)
}

//! Claiming a masquerade port: inserting the way back, if nobody has, is the atomic claim.
//!
//! A flow's own port first, so that most flows keep theirs; then a few at random, which nearly always succeeds while less than
//! two thirds of the ports are taken; then all of them, skipping by a bitmap those that are known to be taken ([`Pool`]). Each
//! port is tried in vain only once until it is given back, so that the last free one is found, and a full pool is told from one
//! look at its 512 words.

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated as helpers};
use datapath_ebpf::{
    DropReason, Port,
    flow::{Class, Segment, index_in_pool, is_echo, pool_of, way_back},
    maps::{
        CLAIM_BUCKETS, Flow, FlowKey, MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, POOL_WORDS, Pool, PoolKey,
        Reverse,
    },
    packet,
};

use super::{
    bits, clock, host_ports,
    scratch::Scratch,
    skb::Skb,
    sockets,
    tables::{CLAIMS, NAT, PORTS},
};

/// Ports tried at random before the bitmap is asked.
const RANDOM_TRIES: u32 = 16;
/// Steps of the search through the bitmap: each tries a port or leaves a word behind.
const STEPS: u32 = MASQUERADE_PORTS + POOL_WORDS as u32;

const EEXIST: i32 = -17;

/// What the search carries from one try to the next.
#[repr(C)]
pub struct Search {
    pool_key: PoolKey,
    /// Ports tried so far.
    tries: u32,
    /// The word of the bitmap under search.
    word: u32,
    /// Words left behind.
    words_done: u32,
    state: State,
    /// Bits of the word that sockets of the host hold: not known to stay taken, but not to be tried again now.
    skip: u64,
}

/// Where a search stands.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Searching,
    Claimed,
    /// The map took no more entries.
    Full,
}

/// The argument of the loops' callbacks.
struct Context {
    skb: Skb,
    scratch: *mut Scratch,
}

/// What one try came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Try {
    Claimed,
    /// Another flow has the port.
    Taken,
    /// A socket of the host has the port, or it is some pod's host port.
    Host,
    Full,
}

/// Claims a port of `scratch.nat_address` towards the remote end of `scratch.key`, and leaves it in `scratch.back`.
#[inline(always)]
pub fn port(skb: Skb, scratch: &mut Scratch, flags: u8) -> Result<(), DropReason> {
    let key = &scratch.key;
    scratch.reverse =
        Reverse { address: key.src, created: clock::ticks(), port: key.src_port, flags, reserved: 0 };
    scratch.back = way_back(key, scratch.nat_address, key.src_port);
    scratch.search.tries = 0;
    scratch.search.state = State::Searching;
    if may_keep_port(&scratch.back) {
        step(skb, scratch);
    }
    // Another port would need a new CRC over the whole SCTP packet.
    if scratch.search.state == State::Searching && scratch.back.protocol != packet::SCTP {
        search(skb, scratch);
    }
    match scratch.search.state {
        State::Claimed => {
            count_tries(scratch.search.tries);
            Ok(())
        }
        State::Full => Err(DropReason::ConntrackFull),
        State::Searching => Err(DropReason::PortsExhausted),
    }
}

#[inline(always)]
fn may_keep_port(back: &FlowKey) -> bool {
    is_echo(back.protocol) || back.protocol == packet::SCTP || back.dst_port.get() >= MASQUERADE_PORT_FIRST
}

#[inline(never)]
fn search(skb: Skb, scratch: &mut Scratch) {
    let mut context = Context { skb, scratch };
    let state = (&raw mut context).cast::<c_void>();
    // SAFETY: the callbacks have the signature `bpf_loop` calls, and `context` outlives the calls.
    unsafe {
        helpers::bpf_loop(RANDOM_TRIES, try_at_random as *const () as *mut c_void, state, 0);
        let scratch = &mut *context.scratch;
        if scratch.search.state == State::Searching && prepare_pool(scratch) {
            helpers::bpf_loop(STEPS, try_by_pool as *const () as *mut c_void, state, 0);
        }
    }
}

/// One random port; 1 ends the search.
#[inline(never)]
extern "C" fn try_at_random(_index: u64, state: *mut c_void) -> u64 {
    // SAFETY: `search` passes a context that outlives the loop, and in it a scratch that nobody else uses meanwhile.
    let (skb, scratch) = unsafe {
        let context = &*state.cast::<Context>();
        (context.skb, &mut *context.scratch)
    };
    // SAFETY: no arguments.
    let random = unsafe { helpers::bpf_get_prandom_u32() };
    set_candidate(&mut scratch.back, random);
    step(skb, scratch);
    // Constants are returned: the verifier would not believe a computed value to be 0 or 1.
    if scratch.search.state == State::Searching { 0 } else { 1 }
}

/// The bitmap for this remote end, made when it is missing.
#[inline(always)]
fn prepare_pool(scratch: &mut Scratch) -> bool {
    /// A pool about which nothing is known. In the object's read-only data: far too large for the stack.
    static UNKNOWN: Pool = Pool { last_used: 0, reserved: 0, taken: [0; POOL_WORDS] };
    let search = &mut scratch.search;
    search.pool_key = pool_of(&scratch.back);
    // SAFETY: no arguments.
    search.word = unsafe { helpers::bpf_get_prandom_u32() };
    (search.words_done, search.skip) = (0, 0);
    if PORTS.get_ptr(&search.pool_key).is_none() {
        // There already, or no room: the lookup that follows tells.
        let _ = PORTS.insert(&search.pool_key, &UNKNOWN, BPF_NOEXIST as u64);
    }
    let Some(pool) = PORTS.get_ptr_mut(&search.pool_key) else { return false };
    // SAFETY: whichever time of two searches at once stays is as good.
    unsafe { (*pool).last_used = clock::ticks() };
    true
}

/// The next port that is not known to be taken, or the next word; 1 ends the search.
#[inline(never)]
extern "C" fn try_by_pool(_index: u64, state: *mut c_void) -> u64 {
    // SAFETY: `search` passes a context that outlives the loop, and in it a scratch that nobody else uses meanwhile.
    let (skb, scratch) = unsafe {
        let context = &*state.cast::<Context>();
        (context.skb, &mut *context.scratch)
    };
    let Some(word) = word_of(&scratch.search.pool_key, scratch.search.word) else { return 1 };
    // SAFETY: see `word_of`.
    let free = !unsafe { word.read_volatile() } & !scratch.search.skip;
    if free == 0 {
        let search = &mut scratch.search;
        search.word = search.word.wrapping_add(1);
        search.words_done += 1;
        search.skip = 0;
        return if search.words_done < POOL_WORDS as u32 { 0 } else { 1 };
    }
    let bit = free & free.wrapping_neg();
    // Before the try: whoever gives the port back meanwhile clears the bit after this.
    // SAFETY: see `word_of`.
    unsafe { bits::set(word, bit) };
    let first_of_word = (scratch.search.word & (POOL_WORDS as u32 - 1)) * 64;
    set_candidate(&mut scratch.back, first_of_word + bit.trailing_zeros());
    if step(skb, scratch) == Try::Host {
        // Nobody will tell when the socket is closed.
        // SAFETY: see `word_of`.
        unsafe { bits::clear(word, bit) };
        scratch.search.skip |= bit;
    }
    if scratch.search.state == State::Searching { 0 } else { 1 }
}

/// A word of a remote end's bitmap. Entries are never replaced, only removed, and a removed one's memory stays readable until
/// the program is done.
#[inline(always)]
fn word_of(key: &PoolKey, word: u32) -> Option<*mut u64> {
    let pool = PORTS.get_ptr_mut(key)?;
    // SAFETY: the entry is there, and the index is within the array.
    Some(unsafe { &raw mut (*pool).taken[word as usize & (POOL_WORDS - 1)] })
}

/// Puts a port into the way back by its number within the range; higher bits are ignored.
#[inline(always)]
fn set_candidate(back: &mut FlowKey, number: u32) {
    back.dst_port = Port::new(MASQUERADE_PORT_FIRST + (number & (MASQUERADE_PORTS - 1)) as u16);
    if is_echo(back.protocol) {
        back.src_port = back.dst_port;
    }
}

/// Tries the candidate in `scratch.back`, and notes what came of it in `scratch.search`.
#[inline(never)]
fn step(skb: Skb, scratch: &mut Scratch) -> Try {
    scratch.search.tries += 1;
    let outcome = attempt(skb, scratch);
    match outcome {
        Try::Claimed => scratch.search.state = State::Claimed,
        Try::Full => scratch.search.state = State::Full,
        Try::Taken | Try::Host => {}
    }
    outcome
}

#[inline(always)]
fn attempt(skb: Skb, scratch: &mut Scratch) -> Try {
    if scratch.has_host_ports && host_ports::is_one(&scratch.back) {
        return Try::Host;
    }
    // A flow of the host's own may have the port that its socket has.
    let own = scratch.reverse.flags & Flow::HOST != 0 && scratch.back.dst_port == scratch.key.src_port;
    if !own && sockets::would_get(skb, &scratch.back, &mut scratch.tuple) {
        return Try::Host;
    }
    match NAT.insert(&scratch.back, &scratch.reverse, BPF_NOEXIST as u64) {
        Ok(()) => Try::Claimed,
        // Ours already: a claim that has lost its flow.
        Err(EEXIST) if is_own(scratch) => Try::Claimed,
        Err(EEXIST) => Try::Taken,
        Err(_) => Try::Full,
    }
}

#[inline(always)]
fn is_own(scratch: &Scratch) -> bool {
    // SAFETY: compared at once.
    unsafe { NAT.get(&scratch.back) }
        .is_some_and(|other| other.address == scratch.reverse.address && other.port == scratch.reverse.port)
}

/// The port of a way back that was removed may be tried again.
#[inline(never)]
pub fn forget(back: &FlowKey) {
    let Some(number) = index_in_pool(back.dst_port) else { return };
    if let Some(word) = word_of(&pool_of(back), number / 64) {
        // SAFETY: see `word_of`.
        unsafe { bits::clear(word, 1u64 << (number % 64)) };
    }
}

#[inline(always)]
fn count_tries(tries: u32) {
    let bucket = u32::BITS - tries.saturating_sub(1).leading_zeros();
    if let Some(count) = CLAIMS.get_ptr_mut(bucket.min(CLAIM_BUCKETS as u32 - 1)) {
        // SAFETY: the slot is this CPU's own, and TC programs do not interrupt each other on one CPU.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}

/// Whether a packet that seems to answer a flow is a stranger's connection to a service of the host: the flow is past its opening,
/// and the host listens on the port. Or to a host port that a pod was given since, once the flow has ended.
#[inline(always)]
pub fn is_for_listener(skb: Skb, scratch: &mut Scratch, flow: &Flow) -> bool {
    let Some(segment) = scratch.transport.segment() else { return false };
    let class = flow.class(packet::TCP);
    Segment::opens(segment.flags)
        && flow.flags & Flow::HOST == 0
        && class != Class::TcpOpening
        && (sockets::would_get(skb, &scratch.key, &mut scratch.tuple)
            || (class == Class::TcpClosing && host_ports::is_one(&scratch.key)))
}

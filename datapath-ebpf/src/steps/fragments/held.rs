//! Fragments that came before the first of their datagram: their frames are kept in a ring of slots, and sent in again by the
//! device they came from once the first one has passed.
//!
//! A program cannot make a packet, but it can change one and let a copy of it be received. So the first fragment's packet lends its
//! body: it is saved, takes the shape of each frame in turn, and gets its own back. The copies wait in the CPU's backlog until this
//! program is done; then they find the translation, whatever their order.
//!
//! Two rings, so that the world cannot push out what pods have sent; in each the oldest frame makes room for the newest.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    btf_maps::{Array, PerCpuArray},
    helpers::generated as helpers,
    macros::btf_map,
};
use datapath_ebpf::{
    DropReason,
    maps::{FragmentKey, HELD_BYTES, HELD_PER_SIDE, Held},
};

use super::{
    super::{bits, clock, skb::Skb, tables::HELD},
    state::{self, Admitted, Work},
};

/// Whose turn it is in a ring.
#[repr(C)]
struct Ring {
    /// How often a slot was taken.
    next: u64,
    /// When the last fragment was kept, in ticks; 0 for never.
    last: u64,
}

#[btf_map(name = "held_rings")]
static RINGS: Array<Ring, 2> = Array::new();

/// Where a packet's own bytes are while it carries others.
#[btf_map(name = "frame")]
static FRAME: PerCpuArray<[u8; HELD_BYTES], 1> = PerCpuArray::new();

/// Slots to try when others are being written or read.
const TRIES: u32 = 4;

#[inline(always)]
fn side(key: &FragmentKey) -> u32 {
    if key.ifindex != 0 { 0 } else { 1 }
}

/// What became of a fragment that was too early.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Its bytes are kept.
    Yes,
    /// The first one has come at this very moment: this one may pass as if it had been later.
    Admitted,
    /// It is too long, or repeats one that has just passed.
    No,
}

/// Keeps a fragment that has come too early.
#[inline(never)]
pub fn keep(skb: Skb, work: &mut Work) -> Kept {
    let length = skb.len();
    let Some(slot) = take_slot(side(&work.key)) else { return Kept::No };
    let slot = slot.as_ptr();
    // SAFETY: the slot is this program's until its state says otherwise.
    let (state, full) = unsafe {
        (*slot).key = work.key;
        (*slot).created = clock::ticks();
        (*slot).ifindex = skb.ifindex();
        (*slot).length = length;
        let number = (&raw const (*slot).state).read_volatile() & !Held::STATE;
        (&raw mut (*slot).state, number | Held::FULL)
    };
    // SAFETY: as above.
    if load(skb, length, unsafe { (&raw mut (*slot).frame).cast() }).is_err() {
        // SAFETY: as above.
        unsafe { bits::replace(state, Held::FREE) };
        return Kept::No;
    }
    // SAFETY: as above; from here on the slot is whoever's takes it.
    unsafe { bits::replace(state, full) };
    // Whoever brings the first fragment makes it known and then looks for the others; we do it the other way round. One of us
    // sees the other, and only one gets the slot.
    // SAFETY: slots stay.
    if state::is_known(&work.key) && unsafe { bits::replace_if(state, full, Held::FREE) } {
        return if state::admit(work) == Admitted::Yes { Kept::Admitted } else { Kept::No };
    }
    Kept::Yes
}

/// The slot whose turn it is, as busy.
#[inline(always)]
fn take_slot(side: u32) -> Option<NonNull<Held>> {
    let ring = RINGS.get_ptr_mut(side)?;
    // SAFETY: the ring is there; which of two times stays is the same.
    unsafe { (&raw mut (*ring).last).write_volatile(clock::ticks() as u64) };
    for _ in 0..TRIES {
        // SAFETY: the ring is there.
        let number = unsafe { bits::fetch_add(&raw mut (*ring).next, 1) };
        let slot = slot_of(side, number as u32)?;
        // SAFETY: slots stay.
        unsafe {
            let state = &raw mut (*slot).state;
            let old = state.read_volatile();
            let busy = (number << 2) | Held::BUSY;
            if old & Held::STATE != Held::BUSY && bits::replace_if(state, old, busy) {
                return NonNull::new(slot);
            }
        }
    }
    None
}

#[inline(always)]
fn slot_of(side: u32, number: u32) -> Option<*mut Held> {
    const PER_SIDE: u32 = HELD_PER_SIDE as u32;
    HELD.get_ptr_mut(side * PER_SIDE + (number & (PER_SIDE - 1)))
}

/// The argument of the loop's callback.
struct Release {
    skb: Skb,
    key: *const FragmentKey,
    /// The packet's own length.
    length: u32,
    /// The packet carries another's bytes.
    lent: bool,
}

/// Sends in again what is kept of the first fragment's datagram. The packet is what it was afterwards, or is dropped.
#[inline(never)]
pub fn release(skb: Skb, work: &Work) -> Result<(), DropReason> {
    let Some(ring) = RINGS.get_ptr(side(&work.key)) else { return Ok(()) };
    // SAFETY: the ring is there.
    let last = unsafe { (&raw const (*ring).last).read_volatile() };
    if last == 0 || state::is_stale(last as u32) {
        return Ok(());
    }
    let mut release = Release { skb, key: &raw const work.key, length: skb.len(), lent: false };
    let context = (&raw mut release).cast::<c_void>();
    // SAFETY: the callback has the signature `bpf_loop` calls, and `release` outlives the call.
    unsafe { helpers::bpf_loop(HELD_PER_SIDE as u32, visit as *const () as *mut c_void, context, 0) };
    if !release.lent {
        return Ok(());
    }
    let frame = FRAME.get_ptr_mut(0).ok_or(DropReason::Rewrite)?;
    shape(skb, release.length, frame.cast())
}

/// Lets the frame in the slot in again, if it is one of the datagram's.
#[inline(never)]
extern "C" fn visit(index: u64, context: *mut c_void) -> u64 {
    // SAFETY: `release` passes a context that outlives the loop, and in it a key that does, too.
    let release = unsafe { &mut *context.cast::<Release>() };
    // SAFETY: as above.
    let key = unsafe { &*release.key };
    let Some(slot) = slot_of(side(key), index as u32) else { return 1 };
    // SAFETY: slots stay. The identification is only a hint as long as the slot is not ours.
    let (state, old, id) = unsafe {
        let state = &raw mut (*slot).state;
        (state, state.read_volatile(), (&raw const (*slot).key.id).read_volatile())
    };
    if old & Held::STATE != Held::FULL || id != key.id {
        return 0;
    }
    // SAFETY: slots stay.
    if !unsafe { bits::replace_if(state, old, old & !Held::STATE | Held::BUSY) } {
        return 0;
    }
    // SAFETY: the slot is ours now.
    let (is_ours, created) = unsafe { ((*slot).key == *key, (*slot).created) };
    if is_ours && !state::is_stale(created) {
        send_in(release, slot);
    }
    // SAFETY: as above.
    unsafe { bits::replace(state, if is_ours { Held::FREE } else { old }) };
    0
}

/// A copy of the packet in the shape of the frame in the slot, received again. What fails here is lost, as on a wire.
#[inline(always)]
fn send_in(release: &mut Release, slot: *mut Held) {
    let skb = release.skb;
    if !release.lent {
        let Some(frame) = FRAME.get_ptr_mut(0) else { return };
        if load(skb, release.length, frame.cast()).is_err() {
            return;
        }
        release.lent = true;
    }
    // SAFETY: the caller has the slot.
    let (length, ifindex, frame) =
        unsafe { ((*slot).length, (*slot).ifindex, (&raw const (*slot).frame).cast()) };
    if shape(skb, length, frame).is_ok() {
        // SAFETY: the context is valid, and no pointer into the packet is kept.
        unsafe { helpers::bpf_clone_redirect(skb.raw(), ifindex, BPF_F_INGRESS as u64) };
    }
}

/// Copies the packet's bytes to where there is room for [`HELD_BYTES`].
#[inline(always)]
fn load(skb: Skb, length: u32, to: *mut u8) -> Result<(), DropReason> {
    let length = bounded(length).ok_or(DropReason::Rewrite)?;
    // SAFETY: the caller has [`HELD_BYTES`] there, which is no less.
    match unsafe { helpers::bpf_skb_load_bytes(skb.raw().cast(), 0, to.cast(), length) } {
        0 => Ok(()),
        _ => Err(DropReason::Rewrite),
    }
}

/// Makes the packet consist of these bytes.
#[inline(always)]
fn shape(skb: Skb, length: u32, from: *const u8) -> Result<(), DropReason> {
    let length = bounded(length).ok_or(DropReason::Rewrite)?;
    // SAFETY: the caller has [`HELD_BYTES`] there, which is no less; no pointer into the packet is kept.
    let done = unsafe {
        helpers::bpf_skb_change_tail(skb.raw(), length, 0) == 0
            && helpers::bpf_skb_store_bytes(skb.raw(), 0, from.cast(), length, BPF_F_RECOMPUTE_CSUM as u64)
                == 0
    };
    if done { Ok(()) } else { Err(DropReason::Rewrite) }
}

/// A length that the verifier knows to be at least one and at most [`HELD_BYTES`].
#[inline(always)]
fn bounded(length: u32) -> Option<u32> {
    if length == 0 || length > HELD_BYTES as u32 { None } else { Some(length) }
}

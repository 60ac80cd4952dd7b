//! Datagrams whose first fragment has passed: their translation, and which parts have passed.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated as helpers};
use datapath_ebpf::{
    Ip, flow,
    fragment::Piece,
    maps::{Fragment, FragmentKey},
};

use super::super::{
    bits, clock,
    tables::{FRAGMENTS, find_endpoint},
};

/// The fragment under work.
#[repr(C)]
pub struct Work {
    /// Its datagram.
    pub key: FragmentKey,
    /// Its place.
    pub piece: Piece,
    /// What the datagram's address is replaced with, once [`admit`] or [`keep`](super::held::keep) has found it.
    pub address: Ip,
    /// The entry to insert. Nothing of `seen` is ever set here, so that it is empty without being cleared.
    new: Fragment,
}

const LIFETIME: u32 = flow::ticks_of_seconds(Fragment::LIFETIME);

/// Whether something that came then is too old to belong to what comes now.
#[inline(always)]
pub fn is_stale(created: u32) -> bool {
    flow::elapsed(created, clock::ticks()) > LIFETIME
}

/// Whether a fragment may pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It may: the datagram's address is replaced with [`Work::address`].
    Yes,
    /// Its datagram's first fragment has not come.
    TooEarly,
    /// It overlaps what has passed, or repeats it, or contradicts it.
    No,
}

/// Lets one fragment of a datagram that is under way pass, once.
#[inline(never)]
pub fn admit(work: &mut Work) -> Admitted {
    let Some(datagram) = find(&work.key) else { return Admitted::TooEarly };
    // SAFETY: the entry is there; the kernel may give its memory to another datagram meanwhile, which then may lose a fragment.
    work.address = unsafe { (*datagram.as_ptr()).address };
    match note(datagram.as_ptr(), &work.piece) {
        Noted::Passed => Admitted::Yes,
        Noted::Complete => {
            // The identification may be used again.
            let _ = FRAGMENTS.remove(&work.key);
            Admitted::Yes
        }
        Noted::Refused => Admitted::No,
    }
}

/// Whether the first fragment has come.
#[inline(always)]
pub fn is_known(key: &FragmentKey) -> bool {
    find(key).is_some()
}

/// The datagram's entry, unless it is another's that had the same identification long ago, or that of a pod that is gone.
#[inline(never)]
fn find(key: &FragmentKey) -> Option<NonNull<Fragment>> {
    let datagram = NonNull::new(FRAGMENTS.get_ptr_mut(key)?)?;
    let entry = datagram.as_ptr();
    // SAFETY: the entry is there.
    let (address, ifindex, created) = unsafe { ((*entry).address, (*entry).ifindex, (*entry).created) };
    // A pod's own datagrams have its device in their key.
    let is_gone =
        key.ifindex == 0 && find_endpoint(&address).is_none_or(|endpoint| endpoint.ifindex != ifindex);
    if is_gone || is_stale(created) {
        let _ = FRAGMENTS.remove(key);
        return None;
    }
    Some(datagram)
}

/// Begins a datagram with its first fragment. The host's own need no help: its stack puts them together.
#[inline(never)]
pub fn begin(work: &mut Work, address: &Ip) {
    let ifindex = match work.key.ifindex {
        0 => find_endpoint(address).map_or(0, |endpoint| endpoint.ifindex),
        of_sender => of_sender,
    };
    if ifindex == 0 {
        return;
    }
    let new = &mut work.new;
    (new.address, new.ifindex, new.created) = (*address, ifindex, clock::ticks());
    (new.units, new.end, new.total, new.flags) = (0, 0, 0, 0);
    let _ = FRAGMENTS.insert(&work.key, &work.new, BPF_NOEXIST as u64);
    // Two first fragments at the same moment both pass: their receiver takes one.
    if let Some(datagram) = find(&work.key) {
        note(datagram.as_ptr(), &work.piece);
    }
}

/// What came of noting a fragment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    Passed,
    /// It was the last one missing.
    Complete,
    /// All or some of it has passed before, or it contradicts the datagram's length.
    Refused,
}

/// The argument of the loops' callbacks.
struct Marks {
    datagram: *mut Fragment,
    piece: Piece,
    /// Bits that were set already.
    old: u64,
    /// Bits that were not.
    new: u64,
}

#[inline(never)]
fn note(datagram: *mut Fragment, piece: &Piece) -> Noted {
    // SAFETY: the entry is there.
    let (entry, poisoned) = unsafe { (&*datagram, (*datagram).flags & Fragment::POISONED != 0) };
    if poisoned {
        return Noted::Refused;
    }
    let contradicts = piece.contradicts(entry);
    let mut marks = Marks { datagram, piece: *piece, old: 0, new: 0 };
    let context = (&raw mut marks).cast::<c_void>();
    let words = piece.words();
    // SAFETY: the callback has the signature `bpf_loop` calls, and `marks` outlives the call.
    unsafe { helpers::bpf_loop(words, look as *const () as *mut c_void, context, 0) };
    if marks.new == 0 && !contradicts {
        // A copy of what has passed. Some networks make such; the datagram is none the worse for it.
        return Noted::Refused;
    }
    if marks.old == 0 && !contradicts {
        // SAFETY: as above.
        unsafe { helpers::bpf_loop(words, set as *const () as *mut c_void, context, 0) };
    }
    if marks.old != 0 || contradicts {
        // SAFETY: the entry is there.
        unsafe { (&raw mut (*datagram).flags).write_volatile(Fragment::POISONED) };
        return Noted::Refused;
    }
    count(datagram, piece)
}

/// Collects what was seen of the fragment's units.
#[inline(never)]
extern "C" fn look(index: u64, context: *mut c_void) -> u64 {
    // SAFETY: `note` passes marks that outlive the loop.
    let marks = unsafe { &mut *context.cast::<Marks>() };
    let (at, mask) = marks.piece.word(index as u32);
    // SAFETY: the entry is there, and the index is within the array.
    let seen = unsafe { (&raw const (*marks.datagram).seen[at]).read_volatile() };
    marks.old |= seen & mask;
    marks.new |= !seen & mask;
    0
}

/// Sets the fragment's units, and collects those that another CPU has set since they were looked at.
#[inline(never)]
extern "C" fn set(index: u64, context: *mut c_void) -> u64 {
    // SAFETY: `note` passes marks that outlive the loop.
    let marks = unsafe { &mut *context.cast::<Marks>() };
    let (at, mask) = marks.piece.word(index as u32);
    // SAFETY: the entry is there, and the index is within the array, whose words programs only touch whole.
    marks.old |= unsafe { bits::fetch_set(&raw mut (*marks.datagram).seen[at], mask) } & mask;
    0
}

#[inline(always)]
fn count(datagram: *mut Fragment, piece: &Piece) -> Noted {
    // SAFETY: the entry is there. The length is written before the units are counted, so that whoever counts the last one knows it.
    unsafe {
        if piece.last {
            (&raw mut (*datagram).total).write_volatile(piece.end);
        }
        if piece.end > (*datagram).end {
            (&raw mut (*datagram).end).write_volatile(piece.end);
        }
        let own = (piece.end - piece.start) as u64;
        let units = bits::fetch_add(&raw mut (*datagram).units, own) + own;
        let total = (&raw const (*datagram).total).read_volatile() as u64;
        if total != 0 && units == total { Noted::Complete } else { Noted::Passed }
    }
}

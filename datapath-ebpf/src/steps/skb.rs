//! The packet: a thin, typed view of `__sk_buff` and its bytes.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM},
    helpers::generated as helpers,
    programs::TcContext,
};
use datapath_ebpf::{
    DropReason,
    maps::{MARK_HANDLED, MARK_MASK},
    packet::{ETHERNET_LEN, Ethernet, Family},
};

/// `skb->protocol` of IPv4.
pub const PROTOCOL_IPV4: u32 = 0x0800u16.to_be() as u32;
/// `skb->protocol` of IPv6.
pub const PROTOCOL_IPV6: u32 = 0x86ddu16.to_be() as u32;

const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// A packet under way. All offsets count from the Ethernet header.
#[derive(Clone, Copy)]
pub struct Skb {
    raw: *mut __sk_buff,
}

/// Reads and writes of context fields. SAFETY for all of them: the kernel hands the program a valid context, and the
/// verifier checks every access to it.
macro_rules! field {
    ($skb:expr, $field:ident) => {
        // SAFETY: see `field!`.
        unsafe { (*$skb.raw).$field }
    };
    ($skb:expr, $field:ident = $value:expr) => {
        // Volatile: the optimizer must not narrow the store, the verifier takes only whole words.
        // SAFETY: see `field!`.
        unsafe { (&raw mut (*$skb.raw).$field).write_volatile($value) }
    };
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.as_ptr().cast() }
    }

    /// For helpers.
    #[inline(always)]
    pub fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    /// Length in bytes, Ethernet header included.
    #[inline(always)]
    pub fn len(self) -> u32 {
        field!(self, len)
    }

    /// EtherType, as [`PROTOCOL_IPV4`] has it.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        field!(self, protocol)
    }

    /// The device this hook is on.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        field!(self, ifindex)
    }

    /// Payload bytes per segment when the packet is still to be split, else 0.
    #[inline(always)]
    pub fn gso_size(self) -> u32 {
        field!(self, gso_size)
    }

    /// Whether the frame was sent to another machine's MAC.
    #[inline(always)]
    pub fn is_for_other_host(self) -> bool {
        field!(self, pkt_type) == PACKET_OTHERHOST
    }

    /// Whether a VLAN tag is attached.
    #[inline(always)]
    pub fn has_vlan(self) -> bool {
        field!(self, vlan_present) != 0
    }

    /// Makes stacks further on take the frame for their own.
    #[inline(always)]
    pub fn set_for_this_host(self) {
        if field!(self, pkt_type) != PACKET_HOST {
            // SAFETY: the context is valid; an error would leave the type as it is, and the stack would drop the packet.
            unsafe { helpers::bpf_skb_change_type(self.raw, PACKET_HOST) };
        }
    }

    /// Whether one of our programs has already decided.
    #[inline(always)]
    pub fn is_handled(self) -> bool {
        field!(self, mark) & MARK_MASK == MARK_HANDLED
    }

    /// Lets the packet pass our later hooks unseen, VXLAN encapsulation included.
    #[inline(always)]
    pub fn set_handled(self) {
        let mark = field!(self, mark) & !MARK_MASK | MARK_HANDLED;
        field!(self, mark = mark);
    }

    /// A queue number of the pod's veth must not choose the uplink's queue.
    #[inline(always)]
    pub fn forget_queue(self) {
        field!(self, queue_mapping = 0);
    }

    /// A pointer to a `T` in the packet's linear part, valid until the next helper that changes the packet.
    #[inline(always)]
    pub fn at<T>(self, offset: usize) -> Option<*mut T> {
        let start = field!(self, data) as usize;
        let end = field!(self, data_end) as usize;
        if start + offset + size_of::<T>() > end { None } else { Some((start + offset) as *mut T) }
    }

    /// Copies of the Ethernet and IP headers, checked for version and length.
    #[inline(always)]
    pub fn headers<F: Family>(self) -> Result<(Ethernet, F::Header), DropReason> {
        let length = ETHERNET_LEN + size_of::<F::Header>();
        if self.at::<u8>(length - 1).is_none() {
            // SAFETY: the context is valid; on failure the check below fails again.
            unsafe { helpers::bpf_skb_pull_data(self.raw, length as u32) };
        }
        let ethernet = self.at::<Ethernet>(0).ok_or(DropReason::Malformed)?;
        let header = self.at::<F::Header>(ETHERNET_LEN).ok_or(DropReason::Malformed)?;
        // SAFETY: `at` has checked that the headers lie within the packet. Their alignment is the stack's (the IP header is
        // four-byte aligned); where it were not, the BPF JITs emit plain loads that do not care.
        let (ethernet, header) = unsafe { (*ethernet, *header) };
        if F::is_valid(&header) { Ok((ethernet, header)) } else { Err(DropReason::Malformed) }
    }

    /// A copy of a `T` anywhere in the packet, also outside its linear part.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: u32) -> Result<T, DropReason> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes exactly the value's bytes (or zeroes them when it fails). Callers use types of which
        // every bit pattern is valid.
        unsafe {
            let size = size_of::<T>() as u32;
            match helpers::bpf_skb_load_bytes(self.raw.cast(), offset, value.as_mut_ptr().cast(), size) {
                0 => Ok(value.assume_init()),
                _ => Err(DropReason::Malformed),
            }
        }
    }

    /// [`Self::load`] into memory that is there already, so that the value does not pass over the stack.
    #[inline(always)]
    pub fn load_into<T: Copy>(self, offset: u32, value: &mut T) -> Result<(), DropReason> {
        let to = core::ptr::from_mut(value).cast();
        // SAFETY: see `load`.
        match unsafe { helpers::bpf_skb_load_bytes(self.raw.cast(), offset, to, size_of::<T>() as u32) } {
            0 => Ok(()),
            _ => Err(DropReason::Malformed),
        }
    }

    /// Overwrites bytes whose change is made up for in a checksum that covers them.
    #[inline(always)]
    pub fn store<T>(self, offset: u32, value: &T) -> Result<(), DropReason> {
        self.store_with(offset, value, 0)
    }

    /// Overwrites bytes that no checksum of their own makes up for, so that the sum a network card has computed over the
    /// packet (`CHECKSUM_COMPLETE`) stays true.
    #[inline(always)]
    pub fn store_summed<T>(self, offset: u32, value: &T) -> Result<(), DropReason> {
        self.store_with(offset, value, BPF_F_RECOMPUTE_CSUM as u64)
    }

    #[inline(always)]
    fn store_with<T>(self, offset: u32, value: &T, flags: u64) -> Result<(), DropReason> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: the helper reads exactly the value's bytes.
        match unsafe { helpers::bpf_skb_store_bytes(self.raw, offset, from, size_of::<T>() as u32, flags) } {
            0 => Ok(()),
            _ => Err(DropReason::Rewrite),
        }
    }

    /// Replaces a value in the checksum at `offset`; `flags` as `bpf_l4_csum_replace` has them.
    #[inline(always)]
    pub fn replace_in_checksum(self, offset: u32, old: u64, new: u64, flags: u64) -> Result<(), DropReason> {
        // SAFETY: the context is valid, the helper checks the offset.
        match unsafe { helpers::bpf_l4_csum_replace(self.raw, offset, old, new, flags) } {
            0 => Ok(()),
            _ => Err(DropReason::Rewrite),
        }
    }

    /// Takes one hop off.
    #[inline(always)]
    pub fn decrement_ttl<F: Family>(self, header: &F::Header) -> Result<(), DropReason> {
        if !F::V4 {
            // No header checksum makes up for the change, and a card may have summed the packet.
            const HOP_LIMIT: u32 = ETHERNET_LEN as u32 + 7;
            return self.store_summed(HOP_LIMIT, &F::ttl(header).wrapping_sub(1));
        }
        let header = self.at::<F::Header>(ETHERNET_LEN).ok_or(DropReason::Malformed)?;
        // SAFETY: `at` has checked that the header lies within the packet.
        F::decrement_ttl(unsafe { &mut *header });
        Ok(())
    }
}

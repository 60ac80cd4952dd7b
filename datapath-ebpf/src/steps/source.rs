//! The address a new flow takes: the one the kernel would choose for a socket of the host on the same way.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup,
    },
    helpers::generated as helpers,
};
use datapath_ebpf::{Ip, maps::Uplink, packet::Family};

use super::{scratch::Scratch, skb::Skb, tables::ENDPOINTS};

/// An uplink as a packet's way out of the node.
#[derive(Clone, Copy)]
pub struct Exit {
    pub ifindex: u32,
    /// The uplink's masquerade address, if the kernel does not name a better one; `::` for none.
    pub address: Ip,
    /// Whether new flows are translated. If not, only answers from host ports are.
    pub masquerades: bool,
}

impl Exit {
    #[inline(always)]
    pub fn new<F: Family>(ifindex: u32, uplink: &Uplink) -> Self {
        let address = if F::V4 { uplink.masquerade_v4 } else { uplink.masquerade_v6 };
        Self { ifindex, address, masquerades: uplink.flags & Uplink::MASQUERADE != 0 }
    }

    /// A way on which nothing new is translated; the device only matters where it is an uplink.
    #[inline(always)]
    pub const fn plain(ifindex: u32) -> Self {
        Self { ifindex, address: Ip::UNSPECIFIED, masquerades: false }
    }

    /// From a pod back to itself, by way of this address of the node.
    #[inline(always)]
    pub const fn hairpin(address: Ip) -> Self {
        Self { ifindex: 0, address, masquerades: true }
    }
}

/// Leaves the source for the flow `scratch.key` out of this uplink in `scratch.nat_address`: the preferred source of the route, or
/// what the rules of source selection give. An address that the agent does not know as the node's is not taken: replies to it
/// would find nobody.
#[inline(never)]
pub fn choose<F: Family>(skb: Skb, scratch: &mut Scratch, exit: &Exit) -> bool {
    if exit.ifindex != 0 && ask_kernel::<F>(skb, scratch, exit.ifindex) && is_ours(scratch) {
        return true;
    }
    scratch.nat_address = exit.address;
    is_ours(scratch)
}

/// Whether the address is the node's, and if so, whether there are host ports at it.
#[inline(always)]
fn is_ours(scratch: &mut Scratch) -> bool {
    // SAFETY: one field is read before anything else touches the map.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(&scratch.nat_address) }) else { return false };
    scratch.has_host_ports = endpoint.has_host_ports();
    endpoint.is_host()
}

/// False where the kernel has no answer, another way out, or is older than 6.7 and does not know the question.
///
/// Asked as for a packet that the pod's device has received: the kernel answers for devices only that forward, which the agent
/// sees to on its own, but not on the uplink.
#[inline(always)]
fn ask_kernel<F: Family>(skb: Skb, scratch: &mut Scratch, uplink: u32) -> bool {
    /// `BPF_FIB_LOOKUP_SRC` of `linux/bpf.h`.
    const WITH_SOURCE: u32 = 1 << 4;
    // SAFETY: one field is read before anything else touches the map.
    let Some(owner) = (unsafe { ENDPOINTS.get(&scratch.key.src) }) else { return false };
    let received_by = owner.ifindex;
    let params = &mut scratch.fib;
    // SAFETY: all-zero is a valid value of this plain C structure.
    *params = unsafe { core::mem::zeroed() };
    params.family = F::AF;
    params.ifindex = received_by;
    let dst = scratch.key.dst.words();
    if F::V4 {
        params.__bindgen_anon_4.ipv4_dst = dst[3];
    } else {
        params.__bindgen_anon_4.ipv6_dst = dst;
    }
    let flags = BPF_FIB_LOOKUP_SKIP_NEIGH | WITH_SOURCE;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: `params` is initialized and of the size given.
    let found = unsafe { helpers::bpf_fib_lookup(skb.raw().cast(), params, size, flags) };
    const FOUND: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
    const TOO_NARROW: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
    if found != FOUND && found != TOO_NARROW || params.ifindex != uplink {
        return false;
    }
    // SAFETY: both arms of the union are integers.
    scratch.nat_address = unsafe {
        if F::V4 {
            Ip::from_v4_word(params.__bindgen_anon_3.ipv4_src)
        } else {
            Ip::from_words(params.__bindgen_anon_3.ipv6_src)
        }
    };
    true
}

//! Memory beside the 512-byte stack: what the masquerade path carries from step to step, one per CPU.
//!
//! TC programs run with soft interrupts off, so no other program uses this CPU's slot before the current one is done.

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_sock_tuple},
    btf_maps::PerCpuArray,
    macros::btf_map,
};
use datapath_ebpf::{
    Ip, Port,
    maps::{Flow, FlowKey, HostPort, Reverse},
};

use super::{claim::Search, fragments::state::Work, quote::Quote, transport::Transport};

/// The slot's contents; every field is written before it is read, unless it says otherwise.
#[repr(C)]
pub struct Scratch {
    pub transport: Transport,
    /// The packet's flow, in its own direction.
    pub key: FlowKey,
    /// The packet that an ICMP error quotes.
    pub quote: Quote,
    /// What the owner's packets are given instead of their source.
    pub nat_address: Ip,
    pub nat_port: Port,
    /// There are host ports at [`Scratch::nat_address`], which a claim must not take.
    pub has_host_ports: bool,
    /// Whose host port the packet is for.
    pub host_port: HostPort,
    /// The flow to insert.
    pub flow: Flow,
    /// The key of the flow that a reply belongs to.
    pub flow_key: FlowKey,
    /// The way back; its destination port is the candidate of the claim.
    pub back: FlowKey,
    /// The way back of a flow that makes room for another.
    pub former: FlowKey,
    /// The way back's value to insert.
    pub reverse: Reverse,
    /// The search for a port.
    pub search: Search,
    /// The fragment under work.
    pub fragment: Work,
    /// For questions about the host's sockets.
    pub tuple: bpf_sock_tuple,
    /// For questions about the host's routes.
    pub fib: bpf_fib_lookup,
}

#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's slot.
#[inline(always)]
pub fn get() -> Option<&'static mut Scratch> {
    // SAFETY: see the module's header: nobody else has a reference to this CPU's slot. Entry functions of the masquerade
    // path call this once each and pass it down.
    SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

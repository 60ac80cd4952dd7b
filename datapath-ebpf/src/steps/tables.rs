//! The maps, and lookups that copy what they find (an entry may be replaced under a reference).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use datapath_ebpf::{
    Ip,
    collect::Collection,
    event::{EVENTS_BYTES, Event, Told},
    flow::TIMEOUTS,
    maps::{
        CLAIM_BUCKETS, CONNTRACK_MAX, COUNTERS_MAX, Counter, ENDPOINTS_MAX, Endpoint, FRAGMENTS_MAX, Flow,
        FlowKey, Fragment, FragmentKey, HELD_MAX, HOST_PORTS_MAX, Held, HostPort, HostPortKey, Node,
        POOLS_MAX, Pool, PoolKey, ROUTES_MAX, Reverse, Route, UPLINKS_MAX, Uplink,
    },
    outcome::OUTCOMES,
};

/// Entries take memory only while they exist.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "endpoints", pin_by_name)]
pub static ENDPOINTS: HashMap<Ip, Endpoint, ENDPOINTS_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "routes", pin_by_name)]
pub static ROUTES: LpmTrie<Ip, Route, ROUTES_MAX, ON_DEMAND> = LpmTrie::new();

#[btf_map(name = "uplinks", pin_by_name)]
pub static UPLINKS: HashMap<u32, Uplink, UPLINKS_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "node", pin_by_name)]
pub static NODE: Array<Node, 1> = Array::new();

#[btf_map(name = "conntrack", pin_by_name)]
pub static CONNTRACK: HashMap<FlowKey, Flow, CONNTRACK_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "nat", pin_by_name)]
pub static NAT: HashMap<FlowKey, Reverse, CONNTRACK_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "host_ports", pin_by_name)]
pub static HOST_PORTS: HashMap<HostPortKey, HostPort, HOST_PORTS_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "ports", pin_by_name)]
pub static PORTS: HashMap<PoolKey, Pool, POOLS_MAX, ON_DEMAND> = HashMap::new();

#[btf_map(name = "claims", pin_by_name)]
pub static CLAIMS: PerCpuArray<u64, CLAIM_BUCKETS> = PerCpuArray::new();

/// Read by the agent and the operator's commands: `collect` is told what applies.
#[btf_map(name = "timeouts", pin_by_name)]
pub static TIMEOUT_SECONDS: Array<u32, TIMEOUTS> = Array::new();

#[btf_map(name = "fragments", pin_by_name)]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, FRAGMENTS_MAX> = LruHashMap::new();

#[btf_map(name = "held", pin_by_name)]
pub static HELD: Array<Held, HELD_MAX> = Array::new();

#[btf_map(name = "counters", pin_by_name)]
pub static COUNTERS: PerCpuArray<Counter, COUNTERS_MAX> = PerCpuArray::new();

#[btf_map(name = "events", pin_by_name)]
pub static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

#[btf_map(name = "event_stats", pin_by_name)]
pub static EVENT_STATS: PerCpuArray<Told, OUTCOMES> = PerCpuArray::new();

/// What the last run of `collect` found. Not pinned: whoever loads the programs reads it.
#[btf_map(name = "collection")]
pub static COLLECTION: Array<Collection, 1> = Array::new();

/// Who has this address on this node.
#[inline(always)]
pub fn find_endpoint(ip: &Ip) -> Option<Endpoint> {
    // SAFETY: copied at once. The agent replaces entries as a whole, never in place.
    unsafe { ENDPOINTS.get(ip) }.copied()
}

/// Whether it is an address of the node's own.
#[inline(always)]
pub fn is_host_address(ip: &Ip) -> bool {
    // SAFETY: one field is read before anything else touches the map.
    unsafe { ENDPOINTS.get(ip) }.is_some_and(Endpoint::is_host)
}

/// The longest prefix that holds this address. Not copied, for the stack's sake: unlike a hash map, a trie gives a replaced
/// entry's memory to nobody before the programs that may see it are done.
#[inline(always)]
pub fn find_route(ip: &Ip) -> Option<&'static Route> {
    ROUTES.get(&Key::new(128, *ip))
}

/// Whether and as whom this device masquerades.
#[inline(always)]
pub fn find_uplink(ifindex: u32) -> Option<Uplink> {
    // SAFETY: copied at once. The agent replaces entries as a whole, never in place.
    unsafe { UPLINKS.get(&ifindex) }.copied()
}

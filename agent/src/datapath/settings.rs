//! What an operator can choose about the datapath.

use datapath_ebpf::{
    flow::{Class, TIMEOUTS},
    maps::CONNTRACK_MAX,
};

/// How many flows there can be, and how long they may be idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Entries of `conntrack` and of `nat`.
    pub conntrack_max: u32,
    /// Seconds by class, as the map `timeouts` has them; what no class has is 0.
    pub timeouts: [u32; TIMEOUTS],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            conntrack_max: CONNTRACK_MAX as u32,
            timeouts: timeouts(&Class::ALL.map(Class::default_timeout)),
        }
    }
}

/// Seconds in the order of the classes, as the map has them.
pub fn timeouts(by_class: &[u32; Class::ALL.len()]) -> [u32; TIMEOUTS] {
    let mut all = [0; TIMEOUTS];
    all[..by_class.len()].copy_from_slice(by_class);
    all
}

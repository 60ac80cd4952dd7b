//! One file per hook, in the order of a packet's way.

pub mod collect;
pub mod from_overlay;
pub mod from_pod;
pub mod from_uplink;
pub mod to_pod;
pub mod to_uplink;

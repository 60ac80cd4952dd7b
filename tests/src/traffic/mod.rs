//! Traffic: real tools where their opinion counts, sockets of our own where exact control does.

pub mod capture;
pub mod exchange;
pub mod fragments;
pub mod icmp;
pub mod mtu;
pub mod offload;
pub mod pattern;
pub mod probe;
pub mod raw;
pub mod socket;
pub mod stream;
pub mod tools;
pub mod transfer;

//! The programs. Built only for target `bpf`; on the host this is an empty `main`, so that cargo, clippy and
//! rust-analyzer take the workspace as it is.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

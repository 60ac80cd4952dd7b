//! The programs. Built only for target `bpf`; on the host this is an empty `main`, so that cargo, clippy and
//! rust-analyzer take the workspace as it is.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

/// Never reached: the build refuses an object with anything left in it that could panic.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

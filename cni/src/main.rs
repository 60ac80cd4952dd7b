//! The CNI plugin executable; see [`hypha_cni::shim`].
//!
//! In a static build (`build.rs`) C's `main` comes out of the library, and nothing is left to do here.
#![cfg_attr(shim_static, no_std, no_main)]

#[cfg(not(shim_static))]
fn main() {
    std::process::exit(hypha_cni::shim::run());
}

/// Only there because the language wants one: no Rust code of this file ever runs.
#[cfg(shim_static)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

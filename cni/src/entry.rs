//! C's `main` for the static executable: musl's start code calls it, Rust's runtime has no part in it.

use std::ffi::{c_char, c_int};

use nix::sys::signal::{SigHandler, Signal, signal};

/// Runs the plugin. CNI passes nothing in arguments.
// SAFETY: the static executable has no other symbol of this name: `src/main.rs` is `no_main` there.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    // Rust's runtime would have done it: a runtime that closed our standard output must not end us in the middle
    // of a call.
    // SAFETY: no handler is installed, the signal is only ignored.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    crate::shim::run()
}

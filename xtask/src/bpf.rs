//! The `bpf` system call, for what aya has no function for.

use std::{io, mem};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Attributes of all zeroes, which is what the kernel wants of those that are not used.
pub fn no_attributes() -> bpf_attr {
    // SAFETY: a union of structs of integers: all zeroes is a value of each.
    unsafe { mem::zeroed() }
}

/// The system call; a non-negative result is what the command says it is, often a new descriptor.
///
/// # Safety
///
/// `attributes` must be what `command` expects, and every address in it valid for the lengths it says.
pub unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the caller vouches for the attributes; their size is that of the union.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, &raw mut *attributes, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

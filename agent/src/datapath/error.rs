//! Why the datapath could not do what it was asked.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

/// Errors of loading, filling and attaching.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The binary was built without its programs.
    #[error(
        "this binary has no eBPF programs in it (it was built with HYPHA_SKIP_EBPF=1): build it again without"
    )]
    NoObject,
    /// The kernel or the object refused to be loaded.
    #[error("loading the eBPF object: {0}; `hypha doctor` shows what the kernel lacks")]
    Load(#[from] EbpfError),
    /// The object lacks something the agent needs: both are built together, so this is a broken build.
    #[error("the eBPF object has no {kind} named `{name}`: the binary is broken, build it again")]
    Missing {
        /// Map or program.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("map `{map}`: {source}{}", full_hint(source))]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A program operation failed.
    #[error("program `{program}`{}: {source}", on(*ifindex))]
    Program {
        /// The program.
        program: &'static str,
        /// The device it was for, 0 for none.
        ifindex: u32,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A pin could not be made.
    #[error("pinning {}: {source}; is a BPF file system mounted there?", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: PinError,
    },
    /// A pin or the directory of pins could not be read, made or removed.
    #[error("{action} {}: {source}; is a BPF file system mounted there?", path.display())]
    Pins {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A raw `bpf(2)` call failed.
    #[error("{call} on map `{map}`: {source}")]
    Batch {
        /// The command.
        call: &'static str,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DatapathError {
    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    pub(super) fn program(program: &'static str, ifindex: u32) -> impl Fn(ProgramError) -> Self {
        move |source| Self::Program { program, ifindex, source }
    }

    pub(super) fn pins(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Pins { action, path: path.to_owned(), source }
    }
}

fn on(ifindex: u32) -> String {
    if ifindex == 0 { String::new() } else { format!(" on device {ifindex}") }
}

fn full_hint(error: &MapError) -> &'static str {
    match error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
            " (the map is full)"
        }
        _ => "",
    }
}

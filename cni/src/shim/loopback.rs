//! The plugin `loopback`, which some container runtimes call for every sandbox before the network's own: it sets `lo` up.
//!
//! The same executable does it when it is called by that name, so that a node needs no plugins but ours. No agent is asked:
//! there is nothing to know but the namespace.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use serde_json::{Map, Value, json};

use crate::protocol::{ErrorReply, code};

use super::{
    environment::{Environment, Verb},
    version::SpecVersion,
};

/// The name it is called by.
const NAME: &str = "loopback";

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;
/// `lo` is the first device of every namespace.
const IFINDEX: u32 = 1;
/// A netlink header and a description of a device.
const MESSAGE: usize = 16 + 16;

/// Whether the plugin was called as `loopback`.
pub(super) fn is_meant(program: Option<&OsStr>) -> bool {
    program.map(Path::new).and_then(Path::file_name) == Some(OsStr::new(NAME))
}

/// Carries the verb out; what it returns is to be printed.
pub(super) fn execute(
    environment: &Environment,
    object: &Map<String, Value>,
    version: SpecVersion,
) -> Result<Option<Value>, ErrorReply> {
    match (environment.verb, &environment.netns) {
        (Verb::Add, Some(netns)) => {
            in_namespace(netns, set_up)?;
            Ok(Some(result(netns, object.get("prevResult"), version)))
        }
        (Verb::Check, Some(netns)) if in_namespace(netns, is_up)? => Ok(None),
        (Verb::Check, Some(netns)) => {
            Err(ErrorReply::new(code::CHECK_FAILED, "lo is down", format!("in {}", netns.display())))
        }
        // It goes with its namespace, and needs nothing of ours before.
        _ => Ok(None),
    }
}

/// Moves this process, which does nothing else, into the sandbox.
fn in_namespace<T>(netns: &PathBuf, work: impl FnOnce() -> io::Result<T>) -> Result<T, ErrorReply> {
    let done = File::open(netns)
        .and_then(|netns| setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from))
        .and_then(|()| work());
    done.map_err(|error| {
        ErrorReply::new(
            code::IO_FAILURE,
            format!("cannot configure lo in {}", netns.display()),
            error.to_string(),
        )
    })
}

fn set_up() -> io::Result<()> {
    exchange(RTM_NEWLINK, NLM_F_ACK, IFF_UP).map(drop)
}

fn is_up() -> io::Result<bool> {
    Ok(exchange(RTM_GETLINK, 0, 0)? & IFF_UP != 0)
}

/// Sends one message about `lo` and returns the flags that the answer has, if it has any.
fn exchange(kind: u16, options: u16, flags: u32) -> io::Result<u32> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &message(kind, options, flags), MsgFlags::empty())?;
    let mut answer = [0; 8192];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read(answer.get(..length).unwrap_or_default())
}

/// In the order of struct nlmsghdr and struct ifinfomsg, in the machine's byte order.
fn message(kind: u16, options: u16, flags: u32) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[0..4].copy_from_slice(&(MESSAGE as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | options).to_ne_bytes());
    message[20..24].copy_from_slice(&IFINDEX.to_ne_bytes());
    message[24..28].copy_from_slice(&flags.to_ne_bytes());
    message[28..32].copy_from_slice(&flags.to_ne_bytes());
    message
}

fn read(answer: &[u8]) -> io::Result<u32> {
    let word =
        |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(16), word(24)) {
        (Some(NLMSG_ERROR), Some(0), _) => Ok(0),
        (Some(NLMSG_ERROR), Some(errno), _) => {
            Err(io::Error::from_raw_os_error(errno.cast_signed().wrapping_neg()))
        }
        (Some(RTM_NEWLINK), _, Some(flags)) => Ok(flags),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is of an unknown kind")),
    }
}

/// What the specification's own plugin says; a result that was there before stays as it is.
fn result(netns: &Path, previous: Option<&Value>, version: SpecVersion) -> Value {
    if let Some(previous) = previous.filter(|previous| !previous.is_null()) {
        return previous.clone();
    }
    let ip = |address: &str, family: &str| {
        let mut ip = json!({ "address": address, "interface": 0 });
        if version.ips_have_version() {
            ip["version"] = json!(family);
        }
        ip
    };
    json!({
        "cniVersion": version.as_str(),
        "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns }],
        "ips": [ip("127.0.0.1/8", "4"), ip("::1/128", "6")],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (program, meant) in [
            ("/opt/cni/bin/loopback", true),
            ("loopback", true),
            ("/opt/cni/bin/hypha-cni", false),
            ("/loopback/x", false),
        ] {
            assert_eq!(is_meant(Some(OsStr::new(program))), meant, "{program}");
        }
        assert!(!is_meant(None));
    }

    #[test]
    fn answers_are_told_apart() {
        let mut answer = message(NLMSG_ERROR, 0, 0);
        assert_eq!(read(&answer).unwrap(), 0);
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(read(&answer).unwrap_err().raw_os_error(), Some(1));
        assert_eq!(read(&message(RTM_NEWLINK, 0, 73)).unwrap(), 73);
        assert!(read(&message(99, 0, 0)).is_err());
        assert!(read(&[]).is_err());
    }

    #[test]
    fn the_kernel_takes_our_messages() {
        // `lo` of the machine that runs the tests: looking changes nothing.
        assert!(is_up().is_ok());
    }

    #[test]
    fn results_are_those_of_their_version() {
        let old = result(Path::new("/run/netns/a"), None, SpecVersion::V0_4_0);
        assert_eq!(old["ips"][1], json!({ "address": "::1/128", "interface": 0, "version": "6" }));
        let new = result(Path::new("/run/netns/a"), Some(&Value::Null), SpecVersion::V1_1_0);
        assert_eq!(new["ips"][0], json!({ "address": "127.0.0.1/8", "interface": 0 }));
        assert_eq!(new["interfaces"][0]["sandbox"], "/run/netns/a");
        let before = json!({ "cniVersion": "1.0.0", "ips": [] });
        assert_eq!(result(Path::new("/"), Some(&before), SpecVersion::V1_0_0), before);
    }
}

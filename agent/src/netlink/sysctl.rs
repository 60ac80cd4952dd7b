//! The kernel settings that pods' traffic needs, on the agent's own devices wherever that is enough.
//!
//! A path below `/proc/sys/net` means the calling thread's network namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use tracing::{debug, info, warn};

use super::NetlinkError;

/// `rp_filter`: no reverse-path check.
const OFF: &str = "0";
/// `rp_filter`: the source must be reachable through any device. The kernel applies the larger of the device's value
/// and that of `all`, and 2 is the looser check: it overrides a strict `all` (1), where 0 would not.
const LOOSE: &str = "2";
/// `addr_gen_mode`: no link-local address.
const NO_LINK_LOCAL: &str = "1";

/// Sets `/proc/sys/<name>` to `value` unless it is that already, and returns the value it replaced.
pub fn set(name: impl AsRef<Path>, value: &str) -> Result<Option<String>, NetlinkError> {
    let path = Path::new("/proc/sys").join(name);
    match replace(&path, value) {
        Ok(replaced) => {
            if let Some(was) = &replaced {
                debug!(sysctl = %path.display(), %was, now = value, "set a sysctl");
            }
            Ok(replaced)
        }
        Err(source) => Err(NetlinkError::Sysctl { path, value: value.into(), source }),
    }
}

/// The value of `/proc/sys/<name>`; `None` when the kernel has no such setting.
pub fn get(name: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|value| value.trim().to_owned())
}

/// Prepares a device of the agent's own on the node's side: it forwards in both families, does not filter by reverse
/// path (the programs check sources), and keeps quiet (no router advertisements, no link-local address, no proxying).
pub(super) fn prepare_own_device(ifname: &str, needs_ipv6: bool) -> Result<(), NetlinkError> {
    let strict = get("net/ipv4/conf/all/rp_filter").is_some_and(|value| value == "1");
    let ipv4 = [("rp_filter", if strict { LOOSE } else { OFF }), ("forwarding", "1"), ("proxy_arp", OFF)];
    for (key, value) in ipv4 {
        set(device("ipv4", ifname, key), value)?;
    }
    if !has_ipv6(ifname, needs_ipv6)? {
        return Ok(());
    }
    if needs_ipv6 {
        set(device("ipv6", ifname, "disable_ipv6"), "0")?;
    }
    let ipv6 =
        [("addr_gen_mode", NO_LINK_LOCAL), ("accept_ra", "0"), ("forwarding", "1"), ("proxy_ndp", OFF)];
    for (key, value) in ipv6 {
        set(device("ipv6", ifname, key), value)?;
    }
    if has_force_forwarding() {
        set(device("ipv6", ifname, "force_forwarding"), "1")?;
    }
    Ok(())
}

/// Prepares the container end: addresses are usable at once (nobody else can have them, so there is no duplicate
/// detection) and routers on the pod's link, of which there are none, are not listened to.
pub(super) fn prepare_container_device(ifname: &str, needs_ipv6: bool) -> Result<(), NetlinkError> {
    if !has_ipv6(ifname, needs_ipv6)? {
        return Ok(());
    }
    if needs_ipv6 {
        set(device("ipv6", ifname, "disable_ipv6"), "0")?;
    }
    set(device("ipv6", ifname, "accept_dad"), "0")?;
    set(device("ipv6", ifname, "accept_ra"), "0")?;
    Ok(())
}

/// Settings of the node as a whole, made only where the kernel has none for a single device, and logged: IPv6
/// forwarding before Linux 6.17. `uplinks` go on taking router advertisements, which forwarding would end.
pub(super) fn prepare_node(uplinks: &[String]) -> Result<(), NetlinkError> {
    if get("net/ipv4/conf/all/rp_filter").is_some_and(|value| value == "1") {
        warn!("net.ipv4.conf.all.rp_filter is strict: pods' devices get the loose check instead of none");
    }
    if get("net/ipv6/conf/all/forwarding").is_none() || has_force_forwarding() {
        return Ok(());
    }
    for uplink in uplinks {
        let accept_ra = device("ipv6", uplink, "accept_ra");
        if get(&accept_ra).is_some_and(|value| value == "1") {
            set(&accept_ra, "2")?;
            info!(device = %uplink, "accept_ra was 1, now 2: keeps router advertisements while forwarding");
        }
    }
    if let Some(was) = set("net/ipv6/conf/all/forwarding", "1")? {
        info!(%was, "net.ipv6.conf.all.forwarding is now 1: this kernel has no force_forwarding per device");
    }
    Ok(())
}

/// Whether the device has IPv6 settings at all; an error when it has none and needs them.
fn has_ipv6(ifname: &str, needed: bool) -> Result<bool, NetlinkError> {
    let has = Path::new("/proc/sys").join(device("ipv6", ifname, "")).exists();
    if needed && !has {
        return Err(NetlinkError::NoIpv6 { ifname: ifname.into() });
    }
    Ok(has)
}

/// Whether IPv6 can be forwarded from a single device (Linux 6.17).
fn has_force_forwarding() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/default/force_forwarding").exists()
}

/// The setting `key` of one device; a name with dots stays one component.
fn device(family: &str, ifname: &str, key: &str) -> PathBuf {
    ["net", family, "conf", ifname, key].iter().collect()
}

/// Writes only what differs: some settings have side effects even when they stay the same.
fn replace(path: &Path, value: &str) -> io::Result<Option<String>> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut buffer = [0; 64];
    let length = file.read_at(&mut buffer, 0)?;
    let was = String::from_utf8_lossy(&buffer[..length]);
    if was.trim() == value {
        return Ok(None);
    }
    // At offset 0: the kernel ignores what is written to a setting anywhere else.
    file.write_all_at(value.as_bytes(), 0)?;
    Ok(Some(was.trim().to_owned()))
}

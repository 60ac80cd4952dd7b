//! The mounts around the agent: in a container without `privileged` the kernel's settings are mounted read-only.
//!
//! The agent writes settings of its own devices below `/proc/sys/net`, and `/sys/kernel/rcu_expedited`. A container that
//! has `CAP_SYS_ADMIN`, which it needs to enter pods' namespaces anyway, may mount both writable again: in a mount
//! namespace of this process alone, so that nobody else's view changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tracing::{info, warn};

/// What the agent writes to.
const SETTINGS: [&str; 2] = ["/proc/sys", "/sys"];
/// The flags of a mount that a change of it must repeat, or it would lose them.
const FLAGS: [(&str, MsFlags); 6] = [
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
];

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Its own, which are not those of the file system that is mounted.
    options: Vec<String>,
}

/// Mounts the kernel's settings writable where they are not; what that is worth shows when one has to be written. To be
/// called before there are threads: they share the mount namespace of the one that starts them.
pub fn make_settings_writable() {
    let read_only: Vec<Mount> =
        SETTINGS.iter().filter_map(|path| mount_at(Path::new(path))).filter(is_read_only).collect();
    if read_only.is_empty() {
        return;
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
        warn!(%error, "the kernel's settings are mounted read-only, and without CAP_SYS_ADMIN that stays so");
        return;
    }
    for Mount { point, options } in read_only {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | kept(&options);
        match mount(None::<&str>, &point, None::<&str>, flags, None::<&str>) {
            Ok(()) => info!(path = %point.display(), "was mounted read-only: writable now, for this process"),
            Err(error) => {
                warn!(path = %point.display(), %error, "is mounted read-only, and cannot be made writable: does AppArmor forbid it?");
            }
        }
    }
}

/// Whether something is mounted at this very path.
pub fn is_mount_point(path: &Path) -> bool {
    mount_at(path).is_some()
}

fn mount_at(path: &Path) -> Option<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_else(|error: io::Error| {
        warn!(%error, "cannot read /proc/self/mountinfo");
        String::new()
    });
    find(&table, path)
}

/// Of several mounts at one place the last covers the others.
fn find(table: &str, path: &Path) -> Option<Mount> {
    table.lines().filter_map(parse).rfind(|mount| mount.point == path)
}

/// Of `ID PARENT DEVICE ROOT POINT OPTIONS …`; a point with a space in it, written as `\040`, is nobody we look for.
fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(4);
    let point = fields.next()?.into();
    let options = fields.next()?.split(',').map(str::to_owned).collect();
    Some(Mount { point, options })
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.iter().any(|option| option == "ro")
}

fn kept(options: &[String]) -> MsFlags {
    let set = FLAGS.into_iter().filter(|(name, _)| options.iter().any(|option| option == name));
    set.map(|(_, flag)| flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a container that runc has made.
    const TABLE: &str = "\
690 685 0:57 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
700 690 0:57 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
691 685 0:22 / /sys rw,nosuid,nodev,noexec,relatime master:7 - sysfs sysfs rw
692 685 0:22 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw
693 692 0:30 / /sys/fs/bpf rw,noatime - bpf bpf rw,mode=700
";

    #[test]
    fn a_mounts_own_options_count_and_the_last_mount_covers_those_below() {
        let read_only = |path| is_read_only(&find(TABLE, Path::new(path)).unwrap());
        assert!(read_only("/proc/sys"));
        assert!(read_only("/sys"));
        assert!(!read_only("/proc"));
        assert_eq!(find(TABLE, Path::new("/proc/sys/net")), None);
        assert_eq!(find("\n7 8\n", Path::new("/")), None);
    }

    #[test]
    fn what_a_mount_forbids_it_goes_on_forbidding() {
        let sys = find(TABLE, Path::new("/proc/sys")).unwrap();
        let expected = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
        assert_eq!(kept(&sys.options), expected);
        assert_eq!(kept(&find(TABLE, Path::new("/sys/fs/bpf")).unwrap().options), MsFlags::MS_NOATIME);
    }

    #[test]
    fn mount_points_are_known() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }
}

//! `hypha install-cni`: the step of a node's installation that puts the CNI shim where the runtime looks for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// The shim's name, which is its `type` in network configurations.
pub const SHIM: &str = "hypha-cni";
/// Container runtimes may call this plugin for every sandbox. The shim is one, too, when it goes by this name.
const LOOPBACK: &str = "loopback";
/// Leftovers of installations that were killed are told by how their names begin and end.
const TEMPORARY: (&str, &str) = (".hypha-cni.", ".tmp");

/// What to install, and where.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// The runtime's directory of CNI plugins
    #[arg(long, env = "HYPHA_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// The shim to install [default: the hypha-cni beside this executable]
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// Installs it, unless it is there already.
pub fn run(args: &InstallArgs) -> anyhow::Result<()> {
    let from = match &args.from {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .context("cannot tell where this executable is: give --from")?
            .with_file_name(SHIM),
    };
    let installed = install(&from, &args.bin_dir)
        .with_context(|| format!("cannot install {} in {}", from.display(), args.bin_dir.display()))?;
    for name in &installed {
        println!("installed {}", args.bin_dir.join(name).display());
    }
    if installed.is_empty() {
        println!("up to date: {}", args.bin_dir.join(SHIM).display());
    }
    Ok(())
}

/// Puts `from` into `bin_dir`, each name in one step, and returns the names that were not up to date. Whoever runs the
/// plugin meanwhile has the one before or the new one, and one that is running goes on with its own.
///
/// A node's own `loopback` stays; where there is none, or it is ours, it is a copy: a link would have whoever copies
/// another plugin there write into the shim.
fn install(from: &Path, bin_dir: &Path) -> anyhow::Result<Vec<&'static str>> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    ensure!(content.starts_with(b"\x7fELF"), "{} is no executable", from.display());
    fs::create_dir_all(bin_dir).with_context(|| format!("cannot make {}", bin_dir.display()))?;
    sweep(bin_dir)?;
    let mut installed = Vec::new();
    let loopback = bin_dir.join(LOOPBACK);
    // Before the shim: a copy is known by being the same as the shim beside it.
    if !loopback.exists() || is_copy(&loopback, bin_dir) {
        installed.extend(put(&content, bin_dir, LOOPBACK)?);
    }
    installed.extend(put(&content, bin_dir, SHIM)?);
    // The renames themselves are to survive a loss of power, too.
    File::open(bin_dir).and_then(|directory| directory.sync_all()).context("cannot sync the directory")?;
    Ok(installed)
}

fn put(content: &[u8], bin_dir: &Path, name: &'static str) -> anyhow::Result<Option<&'static str>> {
    let place = bin_dir.join(name);
    if is_same(&place, content) {
        return Ok(None);
    }
    let temporary = bin_dir.join(format!("{}{}{}", TEMPORARY.0, std::process::id(), TEMPORARY.1));
    write(&temporary, content).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, &place).with_context(|| format!("cannot rename {}", temporary.display()))?;
    Ok(Some(name))
}

/// Removes the shim, a loopback plugin that is a copy of it, and what killed installations have left; returns what of the
/// first two was there.
pub fn remove(bin_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    sweep(bin_dir)?;
    let (shim, loopback) = (bin_dir.join(SHIM), bin_dir.join(LOOPBACK));
    let mut removed = Vec::new();
    if is_copy(&loopback, bin_dir) {
        removed.push(loopback);
    }
    if shim.exists() {
        removed.push(shim);
    }
    for path in &removed {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(removed)
}

fn is_copy(loopback: &Path, bin_dir: &Path) -> bool {
    fs::read(bin_dir.join(SHIM)).is_ok_and(|shim| fs::read(loopback).is_ok_and(|found| found == shim))
}

fn is_same(place: &Path, content: &[u8]) -> bool {
    let is_executable =
        |path: &Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o111 == 0o111);
    is_executable(place) && fs::read(place).is_ok_and(|found| found == content)
}

/// On disk before anybody can see it: a name must never stand for half a file.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    // Whatever the umask has taken away.
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.write_all(content)?;
    file.sync_all()
}

/// An installation that goes on at this moment loses its file, fails, and is started again.
fn sweep(bin_dir: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(bin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", bin_dir.display()))?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours =
            name.to_str().is_some_and(|name| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1));
        if is_ours {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let fixture = Self { folder: tempfile::tempdir().unwrap() };
            fs::write(fixture.from(), b"\x7fELF one").unwrap();
            fixture
        }

        fn from(&self) -> PathBuf {
            self.folder.path().join("shipped")
        }

        fn bin_dir(&self) -> PathBuf {
            self.folder.path().join("opt/cni/bin")
        }

        fn install(&self) -> Vec<&'static str> {
            install(&self.from(), &self.bin_dir()).unwrap()
        }

        fn read(&self, name: &str) -> Vec<u8> {
            fs::read(self.bin_dir().join(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.bin_dir()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn it_is_installed_once_and_replaced_when_it_differs() {
        let fixture = Fixture::new();
        assert_eq!(fixture.install(), [LOOPBACK, SHIM]);
        assert_eq!(fixture.install(), [""; 0], "it is there");
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        assert_eq!(fixture.install(), [LOOPBACK, SHIM], "another version");
        let place = fixture.bin_dir().join(SHIM);
        assert_eq!(fixture.read(SHIM), b"\x7fELF two");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o755);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(fixture.install(), [SHIM], "nobody could execute it");
        assert_eq!(fixture.names(), [SHIM, LOOPBACK]);
    }

    #[test]
    fn a_loopback_plugin_of_the_node_stays() {
        let fixture = Fixture::new();
        fixture.install();
        fs::write(fixture.bin_dir().join(LOOPBACK), "the node's").unwrap();
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        assert_eq!(fixture.install(), [SHIM]);
        assert_eq!(fixture.read(LOOPBACK), b"the node's");
        assert_eq!(remove(&fixture.bin_dir()).unwrap(), [fixture.bin_dir().join(SHIM)]);
        assert_eq!(fixture.names(), [LOOPBACK]);
    }

    #[test]
    fn an_upgrade_that_is_killed_between_the_two_is_ended_by_the_next() {
        let fixture = Fixture::new();
        fixture.install();
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        fs::write(fixture.bin_dir().join(LOOPBACK), b"\x7fELF two").unwrap();
        assert_eq!(fixture.install(), [SHIM]);
        assert_eq!(remove(&fixture.bin_dir()).unwrap().len(), 2);
    }

    #[test]
    fn what_a_killed_installation_left_goes_and_nothing_else() {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.bin_dir()).unwrap();
        for name in [".hypha-cni.7.tmp", "bridge", ".hypha-cni-notes", "hypha-cni.tmp"] {
            fs::write(fixture.bin_dir().join(name), "half").unwrap();
        }
        fixture.install();
        assert_eq!(fixture.names(), [".hypha-cni-notes", "bridge", "hypha-cni", "hypha-cni.tmp", "loopback"]);
        assert_eq!(remove(&fixture.bin_dir()).unwrap().len(), 2);
        assert_eq!(remove(&fixture.bin_dir()).unwrap().len(), 0);
        assert_eq!(fixture.names(), [".hypha-cni-notes", "bridge", "hypha-cni.tmp"]);
    }

    #[test]
    fn one_that_is_running_is_replaced_and_goes_on() {
        let fixture = Fixture::new();
        fs::copy("/bin/sleep", fixture.from()).unwrap();
        fixture.install();
        let mut running = Command::new(fixture.bin_dir().join(SHIM)).arg("60").spawn().unwrap();
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        let installed = install(&fixture.from(), &fixture.bin_dir());
        let goes_on = running.try_wait().unwrap().is_none();
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(installed.unwrap(), [LOOPBACK, SHIM]);
        assert!(goes_on);
    }

    #[test]
    fn mistakes_are_named() {
        let fixture = Fixture::new();
        let missing = install(Path::new("/nonexistent"), &fixture.bin_dir()).unwrap_err();
        assert!(format!("{missing:#}").contains("/nonexistent"));
        fs::write(fixture.from(), "a script").unwrap();
        let refused = install(&fixture.from(), &fixture.bin_dir()).unwrap_err();
        assert!(refused.to_string().contains("no executable"));
        assert!(!fixture.bin_dir().join(SHIM).exists());
        assert!(remove(Path::new("/nonexistent")).unwrap().is_empty());
    }
}

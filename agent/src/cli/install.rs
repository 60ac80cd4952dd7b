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
    let place = args.bin_dir.join(SHIM);
    let installed = install(&from, &args.bin_dir)
        .with_context(|| format!("cannot install {} as {}", from.display(), place.display()))?;
    println!("{} {}", if installed { "installed" } else { "up to date:" }, place.display());
    Ok(())
}

/// Puts `from` into `bin_dir` in one step; tells whether anything had to be done. Whoever runs the plugin meanwhile has
/// the one before or the new one, and one that is running goes on with its own.
fn install(from: &Path, bin_dir: &Path) -> anyhow::Result<bool> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    ensure!(content.starts_with(b"\x7fELF"), "{} is no executable", from.display());
    fs::create_dir_all(bin_dir).with_context(|| format!("cannot make {}", bin_dir.display()))?;
    sweep(bin_dir)?;
    let place = bin_dir.join(SHIM);
    if is_same(&place, &content) {
        return Ok(false);
    }
    let temporary = bin_dir.join(format!("{}{}{}", TEMPORARY.0, std::process::id(), TEMPORARY.1));
    write(&temporary, &content).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, &place).with_context(|| format!("cannot rename {}", temporary.display()))?;
    // The rename itself is to survive a loss of power, too.
    File::open(bin_dir).and_then(|directory| directory.sync_all()).context("cannot sync the directory")?;
    Ok(true)
}

/// Removes the shim and what killed installations have left; tells whether the shim was there.
pub fn remove(bin_dir: &Path) -> anyhow::Result<bool> {
    sweep(bin_dir)?;
    let place = bin_dir.join(SHIM);
    match fs::remove_file(&place) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", place.display())),
    }
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

        fn install(&self) -> bool {
            install(&self.from(), &self.bin_dir()).unwrap()
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
        assert!(fixture.install());
        assert!(!fixture.install(), "it is there");
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        assert!(fixture.install(), "another version");
        let place = fixture.bin_dir().join(SHIM);
        assert_eq!(fs::read(&place).unwrap(), b"\x7fELF two");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o755);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(fixture.install(), "nobody could execute it");
        assert_eq!(fixture.names(), [SHIM]);
    }

    #[test]
    fn what_a_killed_installation_left_goes_and_nothing_else() {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.bin_dir()).unwrap();
        for name in [".hypha-cni.7.tmp", "bridge", ".hypha-cni-notes", "hypha-cni.tmp"] {
            fs::write(fixture.bin_dir().join(name), "half").unwrap();
        }
        assert!(fixture.install());
        assert_eq!(fixture.names(), [".hypha-cni-notes", "bridge", "hypha-cni", "hypha-cni.tmp"]);
        assert!(remove(&fixture.bin_dir()).unwrap());
        assert!(!remove(&fixture.bin_dir()).unwrap());
        assert_eq!(fixture.names(), [".hypha-cni-notes", "bridge", "hypha-cni.tmp"]);
    }

    #[test]
    fn one_that_is_running_is_replaced_and_goes_on() {
        let fixture = Fixture::new();
        fs::copy("/bin/sleep", fixture.from()).unwrap();
        assert!(fixture.install());
        let mut running = Command::new(fixture.bin_dir().join(SHIM)).arg("60").spawn().unwrap();
        fs::write(fixture.from(), b"\x7fELF two").unwrap();
        let installed = install(&fixture.from(), &fixture.bin_dir());
        let goes_on = running.try_wait().unwrap().is_none();
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(installed.unwrap());
        assert!(goes_on);
    }

    #[test]
    fn mistakes_are_named() {
        let fixture = Fixture::new();
        let missing = install(Path::new("/nonexistent"), &fixture.bin_dir()).unwrap_err();
        assert!(format!("{missing:#}").contains("/nonexistent"));
        fs::write(fixture.from(), "a script").unwrap();
        assert!(
            install(&fixture.from(), &fixture.bin_dir()).unwrap_err().to_string().contains("no executable")
        );
        assert!(!fixture.bin_dir().join(SHIM).exists());
        assert!(!remove(Path::new("/nonexistent")).unwrap());
    }
}

//! The Go toolchain: found, or fetched where it is missing or too old.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::progress::Progress;
use crate::shell;

/// The oldest minor release of Go 1 that builds our modules.
const OLDEST: u32 = 26;
/// What is fetched where no Go is found, as Go itself fetches toolchains: from the module proxy.
const FETCHED: &str = "go1.26.0";
/// How often a build says how far it is.
const INTERVAL: Duration = Duration::from_secs(5);
/// Lines of a failed build that its error shows.
const TAIL: usize = 30;

/// A `go` that is new enough.
#[derive(Debug)]
pub struct Go {
    program: PathBuf,
}

impl Go {
    /// Looks in PATH and where Go installs itself; otherwise fetches one into `cache`.
    pub fn ensure(cache: &Path, progress: Progress<'_>) -> Result<Self> {
        let fetched = cache.join(FETCHED).join("bin/go");
        let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go"), fetched.clone()];
        for program in candidates {
            if version(&program).is_some_and(|minor| minor >= OLDEST) {
                return Ok(Self { program });
            }
        }
        progress(&format!("no Go 1.{OLDEST} or newer on this machine: fetching {FETCHED}"));
        fetch(cache)?;
        ensure!(version(&fetched).is_some(), "{} does not run", fetched.display());
        Ok(Self { program: fetched })
    }

    /// Builds one static program; `what` starts every line of progress.
    pub fn build(
        &self,
        module: &Path,
        package: &str,
        ldflags: &str,
        output: &Path,
        what: &str,
        progress: Progress<'_>,
    ) -> Result<()> {
        progress(what);
        let mut child = Command::new(&self.program)
            .current_dir(module)
            .args(["build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o"])
            .arg(output)
            .arg(package)
            .env("CGO_ENABLED", "0")
            // The toolchain is chosen here, and a GOFLAGS of the user's could name another mode of modules.
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let lines = child.stderr.take().map(|pipe| follow(pipe, what, progress)).unwrap_or_default();
        let status = child.wait().context("cannot wait for go build")?;
        ensure!(
            status.success(),
            "go build {package} in {} failed ({status}):\n{}",
            module.display(),
            lines[lines.len().saturating_sub(TAIL)..].join("\n")
        );
        Ok(())
    }
}

/// Reads what `go build -v` says to its end, and tells now and then how much of it there was.
fn follow(pipe: impl Read, what: &str, progress: Progress<'_>) -> Vec<String> {
    let start = Instant::now();
    let mut told = start;
    let mut lines: Vec<String> = Vec::new();
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        lines.push(line);
        if told.elapsed() >= INTERVAL {
            told = Instant::now();
            let fetched = lines.iter().filter(|line| line.starts_with("go: downloading")).count();
            let compiled = lines.len() - fetched;
            let seconds = start.elapsed().as_secs();
            progress(&format!(
                "{what}: {fetched} modules fetched, {compiled} packages compiled, {seconds} s"
            ));
        }
    }
    lines
}

/// The minor release of a `go`, if it runs.
fn version(program: &Path) -> Option<u32> {
    let output =
        Command::new(program).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output().ok()?;
    minor(&String::from_utf8_lossy(&output.stdout))
}

/// `26` of `go1.26.3`.
fn minor(version: &str) -> Option<u32> {
    let rest = version.trim().strip_prefix("go1.")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The archive's name at the module proxy, and its SHA-256.
fn archive() -> Result<(String, &'static str)> {
    let (architecture, digest) = match env::consts::ARCH {
        "x86_64" => ("amd64", "38461905b98c59173672814302e222ab43b652274bc0c95817b08b71ab66b705"),
        "aarch64" => ("arm64", "4c3f961bc257ff52e7a425166f9f75015f645dff071d01a81823455ffe646609"),
        other => bail!("no Go is fetched for {other}: install Go 1.{OLDEST} and put it in the PATH"),
    };
    Ok((format!("v0.0.1-{FETCHED}.linux-{architecture}"), digest))
}

/// The module proxy: the environment's, or the one that an older Go would ask.
fn proxy() -> Result<String> {
    let proxies =
        env::var("GOPROXY").or_else(|_| shell::text(Command::new("go").args(["env", "GOPROXY"])))?;
    first_proxy(&proxies).with_context(|| format!("GOPROXY names no proxy: {proxies:?}"))
}

/// `https://a` of `https://a,direct`.
fn first_proxy(proxies: &str) -> Option<String> {
    let mut proxies = proxies.trim().split([',', '|']);
    proxies.find(|proxy| proxy.starts_with("http")).map(str::to_owned)
}

fn fetch(cache: &Path) -> Result<()> {
    let (name, digest) = archive()?;
    let hint = format!("cannot fetch {FETCHED}; install Go 1.{OLDEST} or newer and put it in the PATH");
    let proxy = proxy().with_context(|| hint.clone())?;
    let zip = cache.join(format!("{name}.zip"));
    let url = format!("{proxy}/golang.org/toolchain/@v/{name}.zip");
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--output"]).arg(&zip).arg(&url);
    shell::text_within(&mut curl, Duration::from_mins(5)).with_context(|| hint.clone())?;
    let sum = shell::text(Command::new("sha256sum").arg(&zip))?;
    ensure!(sum.starts_with(digest), "{url} has the digest {sum}, not {digest}: {hint}");
    unpack(cache, &zip, &name)?;
    fs::remove_file(&zip).with_context(|| format!("cannot remove {}", zip.display()))
}

fn unpack(cache: &Path, zip: &Path, name: &str) -> Result<()> {
    let fresh = cache.join(format!(".{FETCHED}"));
    shell::text(Command::new("unzip").args(["-q", "-o", "-d"]).arg(&fresh).arg(zip))?;
    let root = fresh.join(format!("golang.org/toolchain@{name}"));
    let architecture = name.rsplit('.').next().unwrap_or_default().replace('-', "_");
    // Archives of modules carry no modes.
    for directory in ["bin".to_owned(), format!("pkg/tool/{architecture}")] {
        let directory = root.join(directory);
        for entry in
            fs::read_dir(&directory).with_context(|| format!("no {}", directory.display()))?.flatten()
        {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} executable", entry.path().display()))?;
        }
    }
    fs::rename(&root, cache.join(FETCHED)).context("cannot put the fetched Go in place")?;
    fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_proxy_is_asked() {
        for (proxies, wanted) in [
            ("https://a,direct\n", Some("https://a")),
            ("direct|http://b", Some("http://b")),
            ("off", None),
            ("", None),
        ] {
            assert_eq!(first_proxy(proxies).as_deref(), wanted, "{proxies}");
        }
    }

    #[test]
    fn releases_are_told_apart() {
        for (version, wanted) in
            [("go1.26.8\n", Some(26)), ("go1.27rc1", Some(27)), ("go1.19", Some(19)), ("devel", None)]
        {
            assert_eq!(minor(version), wanted, "{version}");
        }
    }
}

//! Builds the eBPF object: the one recipe behind `cargo xtask build-ebpf` and `agent/build.rs`.
//!
//! rustc emits LLVM bitcode for the BPF target and bpf-linker turns it into one object. bpf-linker must speak rustc's
//! own dialect of LLVM, so it is linked to the libLLVM that rustc itself ships: no LLVM package, no clang. That build
//! happens once per toolchain and lives under `target/tools`.
//!
//! Std-only because a build script compiles this file too (through `#[path]`, next to `elf.rs`).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::elf;

const LINKER_VERSION: &str = "0.13.0";
const BPF_TARGET: &str = "bpfel-unknown-none";
const BPF_PROFILE: &str = "bpf";
const PACKAGE: &str = "datapath-ebpf";
const BINARY: &str = "hypha-datapath";

/// A build that failed: what was tried and what to do about it.
#[derive(Debug)]
pub struct BuildError(String);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BuildError {}

type Result<T> = std::result::Result<T, BuildError>;

/// Adds what was being done to an error of the system.
fn trying<T, E: fmt::Display>(what: &str, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| BuildError(format!("{what}: {error}")))
}

/// Builds the object of one workspace.
pub struct Builder {
    root: PathBuf,
    target: PathBuf,
    arch: String,
    rustc: OsString,
    cargo: OsString,
}

impl Builder {
    /// For the workspace at `root`, with cargo's `target` directory, for nodes of CPU `arch` (as in `target_arch`).
    pub fn new(root: &Path, target: &Path, arch: &str) -> Self {
        let tool = |variable, name: &str| std::env::var_os(variable).unwrap_or_else(|| name.into());
        Self {
            root: root.to_path_buf(),
            target: target.to_path_buf(),
            arch: arch.to_owned(),
            rustc: tool("RUSTC", "rustc"),
            cargo: tool("CARGO", "cargo"),
        }
    }

    /// Builds the object, checks that it can be loaded at all, and returns where it is.
    ///
    /// `HYPHA_BPF_LINKER` names a bpf-linker to use instead of building one.
    pub fn build(&self) -> Result<PathBuf> {
        let sysroot = Toolchain::query(&self.rustc)?;
        sysroot.require_sources(&self.root)?;
        let linker = match std::env::var_os("HYPHA_BPF_LINKER") {
            Some(path) => path.into(),
            None => self.linker(&sysroot)?,
        };
        self.compile(&sysroot, &linker)?;
        let object = self.target.join("ebpf").join(BPF_TARGET).join(BPF_PROFILE).join(BINARY);
        check(&object)?;
        self.strip(&sysroot, &object)
    }

    /// Takes out the debug information that BTF was made from: three quarters of the object, and nobody loads it.
    fn strip(&self, toolchain: &Toolchain, object: &Path) -> Result<PathBuf> {
        let tool = toolchain.objcopy();
        if !tool.exists() {
            // Toolchains of distributions come without; the object is larger, and as good.
            return Ok(object.to_path_buf());
        }
        let stripped = object.with_extension("stripped");
        let mut command = Command::new(tool);
        command.arg("--strip-debug").arg(object).arg(&stripped);
        command.env("LD_LIBRARY_PATH", toolchain.library_path());
        run(&mut command, "stripping the eBPF object")?;
        Ok(stripped)
    }

    /// The nested cargo build. It has its own target directory: the outer cargo holds the lock of the usual one.
    fn compile(&self, toolchain: &Toolchain, linker: &Path) -> Result<()> {
        let flags = [
            OsString::from(format!("--cfg=bpf_target_arch=\"{}\"", self.arch)),
            // v3 has 32-bit jumps and arithmetic; without them LLVM puts match tables into .rodata, and loading fails.
            "-Ctarget-cpu=v3".into(),
            // BTF lets bpftool show field names; it is made from the debug information that the profile asks for.
            "-Clink-arg=--btf".into(),
            [OsStr::new("-Clinker="), linker.as_os_str()].into_iter().collect(),
        ];
        let mut command = self.nested(toolchain);
        command
            .args(["build", "--package", PACKAGE, "--bin", BINARY, "--target", BPF_TARGET])
            .args(["--profile", BPF_PROFILE, "--quiet", "-Zbuild-std=core", "--target-dir"])
            .arg(self.target.join("ebpf"))
            // core is built from source and -Z needs leave: a pinned stable toolchain is steadier than a nightly.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\x1f")));
        run(&mut command, "building the eBPF programs")
    }

    /// A bpf-linker for this toolchain, built on first use.
    fn linker(&self, toolchain: &Toolchain) -> Result<PathBuf> {
        let tools = self.target.join("tools");
        let home = tools.join(format!("bpf-linker-{LINKER_VERSION}-rustc-{}", toolchain.release));
        let linker = home.join("bin/bpf-linker");
        trying(&format!("creating {}", tools.display()), fs::create_dir_all(&tools))?;

        // Two builds may get here at once (an editor's check and a build): the second waits for the first one's linker.
        let lock_path = tools.join(".lock");
        let lock = trying(&format!("opening {}", lock_path.display()), File::create(&lock_path))?;
        trying(&format!("locking {}", lock_path.display()), lock.lock())?;
        if toolchain.runs(&linker) {
            return Ok(linker);
        }
        announce(&format!(
            "building bpf-linker {LINKER_VERSION} against the LLVM of rustc {} (once, about a minute)",
            toolchain.release
        ));
        let prefix = toolchain.llvm_prefix(&home)?;
        let mut command = self.nested(toolchain);
        command
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"])
            .args(["--no-default-features", "--features", &format!("llvm-{}", toolchain.llvm_major)])
            .arg("--root")
            .arg(&home)
            .arg("--target-dir")
            .arg(tools.join("build"))
            .env("LLVM_PREFIX", prefix);
        run(&mut command, "building bpf-linker (needs a C compiler and the crate registry)")?;
        // Hundreds of megabytes that nothing uses again; the linker is installed whether or not they go.
        let _ = fs::remove_dir_all(tools.join("build"));
        Ok(linker)
    }

    /// A cargo that does not notice it runs inside another one.
    fn nested(&self, toolchain: &Toolchain) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(belongs_to_outer_cargo) {
                command.env_remove(name);
            }
        }
        command.env("RUSTC", &self.rustc).env("LD_LIBRARY_PATH", toolchain.library_path());
        command
    }
}

/// Whether an environment variable describes the build that is going on around us.
fn belongs_to_outer_cargo(name: &str) -> bool {
    const PREFIXES: [&str; 10] = [
        "RUSTC",
        "RUSTDOC",
        "CARGO_BIN_",
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "DEP_",
    ];
    const NAMES: [&str; 16] = [
        "CARGO_CRATE_NAME",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_MAKEFLAGS",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_DIR",
        "DEBUG",
        "HOST",
        "MAKEFLAGS",
        "MFLAGS",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "TARGET",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// What rustc says about itself.
struct Toolchain {
    release: String,
    host: String,
    llvm_major: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn query(rustc: &OsStr) -> Result<Self> {
        let version = output(Command::new(rustc).arg("-vV"), "asking rustc for its version")?;
        let field = |name: &str| {
            let line = version.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
                .ok_or_else(|| BuildError(format!("`rustc -vV` shows no `{name}` line:\n{version}")))
        };
        let llvm = field("LLVM version:")?;
        let sysroot =
            output(Command::new(rustc).args(["--print", "sysroot"]), "asking rustc for its sysroot")?;
        Ok(Self {
            release: field("release:")?,
            host: field("host:")?,
            llvm_major: llvm.split('.').next().unwrap_or_default().to_owned(),
            sysroot: sysroot.trim().into(),
        })
    }

    /// core is compiled for BPF from the sources that rustup installs as component `rust-src`.
    fn require_sources(&self, root: &Path) -> Result<()> {
        let sources = self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if sources.exists() {
            return Ok(());
        }
        Err(BuildError(format!(
            "{} is missing (component rust-src): run `rustup toolchain install` in {}, which installs what \
             rust-toolchain.toml lists",
            sources.display(),
            root.display()
        )))
    }

    /// A directory laid out as an LLVM installation, holding only a link to rustc's libLLVM.
    fn llvm_prefix(&self, home: &Path) -> Result<PathBuf> {
        let prefix = home.join("llvm");
        let lib = prefix.join("lib");
        trying(&format!("creating {}", lib.display()), fs::create_dir_all(&lib))?;
        let (name, library) = self.llvm_library()?;
        for link in [lib.join("libLLVM.so"), lib.join(name)] {
            let _ = fs::remove_file(&link);
            let linked = std::os::unix::fs::symlink(&library, &link);
            trying(&format!("linking {} to {}", link.display(), library.display()), linked)?;
        }
        Ok(prefix)
    }

    /// The file name and path of the libLLVM that rustc itself runs on.
    fn llvm_library(&self) -> Result<(OsString, PathBuf)> {
        let directory = self.sysroot.join("lib");
        let entries = trying(&format!("reading {}", directory.display()), fs::read_dir(&directory))?;
        entries
            .filter_map(std::result::Result::ok)
            .map(|entry| (entry.file_name(), entry.path()))
            // Not `libLLVM-22-rust-….so`: that one is a linker script that names this one.
            .find(|(name, _)| name.to_string_lossy().starts_with("libLLVM.so."))
            .ok_or_else(|| {
                let directory = directory.display();
                BuildError(format!(
                    "no libLLVM in {directory}: rustup's toolchains have one, others may not; either run \
                     `rustup toolchain install` or set HYPHA_BPF_LINKER to a bpf-linker that fits this rustc"
                ))
            })
    }

    /// The objcopy that rustc comes with.
    fn objcopy(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-objcopy")
    }

    /// Where bpf-linker finds libLLVM even after the toolchain moved from where the linker was built.
    fn library_path(&self) -> OsString {
        let mut path = self.sysroot.join("lib").into_os_string();
        if let Some(outer) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(outer);
        }
        path
    }

    fn runs(&self, linker: &Path) -> bool {
        let mut command = Command::new(linker);
        command.arg("--version").env("LD_LIBRARY_PATH", self.library_path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

/// Refuses an object that links but that no kernel would load, and names the culprit, which the verifier would not.
fn check(object: &Path) -> Result<()> {
    let bytes = trying(&format!("reading {}", object.display()), fs::read(object))?;
    let symbols = elf::symbols(&bytes).ok_or_else(|| {
        BuildError(format!("{} is not a 64-bit little-endian ELF object", object.display()))
    })?;
    let faults: Vec<String> = symbols.iter().filter_map(fault).collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(BuildError(format!("the eBPF object cannot be loaded:\n  {}", faults.join("\n  "))))
}

/// What is wrong with a symbol, if anything.
fn fault(symbol: &elf::Symbol) -> Option<String> {
    const PANICS: [&str; 4] = ["panicking", "unwrap_failed", "expect_failed", "slice_index"];
    let name = &symbol.name;
    if !symbol.defined {
        return Some(format!("`{name}` is undefined: the operation behind it does not exist in eBPF"));
    }
    PANICS.iter().any(|panic| name.contains(panic)).then(|| {
        format!("`{name}`: something can panic; use `.get()`, masks and `checked_*` instead of `[]`, `unwrap`, `%`")
    })
}

/// Runs to the end and shows what the command said only when it failed.
fn run(command: &mut Command, what: &str) -> Result<()> {
    output(command, what).map(drop)
}

/// Runs to the end and returns its standard output.
fn output(command: &mut Command, what: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = trying(&format!("{what}: cannot start `{program}`"), command.stdin(Stdio::null()).output())?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    Err(BuildError(format!(
        "{what} failed ({}):\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr).trim_end()
    )))
}

/// Tells whoever watches. Cargo swallows what a build script prints, so the terminal itself is asked first.
fn announce(message: &str) {
    let line = format!("\r\x1b[Khypha: {message}\n");
    let shown =
        File::options().write(true).open("/dev/tty").and_then(|mut tty| tty.write_all(line.as_bytes()));
    if shown.is_err() {
        eprintln!("hypha: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, defined: bool) -> elf::Symbol {
        elf::Symbol { name: name.to_owned(), defined }
    }

    #[test]
    fn programs_and_maps_pass_the_check() {
        assert_eq!(fault(&symbol("from_pod", true)), None);
        assert_eq!(fault(&symbol("ENDPOINTS", true)), None);
    }

    #[test]
    fn panics_and_missing_functions_are_named() {
        let panic = fault(&symbol("_ZN4core9panicking18panic_bounds_check17h0E", true)).unwrap();
        assert!(panic.contains("can panic"), "{panic}");
        let missing = fault(&symbol("__multi3", false)).unwrap();
        assert!(missing.contains("`__multi3` is undefined"), "{missing}");
    }

    #[test]
    fn only_the_outer_builds_variables_are_removed() {
        for gone in ["RUSTC_WORKSPACE_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_CFG_TARGET_ARCH", "OUT_DIR"]
        {
            assert!(belongs_to_outer_cargo(gone), "{gone}");
        }
        for kept in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_TOOLCHAIN", "CARGO_NET_OFFLINE", "HTTPS_PROXY"] {
            assert!(!belongs_to_outer_cargo(kept), "{kept}");
        }
    }
}

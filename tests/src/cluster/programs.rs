//! The programs a cluster is made of, built from pinned Go modules and kept below cargo's target directory.
//!
//! `tests/kubernetes`, `tests/containerd` and `tests/helm` hold a go.mod each, whose `tool` block names what is built. A program that
//! was built stays until the module or the flags change; Go's own cache makes building it again a matter of seconds. A
//! first build takes minutes on two cores and says how far it is.

use std::{
    env,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::{go::Go, progress::Progress};

/// The release of Kubernetes that `tests/kubernetes/go.mod` requires.
pub const KUBERNETES: &str = "v1.36.2";
/// The release of containerd that `tests/containerd/go.mod` requires.
pub const CONTAINERD: &str = "v2.1.9";

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// The store behind the API server.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// The node's agent of Kubernetes.
    Kubelet,
    /// The command line.
    Kubectl,
    /// Kubernetes' own service proxy.
    KubeProxy,
    /// The container runtime.
    Containerd,
    /// What containerd leaves with every pod.
    ContainerdShim,
    /// containerd's own command line.
    Ctr,
    /// Helm, which renders our chart.
    Helm,
}

/// A Go module of ours that pins programs.
struct Module {
    /// Directory below `tests/`.
    directory: &'static str,
    /// `-ldflags`: the version that a program reports. API clients refuse a server that does not know its own.
    ldflags: String,
}

impl Program {
    /// What a control plane without controllers needs.
    pub const API: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::Kubectl];
    /// What a control plane with controllers needs.
    pub const CONTROL: [Self; 5] =
        [Self::Etcd, Self::ApiServer, Self::Kubectl, Self::ControllerManager, Self::Scheduler];
    /// What a node needs.
    pub const NODE: [Self; 4] = [Self::Kubelet, Self::Containerd, Self::ContainerdShim, Self::Ctr];

    /// The name of the executable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Kubectl => "kubectl",
            Self::KubeProxy => "kube-proxy",
            Self::Containerd => "containerd",
            Self::ContainerdShim => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::Helm => "helm",
        }
    }

    /// The Go package that it is built from.
    fn package(self) -> String {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            Self::Containerd | Self::ContainerdShim | Self::Ctr => {
                format!("github.com/containerd/containerd/v2/cmd/{}", self.name())
            }
            Self::Helm => "helm.sh/helm/v4/cmd/helm".to_owned(),
            _ => format!("k8s.io/kubernetes/cmd/{}", self.name()),
        }
    }

    fn module(self) -> Module {
        match self {
            Self::Containerd | Self::ContainerdShim | Self::Ctr => Module {
                directory: "containerd",
                ldflags: format!(
                    "-s -w -X github.com/containerd/containerd/v2/version.Version={}",
                    CONTAINERD.trim_start_matches('v')
                ),
            },
            Self::Helm => Module { directory: "helm", ldflags: "-s -w".to_owned() },
            _ => Module { directory: "kubernetes", ldflags: kubernetes_ldflags() },
        }
    }
}

fn kubernetes_ldflags() -> String {
    let mut minor = KUBERNETES.split('.').skip(1);
    let minor = minor.next().unwrap_or_default();
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", KUBERNETES), ("gitMajor", "1"), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// Programs that are there.
#[derive(Clone, Debug)]
pub struct Programs {
    cache: PathBuf,
}

impl Programs {
    /// Finds or builds `wanted`. Two callers at once do not build twice: the second waits and says so.
    pub fn ensure(wanted: &[Program], progress: Progress<'_>) -> Result<Self> {
        let programs = Self { cache: cache_dir()? };
        if programs.missing(wanted)?.is_empty() {
            return Ok(programs);
        }
        let _alone = programs.lock(progress)?;
        let missing = programs.missing(wanted)?;
        let go = if missing.is_empty() { None } else { Some(Go::ensure(&programs.cache, progress)?) };
        for (index, &program) in missing.iter().enumerate() {
            let count = format!("{} of {}", index + 1, missing.len());
            if let Some(go) = &go {
                programs.build(go, program, &count, progress)?;
            }
        }
        Ok(programs)
    }

    /// Where a program is, once [`Self::ensure`] was asked for it.
    pub fn path(&self, program: Program) -> Result<PathBuf> {
        Ok(self.directory(program)?.join(program.name()))
    }

    /// The directories of all programs, as PATH has them.
    pub fn search_path(&self) -> Result<String> {
        let kubernetes = self.directory(Program::Kubelet)?;
        let containerd = self.directory(Program::Containerd)?;
        Ok(format!("{}:{}", kubernetes.display(), containerd.display()))
    }

    fn missing(&self, wanted: &[Program]) -> Result<Vec<Program>> {
        let mut missing = Vec::new();
        for &program in wanted {
            if !self.path(program)?.exists() {
                missing.push(program);
            }
        }
        Ok(missing)
    }

    /// Named by all that decides what is built, so that a change of it builds anew and going back finds the old one.
    fn directory(&self, program: Program) -> Result<PathBuf> {
        let module = program.module();
        let source = source_dir(&module);
        let mut hasher = DefaultHasher::new();
        for file in ["go.mod", "go.sum"] {
            let path = source.join(file);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.hash(&mut hasher);
        }
        module.ldflags.hash(&mut hasher);
        Ok(self.cache.join(format!("{}-{:016x}", module.directory, hasher.finish())))
    }

    fn lock(&self, progress: Progress<'_>) -> Result<Flock<File>> {
        fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))?;
        let path = self.cache.join("build.lock");
        let open = || File::create(&path).with_context(|| format!("cannot open {}", path.display()));
        match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err(_) => progress("another process builds Kubernetes' programs: waiting for it"),
        }
        match Flock::lock(open()?, FlockArg::LockExclusive) {
            Ok(lock) => Ok(lock),
            Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
        }
    }

    fn build(&self, go: &Go, program: Program, count: &str, progress: Progress<'_>) -> Result<()> {
        let directory = self.directory(program)?;
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let module = program.module();
        // Built beside and renamed: half a program must never look like a whole one.
        let fresh = directory.join(format!(".{}", program.name()));
        let what = format!("building {} ({count})", program.name());
        go.build(&source_dir(&module), &program.package(), &module.ldflags, &fresh, &what, progress)?;
        fs::rename(&fresh, directory.join(program.name()))
            .with_context(|| format!("cannot put {} in place", program.name()))
    }
}

fn source_dir(module: &Module) -> PathBuf {
    // Fixed when the lab is compiled, so that it works from any directory.
    Path::new(env!("CARGO_MANIFEST_DIR")).join(module.directory)
}

fn cache_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("cluster"))
}

/// The target directory that this program belongs to.
pub(super) fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let target = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    let target =
        target.with_context(|| format!("{} is in no target directory of cargo", program.display()))?;
    Ok(target.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(module: &str, go_mod: &str) -> bool {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(go_mod);
        let text = fs::read_to_string(path).unwrap();
        text.lines().any(|line| line.trim().trim_end_matches(" // indirect") == module)
    }

    #[test]
    fn the_versions_that_programs_report_are_those_that_are_built() {
        assert!(required(&format!("k8s.io/kubernetes {KUBERNETES}"), "kubernetes/go.mod"));
        assert!(required(&format!("github.com/containerd/containerd/v2 {CONTAINERD}"), "containerd/go.mod"));
    }

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        use Program::*;
        for program in [
            Etcd,
            ApiServer,
            ControllerManager,
            Scheduler,
            Kubelet,
            Kubectl,
            KubeProxy,
            Containerd,
            ContainerdShim,
            Ctr,
            Helm,
        ] {
            let path = source_dir(&program.module()).join("go.mod");
            let text = fs::read_to_string(path).unwrap();
            let package = program.package();
            let listed = text.lines().any(|line| line.trim().trim_start_matches("tool ") == package);
            assert!(listed, "{package}");
        }
    }

    #[test]
    fn programs_of_one_module_share_a_directory() {
        let programs = Programs { cache: PathBuf::from("/cache") };
        let directory = |program| programs.directory(program).unwrap();
        assert_eq!(directory(Program::Etcd), directory(Program::Kubelet));
        assert_ne!(directory(Program::Etcd), directory(Program::Ctr));
    }
}

//! A control plane: etcd and kube-apiserver in a namespace, and controllers where they are asked for.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Program, Programs, audit, etcd,
    kubeconfig::{Credential, kubeconfig},
    pki::Authority,
    process::Process,
    progress::{Progress, to_stderr},
};
use crate::{family::Family, lab::Lab, netns::Netns, poll, shell};

mod flags;
mod operate;

/// Where the API server listens.
pub const PORT: u16 = 6443;
/// How long an API server may take to become ready on a busy machine.
const START: Duration = Duration::from_secs(90);

/// Where a control plane lives.
#[derive(Debug)]
pub struct Site {
    /// Its namespace. What runs in it ends with the lab whose tag the name starts with.
    pub netns: Netns,
    /// Where its files go.
    pub dir: PathBuf,
    /// An address of the namespace, which clients use.
    pub v4: Ipv4Addr,
    /// An address of the namespace, which clients may use.
    pub v6: Ipv6Addr,
}

/// What a control plane shall be like. By default etcd and kube-apiserver, which takes Pods without a service account,
/// because nobody makes any.
#[derive(Clone, Default, Debug)]
pub struct ControlPlaneSpec {
    controllers: bool,
    api_flags: Vec<String>,
}

impl ControlPlaneSpec {
    /// kube-controller-manager and kube-scheduler, too. Nodes then get their podCIDRs (a /24 and a /64) by themselves.
    pub fn controllers(mut self) -> Self {
        self.controllers = true;
        self
    }

    /// One more flag for kube-apiserver.
    pub fn api_flag(mut self, flag: &str) -> Self {
        self.api_flags.push(flag.to_owned());
        self
    }

    /// Starts it beside a lab's nodes: in the gateway's namespace, with the gateway's address on their wire.
    pub fn start_in_lab(self, lab: &Lab) -> Result<ControlPlane> {
        let plan = lab.node(0).plan();
        let site = Site {
            netns: Netns::open(crate::Station::netns(lab.gateway()).name())?,
            dir: lab.dir().join("control-plane"),
            v4: plan.gateway_v4,
            v6: plan.gateway_v6,
        };
        self.start(site, &to_stderr)
    }

    /// Builds the programs where they are missing, starts everything and waits until it serves.
    pub fn start(self, site: Site, progress: Progress<'_>) -> Result<ControlPlane> {
        let wanted: &[Program] = if self.controllers { &Program::CONTROL } else { &Program::API };
        let programs = Programs::ensure(wanted, progress)?;
        let mut plane = ControlPlane::prepare(&self, site, programs)?;
        progress("starting etcd and kube-apiserver");
        plane.launch()?;
        Ok(plane)
    }
}

/// A control plane that runs; ended on drop.
#[derive(Debug)]
pub struct ControlPlane {
    site: Site,
    programs: Programs,
    authority: Authority,
    etcd: Mutex<Process>,
    api: Mutex<Process>,
    controllers: Mutex<Vec<Process>>,
}

impl ControlPlane {
    fn prepare(spec: &ControlPlaneSpec, site: Site, programs: Programs) -> Result<Self> {
        fs::create_dir_all(&site.dir).with_context(|| format!("cannot make {}", site.dir.display()))?;
        let authority = Authority::create(&site.dir.join("pki"))?;
        fs::write(site.dir.join("audit-policy.yaml"), audit::POLICY)
            .context("cannot write the audit policy")?;
        let etcd = etcd::process(&programs, &site.dir)?;
        let mut arguments = flags::api_server(&site, &authority, spec.controllers);
        arguments.extend_from_slice(&spec.api_flags);
        let log = site.dir.join("kube-apiserver.log");
        let api = Process::new("kube-apiserver", programs.path(Program::ApiServer)?, arguments, log);
        let mut plane = Self {
            site,
            programs,
            authority,
            etcd: Mutex::new(etcd),
            api: Mutex::new(api),
            controllers: Mutex::default(),
        };
        plane.issue()?;
        if spec.controllers {
            plane.controllers = Mutex::new(plane.describe_controllers()?);
        }
        Ok(plane)
    }

    /// The certificates that the processes are started with, and the administrator's kubeconfig.
    fn issue(&self) -> Result<()> {
        self.authority.store("apiserver", &self.authority.api_server(&self.addresses())?)?;
        let kubelets = self.authority.client("kube-apiserver-kubelet-client", Some("system:masters"))?;
        self.authority.store("kubelet-client", &kubelets)?;
        self.kubeconfig("admin", Some("system:masters")).map(drop)
    }

    fn describe_controllers(&self) -> Result<Vec<Process>> {
        let manager = self.kubeconfig("system:kube-controller-manager", None)?;
        let scheduler = self.kubeconfig("system:kube-scheduler", None)?;
        let describe = |name, program, arguments| -> Result<Process> {
            let log = self.site.dir.join(format!("{name}.log"));
            Ok(Process::new(name, self.programs.path(program)?, arguments, log))
        };
        Ok(vec![
            describe(
                "kube-controller-manager",
                Program::ControllerManager,
                flags::controller_manager(&manager, &self.authority),
            )?,
            describe("kube-scheduler", Program::Scheduler, flags::scheduler(&scheduler))?,
        ])
    }

    fn launch(&mut self) -> Result<()> {
        lock(&self.etcd).start(&self.site.netns)?;
        etcd::wait_ready(&mut lock(&self.etcd), &self.site.netns)?;
        self.start_api()?;
        for controller in lock(&self.controllers).iter_mut() {
            controller.start(&self.site.netns)?;
        }
        Ok(())
    }

    /// Its addresses, and the loopback's.
    fn addresses(&self) -> Vec<IpAddr> {
        let service =
            [IpAddr::from([10, 96, 0, 1]), IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
        [IpAddr::from(self.site.v4), self.site.v6.into()].into_iter().chain(service).collect()
    }

    /// The URL of the API server.
    pub fn url(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("https://{}:{PORT}", self.site.v4),
            Family::V6 => format!("https://[{}]:{PORT}", self.site.v6),
        }
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.site.netns
    }

    /// Where its files and logs are.
    pub fn dir(&self) -> &Path {
        &self.site.dir
    }

    /// The authority behind all certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The programs that it is made of.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Writes a kubeconfig with a fresh client certificate, and returns where it is. A node's user is
    /// `system:node:NAME`, its group `system:nodes`.
    pub fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let pair = self.authority.client(user, group)?;
        self.write_kubeconfig(&user.replace(':', "-"), Credential::Certificate(&pair))
    }

    /// Writes a kubeconfig with a token of a service account, which must exist, and returns where it is.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.token(namespace, name)?;
        self.write_kubeconfig(&format!("{namespace}-{name}"), Credential::Token(&token))
    }

    /// A token of a service account, good for an hour.
    pub fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace])?;
        Ok(token.trim().to_owned())
    }

    fn write_kubeconfig(&self, name: &str, credential: Credential<'_>) -> Result<PathBuf> {
        let path = self.site.dir.join(format!("{name}.kubeconfig"));
        let text = kubeconfig(&self.url(Family::V4), self.authority.certificate(), credential);
        super::pki::replace(&path, &text)?;
        Ok(path)
    }

    /// What `kubectl` prints, as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "")
    }

    /// Applies objects in YAML or JSON. By the client, because the server's own way refuses Nodes with two addresses of
    /// one type, which every dual-stack node has.
    pub fn apply(&self, objects: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], objects)
    }

    /// The same with a text on standard input.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.site.netns.command(self.programs.path(Program::Kubectl)?);
        command
            .arg("--kubeconfig")
            .arg(self.site.dir.join("admin.kubeconfig"))
            .arg("--cache-dir")
            .arg(self.site.dir.join("kubectl-cache"))
            .args(arguments);
        let output = shell::run(&mut command, input.as_bytes())?;
        if !output.status.success() {
            bail!("kubectl {} failed ({}):\n{}", arguments.join(" "), output.status, shell::said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the API server serves.
    pub fn wait_ready(&self) -> Result<()> {
        poll::eventually("kube-apiserver is ready", START, || {
            let ended = lock(&self.api).ensure_running();
            if let Err(ended) = ended {
                return Ok(Err(ended));
            }
            self.ask_ready().map(Ok)
        })?
    }

    /// By curl: it costs a hundredth of what starting kubectl does.
    fn ask_ready(&self) -> Result<()> {
        let mut curl = self.site.netns.command("curl");
        curl.args(["--fail", "--silent", "--show-error", "--max-time", "5", "--cacert"]);
        curl.arg(self.authority.certificate_file()).arg(format!("{}/readyz", self.url(Family::V4)));
        shell::text(&mut curl).map(drop)
    }

    /// The ends of all logs.
    pub fn diagnosis(&self) -> String {
        let mut text = lock(&self.etcd).log_tail();
        text.push_str(&lock(&self.api).log_tail());
        for controller in lock(&self.controllers).iter() {
            text.push_str(&controller.log_tail());
        }
        text
    }
}

/// A test that panicked must not keep the others from looking after the processes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What happens to an API server in its life: stops, crashes, pauses, new certificates, compaction; and what it was asked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ControlPlane, lock};
use crate::{
    cluster::{
        audit::{self, Request},
        etcd,
    },
    family::Family,
    poll, shell,
};

/// kube-apiserver looks at its certificate's files when they change, and once a minute.
const ROTATION: Duration = Duration::from_secs(75);

impl ControlPlane {
    /// Starts the API server and waits until it serves.
    pub fn start_api(&self) -> Result<()> {
        lock(&self.api).start(&self.site.netns)?;
        self.wait_ready()
    }

    /// Ends the API server in order; etcd goes on.
    pub fn stop_api(&self) -> Result<()> {
        lock(&self.api).stop()
    }

    /// Kills the API server by SIGKILL; etcd goes on.
    pub fn kill_api(&self) -> Result<()> {
        lock(&self.api).kill()
    }

    /// Holds the API server as it is: its connections stay open, and nobody answers.
    pub fn pause_api(&self) -> Result<()> {
        lock(&self.api).pause()
    }

    /// Lets it go on.
    pub fn resume_api(&self) -> Result<()> {
        lock(&self.api).resume()
    }

    /// Ends the API server and starts it again.
    pub fn restart_api(&self) -> Result<()> {
        self.stop_api()?;
        self.start_api()
    }

    /// Compacts etcd to its newest revision, which is returned. An API server goes on serving older ones to watchers from
    /// its own memory until it is started anew; after that it answers them with 410.
    pub fn compact(&self) -> Result<i64> {
        etcd::compact(&self.site.netns)
    }

    /// Gives the API server a new serving certificate of the same authority, and waits until it is shown to new connections.
    pub fn rotate_serving_certificate(&self) -> Result<()> {
        let pair = self.authority.api_server(&self.addresses())?;
        self.authority.store("apiserver", &pair)?;
        poll::eventually("kube-apiserver shows its new certificate", ROTATION, || {
            ensure!(self.shown_certificate()?.contains(&squeezed(&pair.certificate)), "it shows the old one");
            Ok(())
        })
    }

    fn shown_certificate(&self) -> Result<String> {
        let mut curl = self.site.netns.command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--write-out",
            "%{certs}",
            "--cacert",
        ]);
        curl.arg(self.authority.certificate_file()).arg(self.url(Family::V4));
        // Without a client certificate the answer is 403, after the server has shown its own.
        Ok(squeezed(&shell::text(&mut curl).context("cannot ask for the certificate")?))
    }

    /// Every request that the API server has answered since the cluster began.
    pub fn requests(&self) -> Result<Vec<Request>> {
        audit::read(&self.site.dir.join("audit.log"))
    }

    /// The requests of one program, by a part of its user agent.
    pub fn requests_of(&self, agent: &str) -> Result<Vec<Request>> {
        let requests = self.requests()?;
        Ok(requests.into_iter().filter(|request| request.agent.contains(agent)).collect())
    }
}

/// Without line ends, which differ between writers of PEM.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

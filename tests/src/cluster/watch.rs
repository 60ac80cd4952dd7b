//! Changes of objects as they happen, with when they were seen: what waiting by asking again would blur.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{ControlPlane, Program};

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// When it was read here.
    pub at: Instant,
    /// `ADDED`, `MODIFIED`, `DELETED`, …
    pub kind: String,
    /// The object after it.
    pub object: Value,
}

/// A watch that runs; ended on drop.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    changes: Receiver<Change>,
}

impl Watch {
    /// Watches pods of the default namespace by label (`app=web`), beginning with those that are there.
    pub fn pods(plane: &ControlPlane, selector: &str) -> Result<Self> {
        let selector = selector.replace('=', "%3D");
        Self::start(plane, &format!("/api/v1/namespaces/default/pods?watch=1&labelSelector={selector}"))
    }

    /// Watches what a URI of the API server says.
    pub fn start(plane: &ControlPlane, uri: &str) -> Result<Self> {
        let mut command = plane.netns().command(plane.programs().path(Program::Kubectl)?);
        command.env("KUBECONFIG", plane.dir().join("admin.kubeconfig")).args(["get", "--raw", uri]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start kubectl")?;
        let pipe = child.stdout.take().context("kubectl has no output")?;
        let (sender, changes) = channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let at = Instant::now();
                let Ok(mut event) = serde_json::from_str::<Value>(&line) else { continue };
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                if sender.send(Change { at, kind, object: event["object"].take() }).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, changes })
    }

    /// The next change.
    pub fn next(&self, within: Duration) -> Result<Change> {
        self.changes.recv_timeout(within).with_context(|| format!("no change within {within:?}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

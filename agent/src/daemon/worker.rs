//! The thread that owns the [`Datapath`]. BPF system calls block, and walking a large map takes milliseconds: neither may
//! hold up the runtime that answers the shim.

use std::{path::Path, sync::mpsc, thread};

use anyhow::Context;
use tokio::sync::oneshot;

use crate::datapath::{Datapath, DatapathError, Settings};

type Job = Box<dyn FnOnce(&mut Datapath) + Send>;

/// Sends work to the thread.
#[derive(Clone, Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
}

/// The thread is gone; the agent is ending.
#[derive(Debug, thiserror::Error)]
#[error("the datapath's thread has ended: restart the agent")]
pub struct WorkerGone;

impl Worker {
    /// Starts the thread, which opens the datapath; returns when that has succeeded or failed.
    pub async fn start(bpf_dir: &Path, settings: Settings) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, opening) = oneshot::channel::<Result<(), DatapathError>>();
        let bpf_dir = bpf_dir.to_owned();
        let run = move || {
            let mut datapath = match Datapath::open(&bpf_dir, &settings) {
                Ok(datapath) => datapath,
                // Whoever started this waits for the answer.
                Err(error) => return drop(opened.send(Err(error))),
            };
            let _ = opened.send(Ok(()));
            while let Ok(job) = queue.recv() {
                job(&mut datapath);
            }
        };
        thread::Builder::new()
            .name("datapath".into())
            .spawn(run)
            .context("cannot start the datapath's thread")?;
        opening.await.map_err(|_| WorkerGone)?.context("cannot open the datapath")?;
        Ok(Self { jobs })
    }

    /// Runs `job` after those sent before it.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Datapath) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |datapath| {
            // Nobody waits any more when a call's deadline passed; the work is done all the same.
            let _ = done.send(job(datapath));
        });
        self.jobs.send(job).map_err(|_| WorkerGone)?;
        outcome.await.map_err(|_| WorkerGone)
    }
}

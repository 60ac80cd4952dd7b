//! Work inside another network namespace.
//!
//! `setns` moves one thread. A thread that returned to a pool afterwards would do someone else's work in a pod's
//! namespace, so namespaces are entered only on threads of their own: [`OwnThread`] is the proof, and only
//! [`on_own_thread`] makes one. Its thread starts in the namespace of the thread that asked and ends with the work.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::NetlinkError;

/// Opens the namespace that `path` names, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
pub fn open(path: &Path) -> Result<OwnedFd, NetlinkError> {
    let opened = File::open(path);
    opened.map(Into::into).map_err(|source| NetlinkError::Netns {
        action: "open",
        path: Some(path.into()),
        source,
    })
}

/// The calling thread may change its network namespace: nobody uses it afterwards.
#[derive(Debug)]
pub struct OwnThread {
    /// Must stay on its thread.
    not_send: PhantomData<*const ()>,
}

impl OwnThread {
    /// Moves this thread into `netns`, for the rest of its life.
    pub fn enter(&self, netns: impl AsFd) -> Result<(), NetlinkError> {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| NetlinkError::Netns {
            action: "enter",
            path: None,
            source: io::Error::from(errno),
        })
    }
}

/// Runs `work` on a thread of its own and waits for it without blocking the runtime. `what` names the work in errors.
pub async fn on_own_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&OwnThread) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, NetlinkError> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("netns".into())
        // The work is a few frames deep; the default of 2 MiB would be mapped and unmapped for every pod.
        .stack_size(256 * 1024)
        .spawn(move || drop(done.send(work(&OwnThread { not_send: PhantomData }))))
        .map_err(|_| NetlinkError::Thread { what })?;
    result.await.map_err(|_| NetlinkError::Thread { what })?
}

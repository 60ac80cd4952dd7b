//! The agent's socket: calls of the shim and of operators, one JSON object a line.

mod calls;
mod endpoints;
mod error;
mod info;
mod locks;

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use hypha_cni::{protocol::SOCKET_NAME, wire::Lines};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::endpoints::{recover, replay};
use self::locks::Locks;
use crate::daemon::Agent;

/// How long a client may take to send its request, or to take its answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// Where an agent with this run directory listens.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET_NAME)
}

/// Starts to listen. Nobody is answered before [`serve`], but everybody can connect and wait.
pub fn bind(run_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = socket(run_dir);
    match fs::symlink_metadata(&path) {
        // The run directory is this agent's alone: whoever made the socket is gone.
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(_) => bail!("{} exists and is no socket: remove it", path.display()),
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot restrict {} to root", path.display()))?;
    Ok(listener)
}

/// Answers calls until `stop`, then lets those under way end.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>, stop: CancellationToken) {
    let locks = Arc::new(Locks::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&agent), Arc::clone(&locks), stop.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    // Gone before the last call ends: the shim queues deletes instead of connecting to somebody who does not answer.
    let _ = fs::remove_file(socket(&agent.config.run_dir));
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(mut stream: UnixStream, agent: Arc<Agent>, locks: Arc<Locks>, stop: CancellationToken) {
    let mut lines = Lines::default();
    loop {
        let request = tokio::select! {
            // A request that is complete is answered even when the agent is about to end.
            biased;
            line = timeout(CLIENT_PATIENCE, next_line(&stream, &mut lines)) => line,
            () = stop.cancelled() => return,
        };
        let line = match request {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => return debug!(%error, "a client's connection broke"),
        };
        // Once begun, a call goes to its end even when the client has gone: a retry then finds it done.
        let response = calls::answer(&agent, &locks, &line, lines.take_fd()).await;
        match timeout(CLIENT_PATIENCE, stream.write_all(&response)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%error, "a client went away before its answer"),
            Err(_) => return debug!("a client does not take its answer"),
        }
    }
}

/// `None` at the end of the stream.
async fn next_line(stream: &UnixStream, lines: &mut Lines) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(line) = lines.next_line() {
            return Ok(Some(line));
        }
        match stream.async_io(Interest::READABLE, || lines.fill(stream.as_fd())).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

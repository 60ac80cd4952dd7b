//! The network configuration that container runtimes find the shim by. Written once pods can be served; it stays when
//! the agent stops, because a runtime without it declares the node's network broken while nothing is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hypha_cni::protocol::{DEFAULT_SOCKET, SOCKET_NAME};
use serde_json::json;

/// The file's name: early in the alphabet, where runtimes pick the first.
pub const FILE_NAME: &str = "05-hypha.conflist";

/// What it is called while it is written: runtimes watch for *.conflist, *.conf and *.json.
const TEMPORARY: &str = ".05-hypha.tmp";

/// Why the configuration could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; check --cni-conf-dir", path.display())]
pub struct ConflistError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the configuration unless it is there already; tells whether it was written.
pub fn ensure(conf_dir: &Path, run_dir: &Path) -> Result<bool, ConflistError> {
    let path = conf_dir.join(FILE_NAME);
    let content = content(&run_dir.join(SOCKET_NAME));
    if fs::read_to_string(&path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    let temporary = conf_dir.join(TEMPORARY);
    let written = fs::create_dir_all(conf_dir)
        .and_then(|()| fs::write(&temporary, content))
        .and_then(|()| fs::rename(&temporary, &path));
    written.map(|()| true).map_err(|source| ConflistError { path, source })
}

/// Removes the configuration, and what a killed agent left of one; tells whether it was there.
pub fn remove(conf_dir: &Path) -> Result<bool, ConflistError> {
    remove_file(conf_dir.join(TEMPORARY))?;
    remove_file(conf_dir.join(FILE_NAME))
}

fn remove_file(path: PathBuf) -> Result<bool, ConflistError> {
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ConflistError { path, source }),
    }
}

/// `cniVersion` is what every runtime in use reads; those that know `cniVersions` take the newest both speak, and with
/// 1.1.0 they call GC and STATUS.
fn content(socket: &Path) -> String {
    let mut plugin = json!({ "type": "hypha-cni", "capabilities": { "portMappings": true } });
    if socket != Path::new(DEFAULT_SOCKET) {
        plugin["socket"] = json!(socket);
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "hypha",
        "plugins": [plugin],
    });
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_and_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let conf_dir = folder.path().join("net.d");
        let ensure = || ensure(&conf_dir, Path::new("/run/hypha")).unwrap();
        assert!(ensure());
        assert!(!ensure(), "it is there");
        fs::write(conf_dir.join(FILE_NAME), "{}").unwrap();
        assert!(ensure(), "somebody changed it");
        assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 1, "nothing else is left");
        fs::write(conf_dir.join(TEMPORARY), "{").unwrap();
        assert!(remove(&conf_dir).unwrap());
        assert_eq!(fs::read_dir(&conf_dir).unwrap().count(), 0, "what a killed agent left goes, too");
        assert!(!remove(&conf_dir).unwrap());
    }

    #[test]
    fn the_socket_is_named_only_where_the_shim_would_not_look() {
        let plain: serde_json::Value = serde_json::from_str(&content(Path::new(DEFAULT_SOCKET))).unwrap();
        let plugin = json!({ "type": "hypha-cni", "capabilities": { "portMappings": true } });
        assert_eq!(plain["plugins"], json!([plugin]));
        let other: serde_json::Value =
            serde_json::from_str(&content(Path::new("/run/b/hypha.sock"))).unwrap();
        assert_eq!(other["plugins"][0]["socket"], "/run/b/hypha.sock");
        assert_eq!(other["cniVersion"], "1.0.0");
    }
}

//! Running the plugin: a directory for each case, a builder for the invocation, and what came out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub const HYPHA_CNI: &str = env!("CARGO_BIN_EXE_hypha-cni");

pub const CONTAINER: &str = "c0ffee";

/// A case's directory.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        File::create(place.netns()).unwrap();
        fs::create_dir(place.plugins()).unwrap();
        place
    }

    /// Where the agent listens, in its run directory.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/hypha.sock")
    }

    /// The queue of deletes.
    pub fn queue(&self) -> PathBuf {
        self.dir.path().join("run/deletes")
    }

    /// Files in the queue of deletes.
    pub fn queued(&self) -> Vec<PathBuf> {
        fs::read_dir(self.queue())
            .map(|entries| entries.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default()
    }

    /// Stands in for the network namespace.
    pub fn netns(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// The inode of the stand-in: the descriptor that reaches the agent must have it.
    pub fn netns_inode(&self) -> u64 {
        fs::metadata(self.netns()).unwrap().st_ino()
    }

    /// A directory in `CNI_PATH`.
    pub fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    /// Any other file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts an executable shell script into `CNI_PATH`.
    pub fn script(&self, name: &str, body: &str) {
        let path = self.plugins().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The plugin called with `verb`, all variables set and a plain configuration of the newest version.
    pub fn plugin(&self, verb: &str) -> Plugin {
        let mut variables = BTreeMap::new();
        for (name, value) in [
            ("PATH", "/usr/bin:/bin".into()),
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", CONTAINER.into()),
            ("CNI_NETNS", self.netns().display().to_string()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", format!("{}:/usr/lib/cni", self.plugins().display())),
        ] {
            variables.insert(name.to_owned(), value);
        }
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "hypha-cni", "socket": self.socket(),
        });
        Plugin { variables, config, stdin: None }
    }
}

/// An invocation being prepared.
pub struct Plugin {
    variables: BTreeMap<String, String>,
    config: Value,
    stdin: Option<Vec<u8>>,
}

impl Plugin {
    /// Sets a key of the configuration.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// Removes a key of the configuration.
    pub fn without(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(key);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Removes a variable.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Replaces the configuration by bytes.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// The bytes that standard input will have.
    pub fn input(&self) -> Vec<u8> {
        self.stdin.clone().unwrap_or_else(|| self.config.to_string().into_bytes())
    }

    /// Runs it.
    pub fn run(self) -> Outcome {
        self.run_as(HYPHA_CNI)
    }

    /// Runs another plugin in its place.
    pub fn run_as(self, executable: &str) -> Outcome {
        let started = Instant::now();
        let mut child = Command::new(executable)
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may refuse its variables and end before it reads.
        let _ = child.stdin.take().unwrap().write_all(&self.input());
        let output = child.wait_with_output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            took: started.elapsed(),
        }
    }
}

/// What an invocation said.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// It succeeded and printed a result.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// It succeeded and printed nothing.
    #[track_caller]
    pub fn silent_success(&self) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{self:?}");
    }

    /// It failed with one error object, of code `code`, whose text contains all of `words`.
    #[track_caller]
    pub fn error(&self, code: u32, words: &[&str]) -> Value {
        assert_eq!(self.code, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(error["code"], code, "{error}");
        let text = format!("{} {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap());
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        assert!(error["cniVersion"].is_string(), "{error}");
        error
    }
}

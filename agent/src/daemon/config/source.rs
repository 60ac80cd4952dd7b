//! Which source of Kubernetes objects is meant: what was said, what was said beside it, and where the agent runs.

use std::{
    env,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::bail;
use serde::Deserialize;

use crate::source::kubernetes::{Access, access};

/// What can be said about the source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SourceName {
    /// The files of a directory.
    Dir(PathBuf),
    /// The API server.
    Kubernetes,
}

/// Where Kubernetes objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The files of a directory.
    Dir(PathBuf),
    /// The API server.
    Kubernetes(Access),
}

impl FromStr for SourceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err("it must be kubernetes or dir:PATH".to_owned()),
        }
    }
}

impl TryFrom<String> for SourceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|reason| format!("source {text:?}: {reason}"))
    }
}

/// What is said about the source and its server.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// `--source`.
    pub source: Option<SourceName>,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--kubernetes-api`.
    pub api: Option<String>,
}

/// What is found without being said.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The agent runs in a pod with a service account.
    pub in_cluster: bool,
    /// `KUBECONFIG`.
    pub kubeconfig: Option<PathBuf>,
}

impl Surroundings {
    /// Of this process.
    pub fn find() -> Self {
        // kubectl merges a list of files; whoever gives an agent several means the first that is there.
        let files = env::var_os("KUBECONFIG").unwrap_or_default();
        let mut files = env::split_paths(&files).filter(|file| !file.as_os_str().is_empty());
        let first = files.next();
        let kubeconfig =
            files.find(|file| file.exists()).filter(|_| !first.as_deref().is_some_and(Path::exists));
        Self { in_cluster: Access::is_in_cluster(), kubeconfig: kubeconfig.or(first) }
    }
}

impl Said {
    /// The source that is meant.
    ///
    /// # Errors
    /// When there is none, and when two things that were said contradict each other.
    pub fn resolve(self, found: Surroundings) -> anyhow::Result<Source> {
        let Self { source, kubeconfig, api } = self;
        let (kubeconfig, api) = (
            kubeconfig.filter(|file| !file.as_os_str().is_empty()),
            // A manifest may well have the key without a value.
            api.filter(|api| !api.is_empty()),
        );
        match source {
            Some(SourceName::Dir(path)) => match (kubeconfig, api) {
                (Some(_), _) => {
                    bail!("--kubeconfig has no meaning with --source dir:PATH: leave one of them out")
                }
                (_, Some(_)) => {
                    bail!("--kubernetes-api has no meaning with --source dir:PATH: leave one of them out")
                }
                (None, None) => Ok(Source::Dir(path)),
            },
            None if kubeconfig.is_none() && api.is_none() && !found.in_cluster => bail!(
                "no source of Kubernetes objects: give --source kubernetes with a --kubeconfig, or --source dir:PATH"
            ),
            Some(SourceName::Kubernetes) | None => access(kubeconfig, api, found).map(Source::Kubernetes),
        }
    }
}

fn access(kubeconfig: Option<PathBuf>, api: Option<String>, found: Surroundings) -> anyhow::Result<Access> {
    match (kubeconfig, api) {
        (Some(_), Some(_)) => bail!(
            "--kubernetes-api has no meaning with --kubeconfig, which names its server itself: leave one of them out"
        ),
        (Some(path), None) => Ok(Access::Kubeconfig(path)),
        (None, Some(api)) => {
            access::address(&api)?;
            Ok(Access::InCluster { api: Some(api) })
        }
        (None, None) => match found.kubeconfig {
            Some(path) => Ok(Access::Kubeconfig(path)),
            None if found.in_cluster => Ok(Access::InCluster { api: None }),
            None => bail!(
                "--source kubernetes needs credentials: run the agent in a pod with a service account, or give --kubeconfig FILE"
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(source: &str, kubeconfig: &str, api: &str, found: &Surroundings) -> anyhow::Result<Source> {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let said = Said {
            source: text(source).map(|source| source.parse().unwrap()),
            kubeconfig: text(kubeconfig).map(Into::into),
            api: Some(api.to_owned()),
        };
        said.resolve(found.clone())
    }

    fn in_cluster(api: Option<&str>) -> Source {
        Source::Kubernetes(Access::InCluster { api: api.map(str::to_owned) })
    }

    #[test]
    fn what_is_said_and_found_decides() {
        let nowhere = Surroundings::default();
        let pod = Surroundings { in_cluster: true, kubeconfig: None };
        let shell = Surroundings { in_cluster: false, kubeconfig: Some("/env".into()) };
        let file = |path: &str| Source::Kubernetes(Access::Kubeconfig(path.into()));
        for (what, source, kubeconfig, api, found, expected) in [
            ("a directory", "dir:/objects", "", "", &pod, Source::Dir("/objects".into())),
            ("a pod", "", "", "", &pod, in_cluster(None)),
            ("a pod, said", "kubernetes", "", "", &pod, in_cluster(None)),
            (
                "another address",
                "",
                "",
                "https://192.0.2.1:6443",
                &pod,
                in_cluster(Some("https://192.0.2.1:6443")),
            ),
            ("a file", "kubernetes", "/k", "", &nowhere, file("/k")),
            ("a file alone", "", "/k", "", &nowhere, file("/k")),
            ("a file in a pod", "kubernetes", "/k", "", &pod, file("/k")),
            ("the environment's", "kubernetes", "", "", &shell, file("/env")),
        ] {
            assert_eq!(resolve(source, kubeconfig, api, found).unwrap(), expected, "{what}");
        }
    }

    #[test]
    fn contradictions_and_gaps_are_named() {
        let (nowhere, pod) = (Surroundings::default(), Surroundings { in_cluster: true, kubeconfig: None });
        for (source, kubeconfig, api, found, expected) in [
            ("", "", "", &nowhere, "no source"),
            ("kubernetes", "", "", &nowhere, "needs credentials"),
            ("dir:/o", "/k", "", &pod, "--kubeconfig has no meaning"),
            ("dir:/o", "", "https://a", &pod, "--kubernetes-api has no meaning"),
            ("kubernetes", "/k", "https://a", &pod, "names its server itself"),
            ("kubernetes", "", "192.0.2.1:6443", &pod, "is no address of a server"),
            ("kubernetes", "", "ftp://a", &pod, "is no address of a server"),
        ] {
            let error = resolve(source, kubeconfig, api, found).unwrap_err().to_string();
            assert!(error.contains(expected), "{source} {kubeconfig} {api}: {error}");
        }
    }
}

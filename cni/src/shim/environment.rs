//! The parameters that a runtime passes in `CNI_*` variables.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::protocol::{Attachment, ErrorReply, PodName, code};

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// As written in `CNI_COMMAND`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// GC, STATUS and VERSION concern no single container.
    fn has_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    fn needs_netns(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

/// The variables of one invocation, checked for what its verb needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) verb: Verb,
    /// `CNI_CONTAINERID`; empty for verbs without a container.
    pub(super) container_id: String,
    /// `CNI_IFNAME`; empty for verbs without a container.
    pub(super) ifname: String,
    /// `CNI_NETNS`; a path for ADD and CHECK.
    pub(super) netns: Option<PathBuf>,
    /// `CNI_ARGS`, uninterpreted: only ADD reads it, so that a DEL never fails for it.
    pub(super) args: String,
    /// `CNI_PATH`, cut at its colons.
    pub(super) plugin_dirs: Vec<PathBuf>,
}

impl Environment {
    /// Reads the variables through `lookup`.
    pub(super) fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, ErrorReply> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| match lookup(name) {
            None => Ok(String::new()),
            Some(value) => value.into_string().map_err(|value| {
                invalid(format!("{name} is not UTF-8"), format!("its value is {}", value.display()))
            }),
        };
        let verb = verb(&text("CNI_COMMAND")?)?;
        let mut environment = Self {
            verb,
            container_id: String::new(),
            ifname: String::new(),
            netns: lookup("CNI_NETNS").map(PathBuf::from),
            args: lookup("CNI_ARGS").map(|args| args.to_string_lossy().into_owned()).unwrap_or_default(),
            plugin_dirs: lookup("CNI_PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
        };
        if verb.has_container() {
            environment.container_id = text("CNI_CONTAINERID")?;
            environment.ifname = text("CNI_IFNAME")?;
            environment.check()?;
        }
        Ok(environment)
    }

    /// The identity of the endpoint meant, in the network called `network`.
    pub(super) fn attachment(&self, network: &str) -> Attachment {
        Attachment {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
            network: network.to_owned(),
        }
    }

    fn check(&self) -> Result<(), ErrorReply> {
        let mut missing = Vec::new();
        for (name, absent) in [
            ("CNI_CONTAINERID", self.container_id.is_empty()),
            ("CNI_IFNAME", self.ifname.is_empty()),
            ("CNI_NETNS", self.verb.needs_netns() && self.netns.is_none()),
        ] {
            if absent {
                missing.push(name);
            }
        }
        if !missing.is_empty() {
            let names = missing.join(", ");
            return Err(invalid(format!("{names} missing"), format!("{} needs it", self.verb.as_str())));
        }
        if !is_name(&self.container_id) {
            return Err(invalid(
                format!("CNI_CONTAINERID {:?} is not a container ID", self.container_id),
                "it starts with a letter or digit, then come letters, digits, '_', '.' and '-'",
            ));
        }
        if !is_ifname(&self.ifname) {
            return Err(invalid(
                format!("CNI_IFNAME {:?} is not an interface name", self.ifname),
                "it has 1 to 15 bytes, no '/', ':' or white space, and is neither '.' nor '..'",
            ));
        }
        Ok(())
    }
}

fn invalid(msg: impl Into<String>, details: impl Into<String>) -> ErrorReply {
    ErrorReply::new(code::INVALID_ENVIRONMENT, msg, details)
}

fn verb(command: &str) -> Result<Verb, ErrorReply> {
    if command.is_empty() {
        return Err(invalid(
            "CNI_COMMAND missing",
            "hypha-cni is a CNI plugin: a container runtime starts it",
        ));
    }
    Verb::ALL.into_iter().find(|verb| verb.as_str() == command).ok_or_else(|| {
        let known = Verb::ALL.map(Verb::as_str).join(", ");
        invalid(format!("CNI_COMMAND {command:?} is unknown"), format!("known are {known}"))
    })
}

/// The specification's rule for container IDs and network names.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The kernel's rule for interface names.
fn is_ifname(text: &str) -> bool {
    (1..16).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.chars().any(|c| matches!(c, '/' | ':' | '\0') || c.is_whitespace())
}

/// Reads the pod's name out of `CNI_ARGS` (`KEY=VALUE;KEY=VALUE`).
///
/// Keys that mean nothing to the shim are an error unless `IgnoreUnknown` is set or `foreign_allowed` (a
/// delegated IPAM plugin gets the same variables and may know them).
pub(super) fn pod_name(args: &str, foreign_allowed: bool) -> Result<Option<PodName>, ErrorReply> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let mut unknown = Vec::new();
    let mut ignore_unknown = foreign_allowed;
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(
                format!("CNI_ARGS has {pair:?}, which is not KEY=VALUE"),
                format!("CNI_ARGS={args}"),
            ));
        };
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value),
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore_unknown |= matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
            _ => unknown.push(key),
        }
    }
    if !ignore_unknown && !unknown.is_empty() {
        return Err(invalid(
            format!("CNI_ARGS has unknown keys: {}", unknown.join(", ")),
            "add IgnoreUnknown=1 to have them ignored",
        ));
    }
    let owned = |text: &str| text.to_owned();
    Ok(namespace.zip(name).map(|(namespace, name)| PodName {
        namespace: owned(namespace),
        name: owned(name),
        uid: uid.filter(|uid| !uid.is_empty()).map(owned),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pod_needs_namespace_and_name() {
        let pod = |args| pod_name(args, false).unwrap();
        assert_eq!(pod(""), None);
        assert_eq!(pod("K8S_POD_NAME=web;IgnoreUnknown=1"), None);
        let expected = PodName { namespace: "shop".into(), name: "web".into(), uid: None };
        assert_eq!(pod("K8S_POD_UID=;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;"), Some(expected));
    }

    #[test]
    fn unknown_keys_are_refused_unless_somebody_may_know_them() {
        for (args, foreign_allowed, accepted) in [
            ("MAC=x", false, false),
            ("MAC=x;IgnoreUnknown=0", false, false),
            ("MAC=x;IgnoreUnknown=1", false, true),
            ("IgnoreUnknown=true;MAC=x", false, true),
            ("MAC=x", true, true),
        ] {
            assert_eq!(pod_name(args, foreign_allowed).is_ok(), accepted, "{args}");
        }
    }

    proptest! {
        #[test]
        fn any_variables_are_accepted_or_refused_as_invalid_environment(
            verb in "ADD|DEL|CHECK|GC|STATUS|VERSION|.{0,8}",
            id in ".{0,20}",
            ifname in ".{0,20}",
            args in ".{0,40}",
        ) {
            let value = |name: &str| match name {
                "CNI_COMMAND" => Some(verb.clone().into()),
                "CNI_CONTAINERID" => Some(id.clone().into()),
                "CNI_IFNAME" => Some(ifname.clone().into()),
                "CNI_NETNS" => Some("/n".into()),
                _ => None,
            };
            match Environment::read(value) {
                Ok(environment) if environment.verb.has_container() => {
                    prop_assert!(is_name(&environment.container_id));
                    prop_assert!(!environment.ifname.contains('/') && environment.ifname.len() < 16);
                }
                Ok(_) => {}
                Err(error) => prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT),
            }
            if let Err(error) = pod_name(&args, false) {
                prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
            }
        }

        #[test]
        fn a_pods_name_is_found_wherever_it_stands(
            namespace in "[a-z0-9-]{1,20}",
            name in "[a-z0-9.-]{1,20}",
            before in "([A-Z]{1,5}=[a-z=]{0,5};){0,3}",
            after in "(;[A-Z]{1,5}=[a-z=]{0,5}){0,3}",
        ) {
            let args = format!("{before}K8S_POD_NAME={name};K8S_POD_NAMESPACE={namespace}{after}");
            prop_assert_eq!(pod_name(&args, true).unwrap(), Some(PodName { namespace, name, uid: None }));
        }
    }
}

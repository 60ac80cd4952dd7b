//! The configuration file of an ip-masq-agent: which destinations outside see pods' own addresses.
//!
//! What the file says is what it says to the original and to others that read it: a file that is missing or empty, or
//! one without a list, stands for the well-known private and reserved ranges; link-local destinations are exempt unless
//! the file says otherwise. Keys of others are no mistake, but they are told, for they have no effect here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::duration::{self, DurationError};

/// What is not masqueraded when nobody says what: private ranges (RFC 1918), and those that RFCs have set apart.
const WELL_KNOWN: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];
const LINK_LOCAL: &str = "169.254.0.0/16";
const LINK_LOCAL_V6: &str = "fe80::/10";
/// How often the file is read when it does not say.
const RESYNC: Duration = Duration::from_secs(60);
/// And how often at most.
const SHORTEST_RESYNC: Duration = Duration::from_secs(1);

/// What one state of the file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqConfig {
    /// Destinations that are never masqueraded, those that are exempt by default included.
    pub exempt: BTreeSet<IpNet>,
    /// How often the file is read again without being told to.
    pub resync: Duration,
    /// Keys that have no effect here.
    pub ignored: Vec<String>,
}

/// Why a file says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasqConfigError {
    /// Not YAML, or a value of the wrong kind.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Counted from 1; 0 when the parser could not tell.
        line: u64,
        /// In the parser's words.
        reason: String,
    },
    /// An entry of the list.
    #[error("nonMasqueradeCIDRs: {text:?} is not a prefix such as 10.0.0.0/8 or fd00::/8")]
    Cidr {
        /// The entry.
        text: String,
    },
    /// The interval.
    #[error("resyncInterval: {0}")]
    Resync(#[from] DurationError),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    #[serde(rename = "nonMasqueradeCIDRs", deserialize_with = "present")]
    non_masquerade_cidrs: Option<Vec<String>>,
    masq_link_local: Option<bool>,
    #[serde(rename = "masqLinkLocalIPv6")]
    masq_link_local_v6: Option<bool>,
    resync_interval: Option<String>,
}

/// The keys of [`File`].
const KEYS: [&str; 4] = ["nonMasqueradeCIDRs", "masqLinkLocal", "masqLinkLocalIPv6", "resyncInterval"];

/// A list that is there but holds nothing, not even brackets, is empty, not absent.
fn present<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Some(Option::deserialize(list)?.unwrap_or_default()))
}

impl Default for MasqConfig {
    /// What holds without a file.
    fn default() -> Self {
        Self { exempt: exempt(None, false, false), resync: RESYNC, ignored: Vec::new() }
    }
}

impl MasqConfig {
    /// Reads the text of a file, YAML or JSON. Bits of a prefix beyond its length do not count.
    pub fn parse(text: &str) -> Result<Self, MasqConfigError> {
        let file: File = document(text)?.unwrap_or_default();
        let keys: Option<BTreeMap<String, serde_json::Value>> = document(text)?;
        let listed = file.non_masquerade_cidrs.as_deref().map(prefixes).transpose()?;
        let resync = file.resync_interval.as_deref().map(duration::parse).transpose()?;
        let (v4, v6) = (file.masq_link_local, file.masq_link_local_v6);
        Ok(Self {
            exempt: exempt(listed, v4.unwrap_or(false), v6.unwrap_or(false)),
            resync: resync.unwrap_or(RESYNC).max(SHORTEST_RESYNC),
            ignored: keys.into_iter().flatten().map(|(key, _)| key).filter(|key| !is_known(key)).collect(),
        })
    }
}

fn is_known(key: &str) -> bool {
    KEYS.contains(&key)
}

fn document<'a, T: Deserialize<'a>>(text: &'a str) -> Result<Option<T>, MasqConfigError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        MasqConfigError::Syntax { line, reason: error.without_snippet().to_string() }
    })
}

fn prefixes(list: &[String]) -> Result<BTreeSet<IpNet>, MasqConfigError> {
    let prefix = |text: &String| match text.trim().parse::<IpNet>() {
        Ok(prefix) => Ok(prefix.trunc()),
        Err(_) => Err(MasqConfigError::Cidr { text: text.clone() }),
    };
    list.iter().map(prefix).collect()
}

fn exempt(
    listed: Option<BTreeSet<IpNet>>,
    masq_link_local: bool,
    masq_link_local_v6: bool,
) -> BTreeSet<IpNet> {
    let constant = |text: &str| text.parse().ok();
    let mut exempt = listed.unwrap_or_else(|| WELL_KNOWN.into_iter().filter_map(constant).collect());
    exempt.extend((!masq_link_local).then_some(LINK_LOCAL).and_then(constant));
    exempt.extend((!masq_link_local_v6).then_some(LINK_LOCAL_V6).and_then(constant));
    exempt
}

#[cfg(test)]
mod tests;

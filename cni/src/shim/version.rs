//! The versions of the CNI specification that the shim speaks, and what differs between them.

use crate::protocol::{ErrorReply, code};

use super::environment::Verb;

/// A supported version; ordered from the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SpecVersion {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

/// All of them, oldest first.
pub(super) const SUPPORTED: [SpecVersion; 4] =
    [SpecVersion::V0_3_1, SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0];

impl SpecVersion {
    /// The newest.
    pub(super) const LATEST: Self = Self::V1_1_0;

    /// As written in `cniVersion`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads `cniVersion`.
    pub(super) fn parse(text: &str) -> Result<Self, ErrorReply> {
        SUPPORTED.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let supported = SUPPORTED.map(Self::as_str).join(", ");
            ErrorReply::new(
                code::INCOMPATIBLE_VERSION,
                format!("cniVersion {text:?} is not supported"),
                format!("set cniVersion in the network configuration to one of {supported}"),
            )
        })
    }

    /// Refuses verbs that came with a later version: their input is not defined for this one.
    pub(super) fn require(self, verb: Verb) -> Result<(), ErrorReply> {
        let since = match verb {
            Verb::Add | Verb::Del | Verb::Version => Self::V0_3_1,
            Verb::Check => Self::V0_4_0,
            Verb::Gc | Verb::Status => Self::V1_1_0,
        };
        if self >= since {
            return Ok(());
        }
        Err(ErrorReply::new(
            code::INCOMPATIBLE_VERSION,
            format!("cniVersion {} has no {}", self.as_str(), verb.as_str()),
            format!("{} came with version {}", verb.as_str(), since.as_str()),
        ))
    }

    /// Up to 0.4.0 every address of a result says `"version": "4"` or `"6"`.
    pub(super) fn ips_have_version(self) -> bool {
        self <= Self::V0_4_0
    }

    /// Since 1.1.0 an interface of a result may say its MTU.
    pub(super) fn interfaces_have_mtu(self) -> bool {
        self >= Self::V1_1_0
    }
}

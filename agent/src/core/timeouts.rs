//! How long flows may be idle, by class, as operators write it: `CLASS=DURATION`.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use datapath_ebpf::flow::Class;
use serde::{Deserialize, Deserializer};

use super::duration::{self, DurationError};

/// The shortest timeout: below it a flow could end between two packets.
const SHORTEST: u32 = 1;
/// The longest: well below half of what the programs' clock counts up to (52 days).
const LONGEST: u32 = 14 * 24 * 3600;

/// The timeout of every class in seconds, in the order of [`Class::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    seconds: [u32; Class::ALL.len()],
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { seconds: Class::ALL.map(Class::default_timeout) }
    }
}

impl Timeouts {
    /// The defaults with these set, in order: of two for one class the later holds.
    pub fn with(settings: impl IntoIterator<Item = ClassTimeout>) -> Self {
        let mut timeouts = Self::default();
        for ClassTimeout { class, seconds } in settings {
            timeouts.seconds[class as usize] = seconds;
        }
        timeouts
    }

    /// One class's, in seconds.
    pub fn of(&self, class: Class) -> u32 {
        self.seconds[class as usize]
    }

    /// All of them in seconds, in the order of [`Class::ALL`].
    pub fn seconds(&self) -> [u32; Class::ALL.len()] {
        self.seconds
    }
}

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassTimeout {
    class: Class,
    /// Whole: a part of a second is rounded up.
    seconds: u32,
}

/// Why a text is no setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutError {
    /// There is no equals sign.
    #[error("{0:?}: it must be CLASS=DURATION, such as udp-stream=3m")]
    Form(String),
    /// No such class.
    #[error("{name:?} is no class of flows: there are {}", Class::ALL.map(Class::name).join(", "))]
    Class {
        /// What was written instead.
        name: String,
    },
    /// The right-hand side.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// Too short or too long.
    #[error("{class}={text}: it must be from 1s to 336h")]
    Range {
        /// The class's name.
        class: &'static str,
        /// What was written.
        text: String,
    },
}

impl ClassTimeout {
    fn new(class: &str, text: &str) -> Result<Self, TimeoutError> {
        let known = Class::ALL.into_iter().find(|known| known.name() == class);
        let class = known.ok_or_else(|| TimeoutError::Class { name: class.to_owned() })?;
        let seconds = in_seconds(duration::parse(text)?);
        let range = || TimeoutError::Range { class: class.name(), text: text.to_owned() };
        Ok(Self { class, seconds: seconds.ok_or_else(range)? })
    }
}

fn in_seconds(duration: Duration) -> Option<u32> {
    let up = u64::from(duration.subsec_nanos() > 0);
    u32::try_from(duration.as_secs() + up).ok().filter(|seconds| (SHORTEST..=LONGEST).contains(seconds))
}

impl FromStr for ClassTimeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        let (class, duration) = text.split_once('=').ok_or_else(|| TimeoutError::Form(text.to_owned()))?;
        Self::new(class.trim(), duration)
    }
}

/// Reads the map that the configuration file has: classes and durations.
pub fn from_map<'de, D: Deserializer<'de>>(map: D) -> Result<Vec<ClassTimeout>, D::Error> {
    let map = BTreeMap::<String, String>::deserialize(map)?;
    let settings = map.iter().map(|(class, duration)| ClassTimeout::new(class, duration));
    settings.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(settings: &[&str]) -> Result<Timeouts, TimeoutError> {
        let settings = settings.iter().map(|text| text.parse());
        Ok(Timeouts::with(settings.collect::<Result<Vec<_>, _>>()?))
    }

    #[test]
    fn what_is_not_set_keeps_its_default() {
        assert_eq!(Timeouts::default().seconds(), [60, 7440, 30, 30, 180, 30, 600]);
        let set = with(&["tcp-established=2h", "icmp = 5s", "udp-new=1m30s", "icmp=7s"]).unwrap();
        assert_eq!(set.seconds(), [60, 7200, 30, 90, 180, 7, 600]);
        assert_eq!((set.of(Class::TcpEstablished), set.of(Class::Other)), (7200, 600));
    }

    #[test]
    fn every_class_can_be_set() {
        for class in Class::ALL {
            let set = with(&[&format!("{}=77s", class.name())]).unwrap();
            for other in Class::ALL {
                let expected = if other == class { 77 } else { Class::default_timeout(other) };
                assert_eq!(set.of(other), expected, "{} set, {} asked", class.name(), other.name());
            }
        }
    }

    #[test]
    fn parts_of_a_second_are_rounded_up_and_the_bounds_hold() {
        for (text, expected) in
            [("other=1ms", 1), ("other=1500ms", 2), ("other=1s", 1), ("other=336h", LONGEST)]
        {
            assert_eq!(with(&[text]).unwrap().of(Class::Other), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("udp-stream", "CLASS=DURATION"),
            ("tcp=5s", "tcp-established, tcp-closing"),
            ("icmp=5", "1m30s"),
            ("icmp=0s", "icmp=0s: it must be from 1s to 336h"),
            ("icmp=337h", "from 1s to 336h"),
            ("icmp=999999h", "from 1s to 336h"),
        ] {
            let error = with(&[text]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

//! Short RCU grace periods while pods are wired or unwired.
//!
//! The kernel waits for one whenever a program is attached by TCX, with its lock on all network configuration held, and
//! for several when a veth goes. An ordinary one takes 10 to 15 ms, which makes two of them nearly all of an ADD's time;
//! an expedited one takes less than a tenth of a millisecond, for an interrupt to each busy CPU. The kernel's switch is
//! for the whole machine, so it is on only while calls are under way, and left alone when somebody else has set it.
//! Machines whose CPUs must not be interrupted have `rcu_normal` set, which the kernel gives precedence.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::{info, warn};

/// The kernel's switch: `0` or `1`.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// Turns the switch on for as long as anybody needs it.
#[derive(Debug)]
pub struct Expedite {
    switch: PathBuf,
    /// Exists while the switch is on by our doing, so that the agent after one that was killed turns it off.
    marker: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    enabled: bool,
    calls: usize,
    /// Whether it was us who turned the switch on.
    ours: bool,
}

/// Grace periods are short while this exists.
#[derive(Debug)]
pub struct Expedited<'a>(&'a Expedite);

impl Expedite {
    /// Turns the switch off when an earlier agent with this run directory was killed before it could.
    pub fn new(run_dir: &Path, enabled: bool) -> Self {
        Self::at(SWITCH.into(), run_dir.join("rcu-expedited"), enabled)
    }

    fn at(switch: PathBuf, marker: PathBuf, enabled: bool) -> Self {
        let state = Mutex::new(State { enabled, calls: 0, ours: false });
        let expedite = Self { switch, marker, state };
        if expedite.marker.exists() {
            info!(switch = %expedite.switch.display(), "turning off what an earlier agent left on");
            expedite.turn_off();
        }
        expedite
    }

    /// From now until the value is dropped.
    pub fn begin(&self) -> Expedited<'_> {
        let mut state = self.state();
        state.calls += 1;
        if state.calls == 1 && state.enabled {
            match self.turn_on() {
                Ok(ours) => state.ours = ours,
                Err(error) => {
                    warn!(switch = %self.switch.display(), %error, "cannot shorten grace periods: ADDs take longer");
                    state.enabled = false;
                }
            }
        }
        drop(state);
        Expedited(self)
    }

    /// False when it was on already.
    fn turn_on(&self) -> io::Result<bool> {
        if fs::read_to_string(&self.switch)?.trim() != "0" {
            return Ok(false);
        }
        fs::write(&self.marker, [])?;
        let written = fs::write(&self.switch, "1");
        if written.is_err() {
            let _ = fs::remove_file(&self.marker);
        }
        written.map(|()| true)
    }

    fn turn_off(&self) {
        let off = fs::write(&self.switch, "0").and_then(|()| fs::remove_file(&self.marker));
        if let Err(error) = off {
            warn!(switch = %self.switch.display(), %error, "cannot restore ordinary grace periods");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        if state.calls == 0 && std::mem::take(&mut state.ours) {
            self.0.turn_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new(switch: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("switch"), switch).unwrap();
            Self { folder }
        }

        fn start(&self, enabled: bool) -> Expedite {
            let path = self.folder.path();
            Expedite::at(path.join("switch"), path.join("marker"), enabled)
        }

        fn switch(&self) -> String {
            fs::read_to_string(self.folder.path().join("switch")).unwrap()
        }
    }

    #[test]
    fn the_switch_is_on_from_the_first_call_to_the_last() {
        let fixture = Fixture::new("0\n");
        let expedite = fixture.start(true);
        let first = expedite.begin();
        let second = expedite.begin();
        drop(first);
        assert_eq!(fixture.switch(), "1");
        drop(second);
        assert_eq!(fixture.switch(), "0");
        assert_eq!(fs::read_dir(fixture.folder.path()).unwrap().count(), 1, "no marker is left");
    }

    #[test]
    fn what_somebody_else_has_set_stays() {
        let fixture = Fixture::new("1\n");
        drop(fixture.start(true).begin());
        assert_eq!(fixture.switch(), "1\n");
    }

    #[test]
    fn the_next_agent_turns_off_what_a_killed_one_left_on() {
        let fixture = Fixture::new("0\n");
        let killed = fixture.start(true);
        std::mem::forget(killed.begin());
        assert_eq!(fixture.switch(), "1");
        fixture.start(true);
        assert_eq!(fixture.switch(), "0");
    }

    #[test]
    fn without_leave_or_without_a_switch_nothing_is_touched() {
        let fixture = Fixture::new("0\n");
        drop(fixture.start(false).begin());
        assert_eq!(fixture.switch(), "0\n");
        fs::remove_file(fixture.folder.path().join("switch")).unwrap();
        drop(fixture.start(true).begin());
        assert_eq!(fs::read_dir(fixture.folder.path()).unwrap().count(), 0);
    }
}

//! How a scenario becomes a test.

use anyhow::Result;
use libtest_mimic::{Completion, Failed, Trial};
use nix::unistd::geteuid;

/// A test that needs root, and is skipped without.
pub fn trial(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root"));
        }
        run().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

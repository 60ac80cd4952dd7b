//! Before the first pass: waiting for the source.

use std::time::Duration;

use tokio::time::interval;

use super::Reconciler;
use crate::daemon::agent::View;

/// How often operators are told anew what is waited for.
const WAITING: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Takes what the source says until all objects are known. Nothing is compared before: what is not known yet would be
    /// taken for gone.
    pub(super) async fn learn(&mut self) {
        let mut tick = interval(WAITING);
        while !self.agent.index().is_complete() {
            tokio::select! {
                Some(event) = self.inputs.events.recv() => drop(self.take(event)),
                _ = tick.tick() => self.tell_waiting(),
            }
        }
    }

    fn tell_waiting(&self) {
        let missing: Vec<_> = self.agent.index().missing().map(|kind| format!("{kind} objects")).collect();
        let source = self.agent.source.snapshot();
        let trouble = source.trouble().map_or_else(String::new, |trouble| format!("; {trouble}"));
        let (missing, server) = (missing.join(" and "), &source.server);
        let reason = format!("waiting for the {missing} of {server}{trouble}");
        self.agent.set_view(View { not_ready: Some(reason), ..self.agent.view() });
    }
}

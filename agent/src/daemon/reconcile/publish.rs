//! What others see of a pass: calls the node as it is now, runtimes the agent.

use tracing::{info, warn};

use super::{PassError, Reconciler};
use crate::{
    core::{
        choice::choices,
        desired::{node_address, pod_mtu},
        facts::Facts,
    },
    daemon::{
        agent::View,
        conflist::{self, ConflistError},
    },
};

impl Reconciler {
    fn view(&self, facts: &Facts) -> View {
        let index = self.agent.index();
        let nodes = &index.nodes;
        let own = nodes.get(&facts.node_name);
        let pod_cidrs = own.map(|own| own.pod_cidrs.clone()).unwrap_or_default();
        let no_cidrs =
            || format!("no Node object named {} with spec.podCIDRs has been seen", facts.node_name);
        View {
            not_ready: pod_cidrs.is_empty().then(no_cidrs),
            mtu: pod_mtu(facts, nodes),
            node_v4: node_address(facts, nodes, true),
            node_v6: node_address(facts, nodes, false),
            nodes: nodes.len(),
            pod_cidrs,
            uplinks: facts.uplinks.iter().map(|uplink| uplink.name.clone()).collect(),
            choices: choices(facts),
            masq_file: self.inputs.masq_file.as_ref().map(|file| file.borrow().clone()),
        }
    }

    /// Lets calls see the node as it is now, and runtimes see the agent. An agent that no runtime can find does not become
    /// ready; one that was ready stays so, whatever happens to the file that it is found by.
    pub(super) fn publish(&self, facts: &Facts) -> Result<(), PassError> {
        let mut view = self.view(facts);
        self.agent.ledger().set_cidrs(&view.pod_cidrs);
        let before = self.agent.view();
        let ensured = if view.not_ready.is_none() { self.ensure_conflist() } else { Ok(()) };
        if let (Err(error), Some(_)) = (&ensured, before.not_ready) {
            view.not_ready = Some(error.to_string());
        }
        let reason = view.not_ready.clone();
        let before = self.agent.set_view(view);
        match (before.not_ready.is_none(), reason) {
            (false, None) => info!("ready: pods can be added"),
            (true, Some(reason)) => warn!("pods can no longer be added: {reason}"),
            _ => {}
        }
        Ok(ensured?)
    }

    fn ensure_conflist(&self) -> Result<(), ConflistError> {
        let config = &self.agent.config;
        if conflist::ensure(&config.cni_conf_dir, &config.run_dir)? {
            info!(directory = %config.cni_conf_dir.display(), file = conflist::FILE_NAME, "wrote the CNI configuration");
        }
        Ok(())
    }
}

//! The demo: two nodes and an outside host, pods, real traffic, and a report that a newcomer understands.

mod maps;
mod report;
mod rows;

use anyhow::{Context, Result, anyhow};

pub use maps::MapsReport;
pub use report::{hints, json, text};
pub use rows::{Measured, Row};

use crate::{
    family::Routing,
    lab::{Lab, LabSpec},
    node::Node,
    pod::Pod,
    registry,
};

/// What the names of demo labs start with.
const PREFIX: &str = "demo";

/// One routing tried.
#[derive(Debug)]
pub struct Demo {
    /// How the nodes were connected.
    pub routing: Routing,
    /// What was tried, and how it went.
    pub rows: Vec<Row>,
    /// What the first node's maps held afterwards.
    pub maps: MapsReport,
    /// The network, still up.
    pub stage: Stage,
}

impl Demo {
    /// Whether everything worked.
    pub fn is_ok(&self) -> bool {
        self.rows.iter().all(Row::is_ok)
    }
}

/// The network and its pods; gone when dropped.
#[derive(Debug)]
pub struct Stage {
    /// Two pods on the first node, one on the second.
    pub pods: [Pod; 3],
    /// Nodes, gateway and world.
    pub lab: Lab,
}

impl Stage {
    /// Leaves everything up when the process ends.
    pub fn keep(self) -> Result<String> {
        let tag = self.lab.keep()?;
        // Their drop would remove the namespaces.
        std::mem::forget(self.pods);
        Ok(tag)
    }
}

/// Builds the network, tries everything and looks into the maps. `progress` is told what is being done.
pub fn run(routing: Routing, progress: &dyn Fn(&str)) -> Result<Demo> {
    progress(&format!(
        "{routing} routing: two nodes, a gateway and the world, each in a namespace; starting agents"
    ));
    let lab = LabSpec::nodes(2, routing).prefix(PREFIX).build()?;
    run_on(lab, progress)
}

fn run_on(lab: Lab, progress: &dyn Fn(&str)) -> Result<Demo> {
    let routing = lab.routing();
    progress(&format!("{routing} routing: adding pods through hypha-cni"));
    let outcome = add_pods(&lab);
    let pods = outcome.map_err(|error| anyhow!("{error:#}\n{}", lab.diagnosis()))?;
    let rows = rows::measure(&lab, &pods, progress);
    progress(&format!("{routing} routing: looking into the maps"));
    let maps = MapsReport::read(lab.node(0)).context("cannot read the maps")?;
    Ok(Demo { routing, rows, maps, stage: Stage { pods, lab } })
}

fn add_pods(lab: &Lab) -> Result<[Pod; 3]> {
    let add = |index: usize, name: &str| Node::add_pod(lab.node(index), name);
    Ok([add(0, "pod-a")?, add(0, "pod-b")?, add(1, "pod-c")?])
}

/// Removes the demos that were kept; returns their tags.
pub fn remove_kept() -> Result<Vec<String>> {
    registry::erase_kept(PREFIX)
}

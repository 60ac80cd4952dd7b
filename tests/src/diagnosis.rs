//! What an engineer would look at first when a scenario fails on a machine that is gone.

use std::{fmt::Write, sync::Arc};

use anyhow::Result;

use crate::{agent, maps::Maps, node::Node, shell, station::Station};

/// The state of the nodes: the log's end, addresses, routes, neighbours, and what the maps hold.
pub fn of(nodes: &[Arc<Node>]) -> String {
    let mut text = String::new();
    for node in nodes {
        let _infallible = writeln!(text, "\n======== {} ========", node.name());
        section(&mut text, "agent log", Ok(agent::tail(&node.agent_log())));
        for arguments in ["-br address", "route", "-6 route", "neighbour"] {
            section(&mut text, &format!("ip {arguments}"), shell::ip(node.netns(), arguments));
        }
        let maps = Maps::of(node.bpf_dir());
        section(&mut text, "counters", counters(&maps));
        section(&mut text, "endpoints", maps.endpoints().map(|entries| lines(entries.iter())));
        section(&mut text, "routes", maps.routes().map(|entries| lines(entries.iter())));
        section(&mut text, "conntrack", maps.conntrack().map(|entries| lines(entries.iter().take(20))));
        section(&mut text, "nat", maps.nat().map(|entries| lines(entries.iter().take(20))));
    }
    text
}

fn section(text: &mut String, title: &str, body: Result<String>) {
    let body = body.unwrap_or_else(|error| format!("cannot tell: {error:#}"));
    let _infallible = writeln!(text, "---- {title}\n{}", body.trim_end());
}

fn counters(maps: &Maps<'_>) -> Result<String> {
    let mut text = String::new();
    for counted in maps.counters()? {
        let mark = if counted.dropped { "DROP " } else { "" };
        let (program, outcome, counter) = (counted.program.name(), counted.outcome, counted.counter);
        writeln!(
            text,
            "{program:13} {mark}{outcome:20} {:8} packets {:12} bytes",
            counter.packets, counter.bytes
        )?;
    }
    Ok(text)
}

fn lines<T: std::fmt::Debug>(entries: impl Iterator<Item = T>) -> String {
    entries.map(|entry| format!("{entry:?}\n")).collect()
}

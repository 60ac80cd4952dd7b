//! The demo's report: tables for people, JSON for programs.

use std::fmt::Write;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Demo, MapsReport, Measured, Row};
use crate::{binaries::Binaries, station::Station};

/// Everything as text.
pub fn text(demo: &Demo) -> String {
    let mut text = format!("\n{} routing\n\n{}\n", demo.routing, rows(&demo.rows));
    for row in &demo.rows {
        for (family, outcome) in ["IPv4", "IPv6"].into_iter().zip(&row.families) {
            if let Err(error) = outcome {
                let _infallible = writeln!(text, "FAILED {} to {}, {family}: {error:#}", row.from, row.to);
            }
        }
    }
    if !demo.is_ok() {
        text += &demo.stage.lab.diagnosis();
    }
    text + &maps(&demo.maps)
}

fn rows(rows: &[Row]) -> String {
    let mut table =
        table(["from", "to", "path", "IPv4", "IPv6", "latency v4 / v6", "throughput v4 / v6", "seen as"]);
    for row in rows {
        let [v4, v6] = &row.families;
        let works = |outcome: &Result<Measured>| if outcome.is_ok() { "ok" } else { "FAILED" }.to_owned();
        table.add_row([
            row.from.clone(),
            row.to.clone(),
            row.path.to_owned(),
            works(v4),
            works(v6),
            both(row, |measured| Some(format!("{:.0}", measured.latency.as_secs_f64() * 1e6)), "µs"),
            both(row, |measured| measured.gbits.map(|gbits| format!("{gbits:.1}")), "Gbit/s"),
            v4.as_ref().map_or_else(|_| String::new(), |measured| measured.seen_as.to_string()),
        ]);
    }
    for column in [5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table)
}

/// A table's text without the blanks that fill up its last column.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The values of both families in one cell, IPv4 first; empty where nothing was measured.
fn both(row: &Row, value: impl Fn(&Measured) -> Option<String>, unit: &str) -> String {
    let values = row.families.each_ref().map(|outcome| outcome.as_ref().ok().and_then(&value));
    match values {
        [None, None] => String::new(),
        [v4, v6] => format!("{} / {} {unit}", v4.unwrap_or("-".into()), v6.unwrap_or("-".into())),
    }
}

fn maps(maps: &MapsReport) -> String {
    let mut text =
        String::from("\nnode1's maps (bpftool shows them as well; docs/maps.md explains them)\n\n");
    let mut entries = table(["map", "entry", "leads to"]);
    for (address, place) in &maps.endpoints {
        entries.add_row(["endpoints", &address.to_string(), place]);
    }
    for (prefix, place) in &maps.routes {
        entries.add_row(["routes", prefix, place]);
    }
    entries.add_row([
        "conntrack",
        &format!("{} flows", maps.conntrack),
        "sources that were replaced on the way out",
    ]);
    entries.add_row(["nat", &format!("{} flows", maps.nat), "where replies from outside belong"]);
    let mut counters = table(["program", "what became of packets", "packets", "bytes", "that is"]);
    for counted in &maps.counters {
        let outcome =
            if counted.dropped { format!("DROPPED: {}", counted.outcome) } else { counted.outcome.into() };
        let (packets, bytes) = (counted.counter.packets.to_string(), counted.counter.bytes.to_string());
        counters.add_row([counted.program.name(), &outcome, &packets, &bytes, counted.meaning]);
    }
    for column in [2, 3] {
        if let Some(column) = counters.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    text += &format!("{}\n\n{}\n", trimmed(&entries), trimmed(&counters));
    text
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

/// Everything as JSON.
pub fn json(demo: &Demo) -> Value {
    let family = |outcome: &Result<Measured>| match outcome {
        Ok(measured) => json!({
            "ok": true,
            "latency_us": measured.latency.as_secs_f64() * 1e6,
            "throughput_gbits": measured.gbits,
            "seen_as": measured.seen_as,
        }),
        Err(error) => json!({ "ok": false, "error": format!("{error:#}") }),
    };
    let rows = demo.rows.iter().map(|row| {
        let [v4, v6] = row.families.each_ref().map(family);
        json!({ "from": row.from, "to": row.to, "path": row.path, "ok": row.is_ok(), "ipv4": v4, "ipv6": v6 })
    });
    let counters = demo.maps.counters.iter().map(|counted| {
        json!({
            "program": counted.program.name(),
            "outcome": counted.outcome,
            "dropped": counted.dropped,
            "packets": counted.counter.packets,
            "bytes": counted.counter.bytes,
        })
    });
    json!({
        "routing": demo.routing.name(),
        "ok": demo.is_ok(),
        "rows": rows.collect::<Vec<_>>(),
        "maps": {
            "endpoints": demo.maps.endpoints.iter().map(|(ip, to)| json!({ "address": ip, "to": to })).collect::<Vec<_>>(),
            "routes": demo.maps.routes.iter().map(|(net, to)| json!({ "prefix": net, "to": to })).collect::<Vec<_>>(),
            "conntrack": demo.maps.conntrack,
            "nat": demo.maps.nat,
            "counters": counters.collect::<Vec<_>>(),
        },
    })
}

/// What one can do with a demo that stays up, to be copied and pasted.
pub fn hints(demo: &Demo) -> Result<String> {
    let lab = &demo.stage.lab;
    let node = lab.node(0);
    let [a, _, c] = &demo.stage.pods;
    let hypha = Binaries::find()?.hypha;
    let enter = |station: &dyn Station| format!("nsenter --net={}", station.netns().path().display());
    let mut text = format!("\nThe {} network stays up. Try:\n", demo.routing);
    let lines = [
        ("ping from a pod to the other node's", format!("{} ping {}", enter(a), c.v4())),
        ("see the way to the world", format!("{} traceroute -n {}", enter(a), lab.world().v6())),
        ("look at a map", format!("bpftool map dump pinned {}/endpoints", node.bpf_dir().display())),
        ("ask the agent", format!("{} status --run-dir {}", hypha.display(), node.run_dir().display())),
        ("ask the kernel", format!("{} metrics --bpf-dir {}", hypha.display(), node.bpf_dir().display())),
        ("read its log", format!("less {}", node.agent_log().display())),
        (
            "see what the agents are told; edit it and watch them follow",
            format!("ls {}", lab.source_dir().display()),
        ),
        ("take everything down", "cargo xtask demo --down".to_owned()),
    ];
    for (what, line) in lines {
        let _infallible = writeln!(text, "  # {what}\n  {line}");
    }
    Ok(text)
}

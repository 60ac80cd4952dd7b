//! `hypha status`.

use anyhow::bail;
use hypha_cni::protocol::{Call, Info, Response};

use super::{
    client::ClientArgs,
    output::{Format, print_json, print_table},
};

/// Prints what the agent says about itself; fails when it cannot add pods.
pub fn run(args: &ClientArgs) -> anyhow::Result<()> {
    let Response::Info(info) = args.ask(Call::Info)? else {
        bail!("the agent gave no answer to the question")
    };
    match args.output {
        Format::Json => print_json(&info)?,
        Format::Table => print_table(&["AGENT", ""], rows(&info)),
    }
    if !info.ready {
        // Asked again for the reason.
        args.ask(Call::Status)?;
    }
    Ok(())
}

fn rows(info: &Info) -> Vec<Vec<String>> {
    let list = |items: Vec<String>| if items.is_empty() { "none".into() } else { items.join(", ") };
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    vec![
        row("node", info.node.clone()),
        row("version", info.agent_version.clone()),
        row("process", info.pid.to_string()),
        row("ready", if info.ready { "yes" } else { "no" }.into()),
        row("routing", info.routing.clone()),
        row("uplinks", list(info.uplinks.clone())),
        row("pod CIDRs", list(info.pod_cidrs.iter().map(ToString::to_string).collect())),
        row("endpoints", info.endpoints.to_string()),
        row("nodes", info.nodes.to_string()),
    ]
}

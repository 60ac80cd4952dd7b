//! `hypha status`.

use std::net::IpAddr;

use anyhow::bail;
use hypha_cni::protocol::{Call, Info, MasqFileInfo, Response};

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
        Format::Table => {
            print_table(&["AGENT", ""], rows(&info));
            if !info.masquerade.is_empty() {
                println!();
                print_table(&["UPLINK", "DESTINATIONS", "MASQUERADED AS", "WHY"], choices(&info));
            }
        }
    }
    if !info.ready {
        // Asked again for the reason.
        args.ask(Call::Status)?;
    }
    Ok(())
}

fn rows(info: &Info) -> Vec<Vec<String>> {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("node", info.node.clone()),
        row("version", info.agent_version.clone()),
        row("process", info.pid.to_string()),
        row("ready", if info.ready { "yes" } else { "no" }.into()),
        row("routing", info.routing.clone()),
        row("uplinks", list(&info.uplinks)),
        row("pod CIDRs", list(&info.pod_cidrs)),
        row("endpoints", info.endpoints.to_string()),
        row("nodes", info.nodes.to_string()),
    ];
    rows.extend(info.masq_file.iter().flat_map(|file| {
        let exempt = row("not masqueraded", list(&file.exempt));
        [row("by", origin(file)), exempt]
    }));
    rows
}

/// Where the exempt prefixes come from, and what is wrong with that.
fn origin(file: &MasqFileInfo) -> String {
    let path = file.path.display();
    match &file.error {
        Some(error) => format!("{path}, as it was before it broke: {error}"),
        None if !file.found => format!("default, without {path}"),
        None if file.ignored.is_empty() => path.to_string(),
        None => format!("{path}, without {}, which have no effect", file.ignored.join(", ")),
    }
}

fn choices(info: &Info) -> Vec<Vec<String>> {
    let text = |source: Option<IpAddr>| source.map_or_else(|| "-".to_owned(), |source| source.to_string());
    let choices = info.masquerade.iter();
    choices
        .map(|it| vec![it.device.clone(), it.destinations.to_string(), text(it.source), it.reason.clone()])
        .collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(found: bool, error: Option<&str>, ignored: &[&str]) -> MasqFileInfo {
        MasqFileInfo {
            path: "/etc/config/masq".into(),
            found,
            error: error.map(str::to_owned),
            exempt: Vec::new(),
            ignored: ignored.iter().map(|&key| key.to_owned()).collect(),
        }
    }

    #[test]
    fn the_origin_of_exempt_prefixes_is_told() {
        for (file, expected) in [
            (file(true, None, &[]), "/etc/config/masq"),
            (file(false, None, &[]), "default, without /etc/config/masq"),
            (file(true, Some("line 1: no"), &[]), "/etc/config/masq, as it was before it broke: line 1: no"),
            (file(true, None, &["a", "b"]), "/etc/config/masq, without a, b, which have no effect"),
        ] {
            assert_eq!(origin(&file), expected);
        }
    }
}

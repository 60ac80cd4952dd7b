//! `hypha status`.

use std::net::IpAddr;

use anyhow::bail;
use hypha_cni::protocol::{Call, Info, MasqFileInfo, Response, WatchInfo};

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
            if let Some(source) = &info.source {
                println!();
                let header = ["OBJECTS", "KNOWN", "CONNECTED", "HEARD", "LAST EVENT", "TROUBLE"];
                print_table(&header, source.watches.iter().map(watch));
            }
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
    rows.extend(info.source.iter().map(|source| row("source", format!("{} {}", source.kind, source.server))));
    rows.extend(info.masq_file.iter().flat_map(|file| {
        let exempt = row("not masqueraded", list(&file.exempt));
        [row("by", origin(file)), exempt]
    }));
    rows
}

/// One kind of objects. An error is shown for as long as it lasts.
fn watch(watch: &WatchInfo) -> Vec<String> {
    let ago = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), |it| format!("{} ago", age(it)));
    let known = if watch.listed { watch.objects.to_string() } else { "waiting".to_owned() };
    let connected = watch.connected_for.map_or_else(|| "no".to_owned(), |it| format!("for {}", age(it)));
    let lasts = watch.error.as_ref().filter(|_| watch.connected_for.is_none());
    let trouble = lasts.map_or_else(|| "-".to_owned(), |error| format!("{error} ({})", ago(watch.error_ago)));
    let (heard, event) = (ago(watch.heard_ago), ago(watch.last_event_ago));
    vec![watch.kind.clone(), known, connected, heard, event, trouble]
}

/// Seconds as people say it: the two largest units.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
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
    fn ages_are_short() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h"), (864_000, "10d0h")]
        {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn trouble_is_shown_while_it_lasts() {
        let it = WatchInfo {
            kind: "Node".into(),
            objects: 3,
            listed: true,
            connected_for: None,
            heard_ago: Some(70),
            last_event_ago: None,
            error: Some("refused".into()),
            error_ago: Some(2),
        };
        assert_eq!(watch(&it), ["Node", "3", "no", "1m10s ago", "-", "refused (2s ago)"]);
        let again = WatchInfo { connected_for: Some(1), ..it };
        assert_eq!(watch(&again)[2..], ["for 1s", "1m10s ago", "-", "-"]);
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

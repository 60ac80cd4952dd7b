//! The file of an ip-masq-agent says which destinations see pods as they are, also when it changes under a running agent.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Protocol, Routing, Station, node::NODE_DIR, poll, traffic::exchange,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::scenario;

/// By then a change must have an effect.
const SOON: Duration = Duration::from_secs(10);

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let spec = |routing| {
        LabSpec::nodes(1, routing).flag(&format!("--ip-masq-agent-config={NODE_DIR}/volume/config"))
    };
    vec![
        scenario("policy_file::prefixes_follow_the_file", spec(Routing::Native), follows_the_file),
        scenario("policy_file::a_configmaps_swap_takes_effect", spec(Routing::Tunnel), follows_a_swap),
        scenario("policy_file::a_broken_file_changes_nothing", spec(Routing::Native), broken),
        scenario(
            "policy_file::exempt_flags_stay_beside_the_file",
            spec(Routing::Native).flag("--exempt-cidr=2001:db8:1::/64"),
            beside_flags,
        ),
    ]
}

/// Whom the world sees, in each family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Pod,
    Node,
}
use Seen::{Node, Pod as PodItself};

/// A pod, the file, and a world with a way back to pods.
struct Stage<'a> {
    lab: &'a Lab,
    pod: Pod,
    volume: PathBuf,
}

impl<'a> Stage<'a> {
    fn set(lab: &'a Lab) -> Result<Self> {
        lab.route_at_gateway(lab.node(0))?;
        let volume = lab.node(0).dir().join("volume");
        fs::create_dir(&volume)?;
        Ok(Self { lab, pod: lab.node(0).add_pod("a")?, volume })
    }

    fn write(&self, text: &str) -> Result<()> {
        let fresh = self.volume.join("fresh");
        fs::write(&fresh, text)?;
        fs::rename(fresh, self.volume.join("config")).context("cannot put the file in place")
    }

    /// New flows to the world appear as this, IPv4 and IPv6.
    fn expect(&self, when: &str, expected: [Seen; 2]) -> Result<()> {
        poll::eventually(when, SOON, || self.is(Protocol::Udp, expected))?;
        for protocol in [Protocol::Tcp, Protocol::Icmp] {
            self.is(protocol, expected).with_context(|| format!("{when}, {protocol}"))?;
        }
        Ok(())
    }

    fn is(&self, protocol: Protocol, expected: [Seen; 2]) -> Result<()> {
        for (family, expected) in Family::BOTH.into_iter().zip(expected) {
            let seen = exchange::exchange(&self.pod, self.lab.world(), family, protocol)?;
            let station: &dyn Station =
                if expected == PodItself { &self.pod } else { self.lab.node(0).as_ref() };
            ensure!(seen == station.address(family), "{family}: the world saw {seen}, not the {expected:?}");
        }
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.lab.node(0).hypha(&["status", "-o", "json"])?)?;
        Ok(status["masq_file"].clone())
    }
}

const WORLD_V4: &str = "203.0.113.0/24";
const WORLD_V6: &str = "2001:db8:1::/64";

fn follows_the_file(lab: &mut Lab) -> Result<()> {
    let stage = Stage::set(lab)?;
    stage.expect("there is no file: the well-known ranges, of IPv4 only", [PodItself, Node])?;
    ensure!(stage.status()?["found"] == false, "found: {}", stage.status()?);
    let link_local = "masqLinkLocal: true\nmasqLinkLocalIPv6: true\n";
    for (list, expected) in [
        ("[]".to_owned(), [Node, Node]),
        (format!("['{WORLD_V4}', '{WORLD_V6}']"), [PodItself, PodItself]),
        (format!("['{WORLD_V6}']"), [Node, PodItself]),
        ("['0.0.0.0/0']".to_owned(), [PodItself, Node]),
        ("['::/0']".to_owned(), [Node, PodItself]),
        ("['0.0.0.0/0', '::/0']".to_owned(), [PodItself, PodItself]),
        ("[]".to_owned(), [Node, Node]),
    ] {
        stage.write(&format!("nonMasqueradeCIDRs: {list}\n{link_local}"))?;
        stage.expect(&format!("the list is {list}"), expected)?;
    }
    // As JSON, and without a list.
    stage.write(r#"{"masqLinkLocal": false}"#)?;
    stage.expect("the file has no list", [PodItself, Node])?;
    stage.write("nonMasqueradeCIDRs: []\n")?;
    stage.expect("the list is empty", [Node, Node])?;
    fs::remove_file(stage.volume.join("config"))?;
    stage.expect("the file is removed", [PodItself, Node])
}

/// A new directory, and the link `..data` renamed over the old one, as the kubelet does it.
fn swap(volume: &Path, version: &str, list: &str) -> Result<()> {
    let folder = volume.join(version);
    fs::create_dir(&folder)?;
    // An hour, so that it is not the interval that is seen.
    fs::write(folder.join("config"), format!("nonMasqueradeCIDRs: {list}\nresyncInterval: 1h\n"))?;
    symlink(version, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).context("cannot swap the link")
}

fn follows_a_swap(lab: &mut Lab) -> Result<()> {
    let stage = Stage::set(lab)?;
    swap(&stage.volume, "..2026_11_21_1", "[]")?;
    symlink("..data/config", stage.volume.join("config"))?;
    stage.expect("the volume is mounted", [Node, Node])?;
    swap(&stage.volume, "..2026_11_21_2", &format!("['{WORLD_V4}', '{WORLD_V6}']"))?;
    stage.expect("the link was swapped", [PodItself, PodItself])?;
    fs::remove_dir_all(stage.volume.join("..2026_11_21_1"))?;
    swap(&stage.volume, "..2026_11_21_3", "[]")?;
    stage.expect("the link was swapped again", [Node, Node])
}

fn broken(lab: &mut Lab) -> Result<()> {
    let stage = Stage::set(lab)?;
    let node = lab.node(0);
    stage.write(&format!("nonMasqueradeCIDRs: ['{WORLD_V6}']\n"))?;
    stage.expect("the list is good", [Node, PodItself])?;
    for (text, complaint) in
        [("nonMasqueradeCIDRs: [", "line"), ("nonMasqueradeCIDRs: [elsewhere]\n", "elsewhere")]
    {
        stage.write(text)?;
        poll::eventually("hypha status tells of the broken file", SOON, || {
            let status = stage.status()?;
            ensure!(status["error"].as_str().is_some_and(|error| error.contains(complaint)), "{status}");
            Ok(())
        })?;
        stage.is(Protocol::Udp, [Node, PodItself])?;
    }
    let table = node.hypha(&["status"])?;
    ensure!(table.contains("before it broke"), "hypha status says nothing of it:\n{table}");
    let complaints = fs::read_to_string(node.agent_log())?.matches("unusable --ip-masq-agent-config").count();
    ensure!(complaints == 2, "two mistakes were logged {complaints} times");
    // Nor does a new agent forget.
    node.kill_agent()?;
    node.start_agent()?;
    stage.expect("the agent was restarted", [Node, PodItself])?;
    ensure!(stage.status()?["error"].is_string(), "the new agent finds nothing wrong");
    stage.write(&format!("nonMasqueradeCIDRs: ['{WORLD_V4}']\n"))?;
    stage.expect("the file is mended", [PodItself, Node])?;
    ensure!(stage.status()?["error"].is_null(), "it is still called broken: {}", stage.status()?);
    Ok(())
}

fn beside_flags(lab: &mut Lab) -> Result<()> {
    let stage = Stage::set(lab)?;
    stage.write("nonMasqueradeCIDRs: []\n")?;
    stage.expect("the file exempts nothing", [Node, PodItself])?;
    stage.write(&format!("nonMasqueradeCIDRs: ['{WORLD_V4}']\n"))?;
    stage.expect("the file exempts the other family", [PodItself, PodItself])
}

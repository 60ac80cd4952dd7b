//! A pod: a namespace wired by `hypha-cni`, or by hand where a test needs plain Linux.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cni::{Call, Reply},
    family::Family,
    netns::Netns,
    node::Node,
    shell,
    station::Station,
};

/// Container ids differ also when names repeat.
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// A pod, its namespace removed on drop; what the agent holds for it goes with [`Pod::delete`].
#[derive(Debug)]
pub struct Pod {
    name: String,
    container_id: String,
    ifname: String,
    netns: Arc<Netns>,
    node: Arc<Node>,
    args: String,
    config: Value,
    result: Value,
    added_in: Duration,
    addresses: [IpAddr; 2],
}

/// A pod to be added.
#[derive(Debug)]
pub struct PodBuilder {
    node: Arc<Node>,
    name: String,
    ifname: String,
    netns: Option<(String, Arc<Netns>)>,
    args: String,
    extra: Value,
}

impl PodBuilder {
    pub(crate) fn new(node: &Arc<Node>, name: &str) -> Self {
        Self {
            node: node.clone(),
            name: name.to_owned(),
            ifname: "eth0".to_owned(),
            netns: None,
            args: String::new(),
            extra: json!({}),
        }
    }

    /// Another name for the interface than `eth0`.
    pub fn ifname(mut self, ifname: &str) -> Self {
        self.ifname = ifname.to_owned();
        self
    }

    /// One more interface in a container that exists.
    pub fn inside(mut self, pod: &Pod) -> Self {
        self.netns = Some((pod.container_id.clone(), pod.netns.clone()));
        self
    }

    /// A key of the network configuration to add or to replace.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.extra[key] = value;
        self
    }

    /// Fixed addresses, given out by the reference plugin `static`.
    pub fn addresses(self, v4: IpAddr, v6: IpAddr) -> Self {
        let ipam = json!({
            "type": "static",
            "addresses": [{ "address": format!("{v4}/32") }, { "address": format!("{v6}/128") }],
        });
        self.config("ipam", ipam)
    }

    /// Makes it a pod of Kubernetes, in the namespace `default`, as a container runtime tells.
    pub fn kubernetes(mut self, uid: &str) -> Self {
        let name = &self.name;
        self.args =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}");
        self
    }

    /// Makes the namespace and calls CNI ADD.
    pub fn add(self) -> Result<Pod> {
        let prepared = self.prepare()?;
        prepared.add()
    }

    /// Makes the namespace only, for tests that call the verbs themselves.
    pub fn prepare(self) -> Result<Prepared> {
        let (container_id, netns) = match self.netns {
            Some(existing) => existing,
            None => {
                let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                let container_id = format!("{}-{}-{number}", self.node.tag, self.name);
                let netns = Netns::create(&container_id)?;
                (container_id, Arc::new(netns))
            }
        };
        let mut config = self.node.network_config()?;
        for (key, value) in self.extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let Self { name, ifname, node, args, .. } = self;
        Ok(Prepared { name, container_id, ifname, netns, node, args, config })
    }
}

/// A container that waits for its interface.
#[derive(Clone, Debug)]
pub struct Prepared {
    name: String,
    container_id: String,
    ifname: String,
    netns: Arc<Netns>,
    node: Arc<Node>,
    args: String,
    config: Value,
}

impl Prepared {
    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The network configuration that the verbs get.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Calls a verb as the runtime would.
    pub fn verb(&self, command: &str) -> Result<Reply> {
        self.verb_with(command, &self.config)
    }

    /// Calls a verb with another configuration.
    pub fn verb_with(&self, command: &str, config: &Value) -> Result<Reply> {
        self.node.cni(&self.call(command, config))
    }

    /// The call of a verb, for other plugins of a chain.
    pub fn call<'a>(&'a self, command: &'a str, config: &'a Value) -> Call<'a> {
        Call {
            command,
            container_id: &self.container_id,
            netns: Some(self.netns.path()),
            ifname: &self.ifname,
            args: &self.args,
            config,
        }
    }

    /// Calls ADD, which must succeed.
    pub fn add(self) -> Result<Pod> {
        let reply = self.verb("ADD").with_context(|| format!("cannot add pod {}", self.name))?;
        let added_in = reply.elapsed;
        let result = reply.success().with_context(|| format!("cannot add pod {}", self.name))?;
        let addresses = [Family::V4, Family::V6].map(|family| address_of(&result, family));
        let [Some(v4), Some(v6)] = addresses else {
            anyhow::bail!("pod {} did not get an address of each family: {result}", self.name)
        };
        Ok(Pod {
            name: self.name,
            container_id: self.container_id,
            ifname: self.ifname,
            netns: self.netns,
            node: self.node,
            args: self.args,
            config: self.config,
            result,
            added_in,
            addresses: [v4, v6],
        })
    }
}

/// The first address of a family in a CNI result.
fn address_of(result: &Value, family: Family) -> Option<IpAddr> {
    let ips = result["ips"].as_array()?.iter();
    let mut addresses = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
    addresses.find(|&address| Family::of(address) == family)
}

impl Pod {
    /// The node it runs on.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its id, as the runtime names it.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Its interface's name.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// What ADD answered.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// How long ADD took, the start of the process included.
    pub fn added_in(&self) -> Duration {
        self.added_in
    }

    /// The MAC address of its interface.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let link = shell::text(self.netns.command("ip").args(["-j", "link", "show", "dev", &self.ifname]))?;
        let link: Value = serde_json::from_str(&link).context("ip wrote no JSON")?;
        let text = link[0]["address"].as_str().context("the pod's interface has no address")?;
        let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        <[u8; 6]>::try_from(bytes).map_err(|bytes| anyhow::anyhow!("not a MAC address: {bytes:?}"))
    }

    /// The host end of its veth, as the node names it.
    pub fn host_ifname(&self) -> Result<&str> {
        let interfaces = self.result["interfaces"].as_array().context("no interfaces in the result")?;
        let host =
            interfaces.iter().find(|interface| interface["sandbox"].as_str().is_none_or(str::is_empty));
        host.and_then(|host| host["name"].as_str()).context("no host interface in the result")
    }

    /// The container, to call further verbs with the configuration that ADD was called with.
    pub fn prepared(&self) -> Prepared {
        Prepared {
            name: self.name.clone(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
            netns: self.netns.clone(),
            node: self.node.clone(),
            args: self.args.clone(),
            config: self.config.clone(),
        }
    }

    /// CNI CHECK, with ADD's result as the specification wants it.
    pub fn check(&self) -> Result<Reply> {
        let mut config = self.config.clone();
        config["prevResult"] = self.result.clone();
        self.prepared().verb_with("CHECK", &config)
    }

    /// CNI DEL, which must succeed; the namespace goes with the value.
    pub fn delete(self) -> Result<Duration> {
        let reply =
            self.prepared().verb("DEL").with_context(|| format!("cannot delete pod {}", self.name))?;
        let elapsed = reply.elapsed;
        reply.success().with_context(|| format!("cannot delete pod {}", self.name))?;
        Ok(elapsed)
    }
}

impl Station for Pod {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.addresses[0],
            Family::V6 => self.addresses[1],
        }
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} ({}, {})", self.name, self.node.name(), self.addresses[0], self.addresses[1])
    }
}

/// A namespace connected to a node by the kernel's own means: what the lab compares with, and tests itself on.
#[derive(Debug)]
pub struct PlainPod {
    name: String,
    netns: Netns,
    addresses: [IpAddr; 2],
}

impl PlainPod {
    /// Adds one with the given number (from 2) in the node's pod prefixes; the node forwards.
    pub fn add(node: &Node, name: &str, number: u8) -> Result<Self> {
        ensure!(number >= 2, "number 1 is the node's own address in the prefix");
        let netns = Netns::create(&format!("{}-plain-{name}", node.tag))?;
        let host = |family, number: u8| -> Result<IpAddr> {
            let cidr = node.pod_cidr(family);
            let base = cidr.split('/').next().unwrap_or_default();
            let text = base.strip_suffix('0').filter(|_| family == Family::V4).unwrap_or(base);
            Ok(format!("{text}{number}").parse()?)
        };
        let addresses = [host(Family::V4, number)?, host(Family::V6, number)?];
        node.netns().sysctl("ipv4/ip_forward", "1")?;
        node.netns().sysctl("ipv6/conf/all/forwarding", "1")?;
        shell::ip_batch(
            node.netns(),
            &format!(
                "link add plain-{number} type veth peer name eth0 netns {}\n\
                 link set plain-{number} up\n\
                 address add 169.254.1.1/32 dev plain-{number}\n\
                 address add fe80::1/64 dev plain-{number} nodad\n\
                 route add {}/32 dev plain-{number}\n\
                 route add {}/128 dev plain-{number}\n",
                netns.name(),
                addresses[0],
                addresses[1]
            ),
        )?;
        shell::ip_batch(
            &netns,
            &format!(
                "link set eth0 up\n\
                 address add {}/32 dev eth0\n\
                 address add {}/128 dev eth0 nodad\n\
                 route add 169.254.1.1/32 dev eth0\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::1 dev eth0\n",
                addresses[0], addresses[1]
            ),
        )?;
        Ok(Self { name: name.to_owned(), netns, addresses })
    }
}

impl Station for PlainPod {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.addresses[0],
            Family::V6 => self.addresses[1],
        }
    }
}

//! The netlink module against the kernel: every test in a network namespace of its own, judged by the `ip` command.
//!
//! Needs root; as another user each test says that it is skipped.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod inspect;
mod monitor;
mod overlay;
mod pod;
mod routes;
mod uplink;

use std::{
    fs::File,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hypha_agent::netlink::{Netlink, PodLink, PodWiring};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use tokio::runtime;

/// What tests poll for must have happened by then.
const DEADLINE: Duration = Duration::from_secs(10);
/// The node's own addresses, put on its loopback device.
const NODE_V4: &str = "192.0.2.1";
const NODE_V6: &str = "2001:db8::1";

/// Runs `test` on a thread in a fresh network namespace: the node. All threads that the test starts are in it too, and
/// it is gone with the last of them.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let node = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip(&format!("address add {NODE_V4}/32 dev lo"));
        ip(&format!("address add {NODE_V6}/128 dev lo nodad"));
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(Netlink::connect().await.unwrap()).await });
    });
    if let Err(failure) = node.join() {
        panic::resume_unwind(failure);
    }
}

/// Runs `ip` with these arguments in the calling thread's namespace; it must succeed.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip` lists, as JSON objects. Objects that are empty stand for what the filter left out.
fn ip_list(arguments: &str) -> Vec<Value> {
    let listed = ip(&format!("-j -d {arguments}"));
    if listed.trim().is_empty() {
        return Vec::new();
    }
    let list: Vec<Value> = serde_json::from_str(&listed).unwrap();
    list.into_iter().filter(|entry| entry.as_object().is_some_and(|it| !it.is_empty())).collect()
}

/// A setting of the calling thread's namespace.
fn sysctl(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap().trim().to_owned()
}

/// Polls until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A pod's network namespace; it is gone when this is dropped.
struct Pod {
    netns: OwnedFd,
}

impl Pod {
    fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Self { netns: made.join().unwrap() }
    }

    fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Runs `work` inside the pod.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let visit = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            visit.join().unwrap_or_else(|failure| panic::resume_unwind(failure))
        })
    }

    fn ip(&self, arguments: &str) -> String {
        self.inside(|| ip(arguments))
    }

    fn ip_list(&self, arguments: &str) -> Vec<Value> {
        self.inside(|| ip_list(arguments))
    }
}

/// The wiring of an `eth0` with these addresses.
fn wiring(addresses: &[&str]) -> PodWiring {
    PodWiring {
        host_ifname: "hy0123456789abc".into(),
        container_ifname: "eth0".into(),
        addresses: addresses.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect(),
        mtu: 1450,
        mac: None,
        node_v4: Some(NODE_V4.parse().unwrap()),
        node_v6: Some(NODE_V6.parse().unwrap()),
    }
}

/// A wired and published pod.
async fn wire(netlink: &Netlink, pod: &Pod, w: &PodWiring) -> u32 {
    let link: PodLink = netlink.create_pod_link(pod.netns(), w).await.unwrap();
    let ifindex = link.host_ifindex;
    netlink.publish_pod_link(link, w).await.unwrap();
    ifindex
}

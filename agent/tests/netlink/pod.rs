//! Pods' veths: made, published, deleted.

use std::process::Command;

use hypha_agent::netlink::{NetlinkError, PodLink};
use serde_json::Value;

use super::{Pod, eventually, ip, ip_list, on_a_node, sysctl, wire, wiring};

const V4: &str = "10.244.1.5";
const V6: &str = "fd00:10:244:1::5";
const FAMILIES: [&[&str]; 3] = [&[V4], &[V6], &[V4, V6]];
const GATEWAY_MAC: &str = "0a:59:50:48:41:01";

#[test]
fn a_pod_of_any_family_has_its_addresses_routes_and_gateways() {
    for addresses in FAMILIES {
        on_a_node(async move |netlink| {
            let pod = Pod::new();
            let link = netlink.create_pod_link(pod.netns(), &wiring(addresses)).await.unwrap();

            let eth0 = &pod.ip_list("address show dev eth0")[0];
            assert_eq!(eth0["mtu"], 1450);
            assert_eq!(eth0["address"], link.mac.to_string());
            assert!(eth0["flags"].as_array().unwrap().contains(&"UP".into()), "{eth0}");
            assert_eq!(eth0["num_tx_queues"], 1);
            let global: Vec<&Value> =
                eth0["addr_info"].as_array().unwrap().iter().filter(|it| it["scope"] == "global").collect();
            let locals: Vec<&str> = global.iter().filter_map(|it| it["local"].as_str()).collect();
            assert_eq!(locals, addresses);
            assert!(global.iter().all(|it| it.get("tentative").is_none()), "usable at once: {global:?}");

            for address in addresses {
                let (family, gateway) =
                    if address.contains(':') { ("-6", "fe80::1") } else { ("-4", "169.254.1.1") };
                let default = &pod.ip_list(&format!("{family} route show default"))[0];
                assert_eq!(default["gateway"], gateway);
                assert_eq!(default["dev"], "eth0");
                let neighbour = &pod.ip_list(&format!("neighbour show {gateway} dev eth0"))[0];
                assert_eq!(neighbour["lladdr"], GATEWAY_MAC);
                assert_eq!(neighbour["state"], serde_json::json!(["PERMANENT"]));
            }
        });
    }
}

#[test]
fn the_host_end_is_down_until_it_is_published() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
        let link = netlink.create_pod_link(pod.netns(), &w).await.unwrap();
        let (ifindex, mac) = (link.host_ifindex, link.mac.to_string());
        let host = &ip_list("link show dev hy0123456789abc")[0];
        assert_eq!(host["operstate"], "DOWN");
        assert_eq!(host["address"], GATEWAY_MAC);
        assert_eq!(host["mtu"], 1450);
        assert_eq!(host["ifindex"], ifindex);
        assert!(ip_list("route show proto 72").is_empty());

        netlink.publish_pod_link(link, &w).await.unwrap();
        let host = &ip_list("address show dev hy0123456789abc")[0];
        assert_eq!(host["operstate"], "UP");
        assert_eq!(host["addr_info"].as_array().unwrap().len(), 0, "not even a link-local address");
        for (address, source) in [(V4, "192.0.2.1"), (V6, "2001:db8::1")] {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let route = &ip_list(&format!("{family} route show {address}"))[0];
            assert_eq!(route["dev"], "hy0123456789abc");
            assert_eq!(route["protocol"], "72");
            assert_eq!(route["prefsrc"], source);
            let neighbour = &ip_list(&format!("neighbour show {address}"))[0];
            assert_eq!(neighbour["lladdr"], mac.as_str());
            assert_eq!(neighbour["state"], serde_json::json!(["PERMANENT"]));
        }
    });
}

#[test]
fn the_first_packet_after_publishing_arrives_in_both_directions() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
        wire(&netlink, &pod, &w).await;
        let ping = |to: &str| {
            let output = Command::new("ping").args(["-c1", "-W2", to]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        };
        pod.inside(|| ping("192.0.2.1"));
        pod.inside(|| ping("2001:db8::1"));
        ping(V4);
        ping(V6);
    });
}

#[test]
fn the_host_end_forwards_quietly_and_unfiltered() {
    on_a_node(async |netlink| {
        wire(&netlink, &Pod::new(), &wiring(&[V4, V6])).await;
        let host = |setting: &str| sysctl(&setting.replace("IF", "hy0123456789abc"));
        assert_eq!(host("net/ipv4/conf/IF/rp_filter"), "0");
        assert_eq!(host("net/ipv4/conf/IF/forwarding"), "1");
        assert_eq!(host("net/ipv6/conf/IF/forwarding"), "1");
        assert_eq!(host("net/ipv6/conf/IF/accept_ra"), "0");
    });
}

#[test]
fn a_strict_reverse_path_filter_of_the_node_is_overridden() {
    on_a_node(async |netlink| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        wire(&netlink, &Pod::new(), &wiring(&[V4])).await;
        assert_eq!(
            sysctl("net/ipv4/conf/hy0123456789abc/rp_filter"),
            "2",
            "the larger of all's and this counts"
        );
    });
}

#[test]
fn ipv6_that_is_off_by_default_is_switched_on_for_a_pod_that_needs_it_and_only_for_it() {
    fn switch_off() {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    }
    for (addresses, disabled) in [(&[V4, V6][..], "0"), (&[V4], "1")] {
        on_a_node(async move |netlink| {
            let (pod, w) = (Pod::new(), wiring(addresses));
            switch_off();
            pod.inside(switch_off);
            wire(&netlink, &pod, &w).await;
            netlink.inspect_pod(pod.netns(), &w).await.unwrap();
            assert_eq!(sysctl("net/ipv6/conf/hy0123456789abc/disable_ipv6"), disabled);
            assert_eq!(pod.inside(|| sysctl("net/ipv6/conf/eth0/disable_ipv6")), disabled);
        });
    }
}

#[test]
fn a_wanted_mac_is_given() {
    on_a_node(async |netlink| {
        let (pod, mut w) = (Pod::new(), wiring(&[V4]));
        w.mac = Some(datapath_ebpf::Mac { bytes: [2, 0, 0, 0, 0, 7] });
        let link = netlink.create_pod_link(pod.netns(), &w).await.unwrap();
        assert_eq!(Some(link.mac), w.mac);
        assert_eq!(pod.ip_list("link show dev eth0")[0]["address"], "02:00:00:00:00:07");
    });
}

#[test]
fn a_retried_attempt_replaces_the_earlier_one() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
        let first = wire(&netlink, &pod, &w).await;
        let second = wire(&netlink, &pod, &w).await;
        assert_ne!(first, second);
        assert_eq!(netlink.pod_links().await.unwrap().len(), 1);
        assert_eq!(pod.ip_list("link show type veth").len(), 1);
        netlink.inspect_pod(pod.netns(), &w).await.unwrap();
    });
}

#[test]
fn an_interface_of_someone_else_in_the_pod_is_an_error_that_leaves_nothing_behind() {
    on_a_node(async |netlink| {
        let pod = Pod::new();
        pod.ip("link add eth0 type bridge");
        let refused = netlink.create_pod_link(pod.netns(), &wiring(&[V4])).await.unwrap_err();
        assert!(matches!(refused, NetlinkError::InterfaceExists { .. }), "{refused}");
        assert!(ip_list("link show type veth").is_empty());
    });
}

#[test]
fn a_failure_half_way_leaves_nothing_behind() {
    on_a_node(async |netlink| {
        let pod = Pod::new();
        let refused = netlink.create_pod_link(pod.netns(), &wiring(&[V4, "ff02::1"])).await.unwrap_err();
        assert!(refused.to_string().contains("ff02::1"), "names what was refused: {refused}");
        assert!(ip_list("link show type veth").is_empty());
        assert!(pod.ip_list("link show type veth").is_empty());
    });
}

#[test]
fn a_second_interface_answers_by_itself_and_leaves_the_first_ones_routes_in_force() {
    on_a_node(async |netlink| {
        let (pod, first) = (Pod::new(), wiring(&[V4, V6]));
        let mut second = wiring(&["10.244.1.6", "fd00:10:244:1::6"]);
        (second.host_ifname, second.container_ifname) = ("hyba9876543210f".into(), "net1".into());
        wire(&netlink, &pod, &first).await;
        wire(&netlink, &pod, &second).await;
        for (target, source) in [("203.0.113.9", "10.244.1.6"), ("2001:db8:9::9", "fd00:10:244:1::6")] {
            assert_eq!(pod.ip_list(&format!("route get {target}"))[0]["dev"], "eth0");
            assert_eq!(pod.ip_list(&format!("route get {target} oif net1"))[0]["dev"], "net1");
            assert_eq!(pod.ip_list(&format!("route get {target} from {source}"))[0]["dev"], "net1");
        }
        // Again: the rules of the first attempt are still there.
        wire(&netlink, &pod, &second).await;
        for w in [&first, &second] {
            netlink.inspect_pod(pod.netns(), w).await.unwrap();
        }
    });
}

#[test]
fn deleting_twice_is_no_error() {
    on_a_node(async |netlink| {
        let pod = Pod::new();
        wire(&netlink, &pod, &wiring(&[V4, V6])).await;
        assert!(netlink.delete_pod_link("hy0123456789abc").await.unwrap());
        assert!(!netlink.delete_pod_link("hy0123456789abc").await.unwrap());
        assert!(pod.ip_list("link show type veth").is_empty());
        assert!(ip_list("route show proto 72").is_empty());
    });
}

#[test]
fn a_pod_that_is_gone_in_the_middle_is_an_error_and_deleting_it_is_not() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
        let link = netlink.create_pod_link(pod.netns(), &w).await.unwrap();
        // What is known of the veth without the socket into the pod, which would keep the namespace.
        let known = PodLink::existing(link.host_ifindex, link.mac);
        drop((link, pod));
        eventually("the veth goes with the pod", || ip_list("link show type veth").is_empty()).await;
        let refused = netlink.publish_pod_link(known, &w).await.unwrap_err();
        assert!(refused.is_not_found(), "{refused}");
        assert!(!netlink.delete_pod_link(&w.host_ifname).await.unwrap());
    });
}

#[test]
fn publishing_again_repairs() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
        let link = netlink.create_pod_link(pod.netns(), &w).await.unwrap();
        let (ifindex, mac) = (link.host_ifindex, link.mac);
        netlink.publish_pod_link(link, &w).await.unwrap();
        ip("link set hy0123456789abc down");
        netlink.publish_pod_link(PodLink::existing(ifindex, mac), &w).await.unwrap();
        netlink.inspect_pod(pod.netns(), &w).await.unwrap();
    });
}

#[test]
fn an_address_that_the_node_lacks_does_not_keep_a_pod_from_starting() {
    on_a_node(async |netlink| {
        let (pod, mut w) = (Pod::new(), wiring(&[V4, V6]));
        w.node_v6 = Some("2001:db8::77".parse().unwrap());
        wire(&netlink, &pod, &w).await;
        assert_eq!(ip_list(&format!("-6 route show {V6}"))[0].get("prefsrc"), None);
    });
}

#[test]
fn only_host_ends_of_pods_are_listed() {
    on_a_node(async |netlink| {
        // The veth goes with the pod's namespace.
        let pod = Pod::new();
        let ifindex = wire(&netlink, &pod, &wiring(&[V4])).await;
        ip("link add hyperv0 type veth peer name eth7");
        ip("link add hy0000000000000 type veth peer name eth8");
        let listed = netlink.pod_links().await.unwrap();
        let [link] = listed.as_slice() else { panic!("one of ours: {listed:?}") };
        assert_eq!((link.ifindex, link.name.as_str(), link.up), (ifindex, "hy0123456789abc", true));
    });
}

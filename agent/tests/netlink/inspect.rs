//! CHECK's comparison: each way in which a pod's wiring can be broken is told apart.

use hypha_agent::netlink::PodMismatch;

use super::{Pod, ip, on_a_node, wire, wiring};

const V4: &str = "10.244.1.5";
const V6: &str = "fd00:10:244:1::5";

#[test]
fn an_intact_pod_passes() {
    on_a_node(async |netlink| {
        for addresses in [vec![V4], vec![V6], vec![V4, V6]] {
            let (pod, w) = (Pod::new(), wiring(&addresses));
            wire(&netlink, &pod, &w).await;
            netlink.inspect_pod(pod.netns(), &w).await.unwrap();
            netlink.delete_pod_link(&w.host_ifname).await.unwrap();
        }
    });
}

#[test]
fn every_difference_is_named() {
    enum Where {
        Node,
        Pod,
    }
    use Where::{Node, Pod as InPod};
    let table = [
        (Node, "link delete hy0123456789abc", "interface hy0123456789abc is missing"),
        (Node, "link set hy0123456789abc down", "state of hy0123456789abc is down instead of up"),
        (Node, "link set hy0123456789abc mtu 1400", "MTU of hy0123456789abc is 1400 instead of 1450"),
        (
            Node,
            "link set hy0123456789abc address 02:00:00:00:00:01",
            "MAC of hy0123456789abc is 02:00:00:00:00:01 instead of 0a:59:50:48:41:01",
        ),
        (Node, "route delete 10.244.1.5", "the node's route to 10.244.1.5/32 is missing"),
        (Node, "-6 route delete fd00:10:244:1::5", "the node's route to fd00:10:244:1::5/128 is missing"),
        (
            Node,
            "neighbour delete 10.244.1.5 dev hy0123456789abc",
            "permanent neighbour 10.244.1.5 on hy0123456789abc is missing",
        ),
        (InPod, "link set eth0 down", "state of eth0 is down instead of up"),
        (InPod, "link set eth0 name eth1", "interface eth0 is missing"),
        (InPod, "link set eth0 mtu 1400", "MTU of eth0 is 1400 instead of 1450"),
        (InPod, "address delete 10.244.1.5/32 dev eth0", "address 10.244.1.5 on eth0 is missing"),
        (
            InPod,
            "address delete fd00:10:244:1::5/128 dev eth0",
            "address fd00:10:244:1::5 on eth0 is missing",
        ),
        (InPod, "route delete default", "default route via 169.254.1.1 on eth0 is missing"),
        (InPod, "-6 route delete default", "default route via fe80::1 on eth0 is missing"),
        (InPod, "neighbour delete fe80::1 dev eth0", "permanent neighbour fe80::1 on eth0 is missing"),
        (
            InPod,
            "neighbour replace 169.254.1.1 lladdr 02:00:00:00:00:09 dev eth0",
            "neighbour 169.254.1.1 of eth0 is 02:00:00:00:00:09 instead of 0a:59:50:48:41:01",
        ),
    ];
    for (place, damage, verdict) in table {
        on_a_node(async move |netlink| {
            let (pod, w) = (Pod::new(), wiring(&[V4, V6]));
            wire(&netlink, &pod, &w).await;
            match place {
                Node => ip(damage),
                InPod => pod.ip(damage),
            };
            let mismatch = netlink.inspect_pod(pod.netns(), &w).await.unwrap_err();
            assert_eq!(mismatch.to_string(), verdict, "after ip {damage}");
        });
    }
}

#[test]
fn a_node_that_sends_to_another_mac_than_the_pods_is_a_difference() {
    on_a_node(async |netlink| {
        let (pod, w) = (Pod::new(), wiring(&[V4]));
        wire(&netlink, &pod, &w).await;
        ip("neighbour replace 10.244.1.5 lladdr 02:00:00:00:00:05 dev hy0123456789abc");
        let mismatch = netlink.inspect_pod(pod.netns(), &w).await.unwrap_err();
        assert!(matches!(mismatch, PodMismatch::Differs { .. }), "{mismatch}");
        assert!(mismatch.to_string().contains("neighbour 10.244.1.5"), "{mismatch}");
    });
}

#[test]
fn a_veth_whose_other_end_is_elsewhere_is_a_difference() {
    on_a_node(async |netlink| {
        let (pod, other, w) = (Pod::new(), Pod::new(), wiring(&[V4]));
        let mut elsewhere = wiring(&[V4]);
        elsewhere.host_ifname = "hyfedcba9876543".into();
        wire(&netlink, &pod, &elsewhere).await;
        // Shifts the numbering, so that the two container ends differ in it.
        other.ip("link add spare type bridge");
        wire(&netlink, &other, &w).await;
        let mismatch = netlink.inspect_pod(pod.netns(), &w).await.unwrap_err();
        assert!(mismatch.to_string().starts_with("peer of"), "{mismatch}");
    });
}

//! The VXLAN device: made, left alone, repaired.

use hypha_agent::netlink::Netlink;
use serde_json::Value;

use super::{ip, ip_list, on_a_node, sysctl};

fn overlay() -> Value {
    ip_list("link show dev hypha_vxlan").remove(0)
}

fn assert_sound(device: &Value, mtu: u32) {
    let info = &device["linkinfo"];
    assert_eq!(info["info_kind"], "vxlan", "{device}");
    let data = &info["info_data"];
    assert_eq!(data["external"], true, "{data}");
    assert_eq!(data["port"], 8472);
    assert_eq!(data["learning"], false);
    assert_eq!(data["udp_zero_csum6_tx"], true);
    assert_eq!(data["udp_zero_csum6_rx"], true);
    assert_eq!(device["mtu"], mtu);
    let flags = device["flags"].as_array().unwrap();
    assert!(flags.contains(&"UP".into()) && flags.contains(&"NOARP".into()), "{flags:?}");
}

#[test]
fn it_is_made_once_and_then_left_alone() {
    on_a_node(async |netlink| {
        let ifindex = netlink.ensure_overlay(1450).await.unwrap();
        assert_sound(&overlay(), 1450);
        assert_eq!(overlay()["ifindex"], ifindex);
        assert_eq!(netlink.ensure_overlay(1450).await.unwrap(), ifindex);
        assert_eq!(sysctl("net/ipv4/conf/hypha_vxlan/rp_filter"), "0");
        assert_eq!(sysctl("net/ipv4/conf/hypha_vxlan/forwarding"), "1");
        assert_eq!(sysctl("net/ipv6/conf/hypha_vxlan/forwarding"), "1");
        assert_eq!(ip_list("address show dev hypha_vxlan")[0]["addr_info"].as_array().unwrap().len(), 0);
    });
}

#[test]
fn it_is_repaired_in_place_where_that_is_possible() {
    for damage in
        ["link set hypha_vxlan down", "link set hypha_vxlan mtu 1300", "link set hypha_vxlan arp on"]
    {
        on_a_node(async move |netlink| {
            let ifindex = netlink.ensure_overlay(1450).await.unwrap();
            ip(damage);
            assert_eq!(netlink.ensure_overlay(1450).await.unwrap(), ifindex, "after ip {damage}");
            assert_sound(&overlay(), 1450);
        });
    }
}

#[test]
fn it_is_made_anew_when_it_is_something_else() {
    for instead in [
        "type bridge",
        "type vxlan id 7 dstport 8472 nolearning",
        "type vxlan external dstport 4789 nolearning udp6zerocsumtx udp6zerocsumrx",
        "type vxlan external dstport 8472 learning udp6zerocsumtx udp6zerocsumrx",
        "type vxlan external dstport 8472 nolearning",
    ] {
        on_a_node(async move |netlink| {
            ip(&format!("link add hypha_vxlan {instead}"));
            netlink.ensure_overlay(1450).await.unwrap();
            assert_sound(&overlay(), 1450);
        });
    }
}

#[test]
fn it_comes_back_after_it_was_deleted_and_goes_when_told() {
    on_a_node(async |netlink: Netlink| {
        netlink.ensure_overlay(1450).await.unwrap();
        ip("link delete hypha_vxlan");
        netlink.ensure_overlay(1450).await.unwrap();
        assert_sound(&overlay(), 1450);
        assert!(netlink.delete_overlay().await.unwrap());
        assert!(!netlink.delete_overlay().await.unwrap());
    });
}

#[test]
fn a_port_that_another_device_holds_is_an_error_in_the_kernels_words() {
    on_a_node(async |netlink| {
        ip("link add other type vxlan external dstport 8472 nolearning udp6zerocsumtx udp6zerocsumrx");
        let refused = netlink.ensure_overlay(1450).await.unwrap_err().to_string();
        assert!(refused.contains("hypha_vxlan") && refused.contains("VXLAN device"), "{refused}");
    });
}

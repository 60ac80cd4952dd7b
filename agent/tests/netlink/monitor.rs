//! Notices of changes.

use std::{collections::BTreeSet, time::Duration};

use hypha_agent::netlink::{Changes, KernelRoute, Monitor, Netlink, RouteTarget};
use tokio::time;

use super::{DEADLINE, Pod, ip, on_a_node, wire, wiring};

async fn noticed(changes: &mut Monitor) {
    time::timeout(DEADLINE, changes.changed()).await.expect("a notice in time").expect("still listening");
}

/// Takes notices until there has been none for a while.
async fn settle(changes: &mut Monitor) -> Changes {
    while time::timeout(Duration::from_millis(200), changes.changed()).await.is_ok() {}
    *changes.borrow_and_update()
}

#[test]
fn each_kind_of_change_is_noticed() {
    on_a_node(async |netlink| {
        let mut changes = Netlink::monitor().unwrap();
        ip("link add up0 type veth peer name up0peer");
        let pod = Pod::new();
        wire(&netlink, &pod, &wiring(&["10.244.1.5", "fd00:1::5"])).await;
        ip("link set up0peer up");
        for change in [
            "link set up0 up",
            "link set up0 mtu 1400",
            "address add 10.0.0.1/24 dev up0",
            "address delete 10.0.0.1/24 dev up0",
            "address add 2001:db8:1::1/64 dev up0 nodad",
            "route add 10.9.0.0/16 dev up0",
            "route delete 10.9.0.0/16 dev up0",
            "-6 route add 2001:db8:9::/64 dev up0",
            "-6 route delete 2001:db8:9::/64 dev up0",
            "route delete 10.244.1.5",
            "-6 route delete fd00:1::5",
            "neighbour delete 10.244.1.5 dev hy0123456789abc",
            "link delete up0",
        ] {
            settle(&mut changes).await;
            ip(change);
            time::timeout(DEADLINE, changes.changed())
                .await
                .unwrap_or_else(|_| panic!("unnoticed: {change}"))
                .unwrap();
        }
    });
}

/// These are not waited for: packets leave with them.
#[test]
fn changes_of_addresses_and_default_routes_are_told_from_others() {
    on_a_node(async |netlink| {
        let mut changes = Netlink::monitor().unwrap();
        ip("link add up0 type veth peer name up0peer");
        ip("link set up0peer up");
        ip("link set up0 up");
        for (change, expected) in [
            ("address add 10.0.0.1/24 dev up0", true),
            ("address add 10.0.0.2/24 dev up0", true),
            ("address add 2001:db8:1::1/64 dev up0 nodad", true),
            ("address add 192.0.2.77/32 dev lo", true),
            ("route add default via 10.0.0.254", true),
            ("route change default via 10.0.0.254 src 10.0.0.2", true),
            ("-6 route add default via 2001:db8:1::fe", true),
            ("address change 2001:db8:1::1/64 dev up0 preferred_lft 0", true),
            ("-6 route delete default", true),
            ("route delete default", true),
            ("address delete 10.0.0.1/24 dev up0", true),
            ("address delete 2001:db8:1::1/64 dev up0", true),
            ("address add 169.254.7.7/16 dev up0 scope link", false),
            ("route add 10.9.0.0/16 dev up0", false),
            ("link set up0 mtu 1400", false),
        ] {
            let before = settle(&mut changes).await;
            ip(change);
            let after = settle(&mut changes).await;
            assert!(after.all > before.all, "unnoticed: {change}");
            assert_eq!(after.addresses > before.addresses, expected, "{change}");
        }
        let before = settle(&mut changes).await;
        wire(&netlink, &Pod::new(), &wiring(&["10.244.1.5", "fd00:1::5"])).await;
        assert_eq!(settle(&mut changes).await.addresses, before.addresses, "a pod comes");
    });
}

#[test]
fn many_changes_are_one_notice_until_it_is_taken() {
    on_a_node(async |_| {
        let mut changes = Netlink::monitor().unwrap();
        for i in 1..100 {
            ip(&format!("address add 10.0.0.{i}/32 dev lo"));
        }
        noticed(&mut changes).await;
        settle(&mut changes).await;
        ip("address add 10.0.1.1/32 dev lo");
        noticed(&mut changes).await;
    });
}

#[test]
fn the_agents_own_routes_are_not_noticed_when_it_makes_them() {
    on_a_node(async |netlink| {
        let mut changes = Netlink::monitor().unwrap();
        settle(&mut changes).await;
        let prefix = "10.244.1.0/24".parse().unwrap();
        let route =
            KernelRoute { prefix, target: RouteTarget::Unreachable, source: None, metric: Some(9999) };
        netlink.sync_routes(&BTreeSet::from([route])).await.unwrap();
        assert!(time::timeout(Duration::from_millis(200), changes.changed()).await.is_err());
    });
}

#[test]
fn a_flood_that_the_kernel_has_to_cut_short_is_still_a_change() {
    on_a_node(async |_| {
        let mut changes = Netlink::monitor().unwrap();
        // The task that reads the notices shares this thread: while the batch runs they pile up beyond the buffer.
        let batch: String =
            (0..5000).map(|i| format!("address add 10.{}.{}.1/32 dev lo\n", 1 + i / 250, i % 250)).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        ip(&format!("-batch {}", file.path().display()));
        noticed(&mut changes).await;
        settle(&mut changes).await;
        ip("address add 10.99.0.1/32 dev lo");
        noticed(&mut changes).await;
    });
}

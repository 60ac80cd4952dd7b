//! Each test has a run directory of its own; a restart opens it a second time.

use std::fs;

use hypha_cni::protocol::{PortMapping, Transport};

use super::*;

const HERE: NamespaceId = NamespaceId { device: 4, inode: 7 };

fn add(container: &str) -> Add {
    Add {
        attachment: Attachment {
            container_id: container.into(),
            ifname: "eth0".into(),
            network: "hypha".into(),
        },
        netns: format!("/run/netns/{container}").into(),
        mtu: None,
        addresses: None,
        pod: None,
        port_mappings: Vec::new(),
    }
}

fn open(folder: &tempfile::TempDir) -> Ledger {
    let mut ledger = Ledger::open(folder.path()).unwrap();
    ledger.set_cidrs(&["10.1.0.0/29".parse().unwrap(), "fd00::/64".parse().unwrap()]);
    ledger
}

fn text(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn endpoints_and_their_addresses_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    let mut record = ledger.reserve(&add("a"), HERE, 1450).unwrap();
    record.phase = Phase::Ready;
    ledger.update(record.clone()).unwrap();
    drop(ledger);
    let mut ledger = open(&folder);
    assert_eq!(ledger.get(&record.attachment), Some(&record));
    let next = ledger.reserve(&add("b"), HERE, 1450).unwrap();
    assert_eq!((next.id, text(&next.addresses)), (2, "10.1.0.2 fd00::2".into()));
}

#[test]
fn reserving_again_keeps_number_and_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    let first = ledger.reserve(&add("a"), HERE, 1450).unwrap();
    let again = ledger.reserve(&add("a"), HERE, 1400).unwrap();
    assert_eq!((again.id, &again.addresses, again.mtu), (first.id, &first.addresses, 1400));
    assert_eq!(ledger.records().count(), 1);
}

#[test]
fn a_freed_address_is_reused_last_also_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    ledger.reserve(&add("a"), HERE, 1450).unwrap();
    assert_eq!(text(&ledger.release(&add("a").attachment).unwrap()), "10.1.0.1 fd00::1");
    assert_eq!(ledger.release(&add("a").attachment).unwrap(), Vec::<IpAddr>::new(), "twice is once");
    drop(ledger);
    let mut ledger = open(&folder);
    let order: Vec<_> = ["b", "c", "d", "e", "f", "g"]
        .map(|name| ledger.reserve(&add(name), HERE, 1450).unwrap().addresses[0].to_string())
        .into();
    assert_eq!(order, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.1"]);
}

#[test]
fn addresses_of_another_ipam_plugin_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    let asking = |name: &str, addresses: &[&str]| Add {
        addresses: Some(addresses.iter().map(|address| address.parse().unwrap()).collect()),
        mtu: Some(1300),
        ..add(name)
    };
    let record = ledger.reserve(&asking("a", &["fd77::5/64", "10.1.0.1/24"]), HERE, 1450).unwrap();
    assert_eq!((text(&record.addresses), record.mtu), ("10.1.0.1 fd77::5".into(), 1300));
    let taken = ledger.reserve(&asking("b", &["10.1.0.1/24"]), HERE, 1450);
    assert!(matches!(taken, Err(LedgerError::Ipam(IpamError::InUse { .. }))));
    assert!(ledger.get(&add("b").attachment).is_none(), "a failure leaves nothing");
    let own = ledger.reserve(&add("c"), HERE, 1450).unwrap();
    assert_eq!(text(&own.addresses), "10.1.0.2 fd00::1");
}

#[test]
fn unreadable_files_are_put_aside_and_the_rest_is_used() {
    for (name, file, content) in [
        ("cut short", "1.json", "{\"version\": 1, \"id\": 1,"),
        ("empty", "1.json", ""),
        ("from the future", "1.json", ""),
        ("under a wrong name", "9.json", ""),
        ("the order of reuse", "../ipam.json", "[]"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(&folder);
        let lost = ledger.reserve(&add("a"), HERE, 1450).unwrap();
        let kept = ledger.reserve(&add("b"), HERE, 1450).unwrap();
        drop(ledger);
        let endpoints = folder.path().join("state/endpoints");
        let content = match name {
            "from the future" => serde_json::to_string(&Record { version: 99, ..lost.clone() }).unwrap(),
            "under a wrong name" => serde_json::to_string(&lost).unwrap(),
            _ => content.to_owned(),
        };
        fs::remove_file(endpoints.join("1.json")).unwrap();
        fs::write(endpoints.join(file), content).unwrap();
        fs::write(endpoints.join("7.tmp"), "half").unwrap();
        let ledger = open(&folder);
        assert_eq!(ledger.records().collect::<Vec<_>>(), [&kept], "{name}");
        assert_eq!(fs::read_dir(folder.path().join("state/quarantine")).unwrap().count(), 1, "{name}");
        assert!(!endpoints.join("7.tmp").exists(), "{name}");
    }
}

#[test]
fn a_full_disk_gives_the_address_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    fs::remove_dir_all(folder.path().join("state/endpoints")).unwrap();
    assert!(matches!(ledger.reserve(&add("a"), HERE, 1450), Err(LedgerError::Store(_))));
    assert!(ledger.usage().iter().all(|pool| pool.used == 0));
}

#[test]
fn a_host_port_is_one_endpoints_until_it_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = open(&folder);
    let mapping = |host_ip: Option<&str>, container_port, protocol| PortMapping {
        host_port: 80,
        container_port,
        protocol,
        host_ip: host_ip.map(|text| text.parse().unwrap()),
    };
    let asking = |name: &str, mapping| Add { port_mappings: vec![mapping], ..add(name) };
    let first = asking("a", mapping(None, 8080, Transport::Tcp));
    ledger.reserve(&first, HERE, 1450).unwrap();
    ledger.reserve(&first, HERE, 1450).expect("its own is not in its way");
    ledger.reserve(&asking("udp", mapping(None, 8080, Transport::Udp)), HERE, 1450).unwrap();
    let second = asking("b", mapping(Some("192.0.2.1"), 80, Transport::Tcp));
    let mut ledger = open(&folder);
    let error = ledger.reserve(&second, HERE, 1450).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1:80/tcp") && error.contains("container a"), "{error}");
    assert!(ledger.get(&second.attachment).is_none());
    ledger.release(&first.attachment).unwrap();
    ledger.reserve(&second, HERE, 1450).unwrap();
    let sctp = asking("c", mapping(None, 81, Transport::Sctp));
    assert!(matches!(ledger.reserve(&sctp, HERE, 1450), Err(LedgerError::HostPort(HostPortError::Sctp(_)))));
    assert_eq!(ledger.usage()[0].used, 2, "what was refused holds no address");
}

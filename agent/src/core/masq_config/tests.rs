//! What files in the wild say, and what is wrong with some.

use super::*;

fn exempt_of(text: &str) -> Vec<String> {
    MasqConfig::parse(text).unwrap().exempt.iter().map(ToString::to_string).collect()
}

fn default_exempt() -> Vec<String> {
    MasqConfig::default().exempt.iter().map(ToString::to_string).collect()
}

#[test]
fn without_a_list_the_well_known_ranges_and_link_local_ones_are_exempt() {
    let expected = [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "fe80::/10",
    ];
    assert_eq!(default_exempt(), expected);
    for text in
        ["", "\n", "# nothing yet\n", "{}", "null\n", "resyncInterval: 60s\n", "masqLinkLocal: false\n"]
    {
        assert_eq!(exempt_of(text), expected, "{text:?}");
    }
}

#[test]
fn a_list_takes_the_place_of_the_well_known_ranges() {
    let both = ["10.1.0.0/16", "169.254.0.0/16", "fd00::/8", "fe80::/10"];
    let table: [(&str, &[&str]); 9] = [
        ("nonMasqueradeCIDRs:\n  - 10.1.0.0/16\n  - fd00::/8\n", &both),
        ("nonMasqueradeCIDRs: ['10.1.0.0/16', \"fd00::/8\"]", &both),
        (
            r#"{"nonMasqueradeCIDRs": ["fd00::/8", "10.1.0.0/16", "10.1.0.0/16"], "resyncInterval": "60s"}"#,
            &both,
        ),
        ("nonMasqueradeCIDRs: [10.1.2.3/16, fd00::1/8]", &both),
        ("nonMasqueradeCIDRs: []", &["169.254.0.0/16", "fe80::/10"]),
        ("nonMasqueradeCIDRs:\n", &["169.254.0.0/16", "fe80::/10"]),
        ("nonMasqueradeCIDRs: []\nmasqLinkLocal: true\n", &["fe80::/10"]),
        ("nonMasqueradeCIDRs: []\nmasqLinkLocalIPv6: true\n", &["169.254.0.0/16"]),
        (
            "nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true\n",
            &["0.0.0.0/0", "::/0"],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(exempt_of(text), expected, "{text:?}");
    }
}

#[test]
fn link_local_ranges_are_masqueraded_where_the_file_says_so() {
    let all = MasqConfig::default().exempt.len();
    let both = MasqConfig::parse("masqLinkLocal: true\nmasqLinkLocalIPv6: true\n").unwrap();
    assert_eq!(both.exempt.len(), all - 2);
    assert!(
        !both.exempt.iter().any(|prefix| [LINK_LOCAL, LINK_LOCAL_V6].contains(&prefix.to_string().as_str()))
    );
}

#[test]
fn the_interval_has_a_default_and_a_floor() {
    for (text, expected) in [
        ("", 60),
        ("resyncInterval: 5s", 5),
        ("resyncInterval: 1h", 3600),
        ("resyncInterval: 0s", 1),
        ("resyncInterval: 1ms", 1),
    ] {
        assert_eq!(MasqConfig::parse(text).unwrap().resync, Duration::from_secs(expected), "{text:?}");
    }
}

#[test]
fn keys_of_others_are_told_and_change_nothing() {
    let config =
        MasqConfig::parse("snatTarget: 192.0.2.1\nnonMasqueradeCIDRs: []\nnonMasqCIDRs: [10.0.0.0/8]\n");
    let config = config.unwrap();
    assert_eq!(config.ignored, ["nonMasqCIDRs", "snatTarget"]);
    assert_eq!(config.exempt.len(), 2);
}

#[test]
fn mistakes_are_named() {
    for (text, expected) in [
        ("nonMasqueradeCIDRs: [10.0.0.0/33]", "10.0.0.0/33"),
        ("nonMasqueradeCIDRs: [10.0.0.1]", "10.0.0.1"),
        ("nonMasqueradeCIDRs: [example.org]", "not a prefix"),
        ("nonMasqueradeCIDRs: 10.0.0.0/8", "line 1"),
        ("nonMasqueradeCIDRs: [10.0.0.0/8", "line 1"),
        ("masqLinkLocal: perhaps", "line 1"),
        ("resyncInterval: 60", "1m30s"),
        ("resyncInterval: soon", "soon"),
        ("- 10.0.0.0/8", "line 1"),
        ("just words", "line 1"),
    ] {
        let error = MasqConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

//! Each test has a directory of its own and plays what people and the kubelet do to files.

use std::{os::unix::fs::symlink, time::Instant};

use super::*;

/// What is polled for must have happened by then.
const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, text: &str) {
        fs::write(self.path("config"), text).unwrap();
    }

    fn follower(&self) -> Follower {
        let mut file = Follower::new(&self.path("config"), &self.path("kept"));
        file.read();
        file
    }

    fn watch(&self) -> watch::Receiver<MasqFile> {
        watch(&self.path("config"), &self.path("kept")).unwrap()
    }
}

fn list(prefix: &str) -> String {
    // An interval that no test lives to see: what is noticed is noticed by watching.
    format!("nonMasqueradeCIDRs: [{prefix}]\nresyncInterval: 1h\n")
}

fn exempts(config: &MasqConfig, prefix: &str) -> bool {
    config.exempt.contains(&prefix.parse().unwrap())
}

fn eventually(receiver: &watch::Receiver<MasqFile>, what: &str, condition: impl Fn(&MasqFile) -> bool) {
    let start = Instant::now();
    while !condition(&receiver.borrow()) {
        assert!(start.elapsed() < DEADLINE, "still not: {what}: {:?}", receiver.borrow());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_missing_file_stands_for_the_defaults_and_so_does_a_removed_one() {
    let fixture = Fixture::new();
    let mut file = fixture.follower();
    assert!(!file.state.found && file.state.error.is_none());
    assert_eq!(file.state.config, MasqConfig::default());
    fixture.write(&list("192.0.2.0/24"));
    file.read();
    assert!(file.state.found && exempts(&file.state.config, "192.0.2.0/24"));
    assert!(!exempts(&file.state.config, "10.0.0.0/8"));
    fs::remove_file(fixture.path("config")).unwrap();
    file.read();
    assert_eq!((file.state.found, &file.state.config), (false, &MasqConfig::default()));
}

#[test]
fn a_broken_file_changes_nothing_but_says_so_until_it_is_mended() {
    let fixture = Fixture::new();
    fixture.write(&list("192.0.2.0/24"));
    let mut file = fixture.follower();
    let good = file.state.config.clone();
    for broken in ["nonMasqueradeCIDRs: [", "nonMasqueradeCIDRs: [elsewhere]"] {
        fixture.write(broken);
        file.read();
        assert_eq!(file.state.config, good, "{broken}");
        assert!(file.state.error.is_some(), "{broken}");
    }
    fs::remove_file(fixture.path("config")).unwrap();
    fs::create_dir(fixture.path("config")).unwrap();
    file.read();
    assert!(file.state.config == good && file.state.error.is_some(), "a directory in its place");
    fs::remove_dir(fixture.path("config")).unwrap();
    fixture.write(&list("198.51.100.0/24"));
    file.read();
    assert!(file.state.error.is_none() && exempts(&file.state.config, "198.51.100.0/24"));
}

#[test]
fn what_was_in_force_outlives_the_agent() {
    let fixture = Fixture::new();
    fixture.write(&list("192.0.2.0/24"));
    let good = fixture.follower().state.config;
    fixture.write("nonMasqueradeCIDRs: [");
    let next = fixture.follower();
    assert!(next.state.config == good && next.state.error.is_some());
    // Without a file the defaults were in force, and stay so when one comes that is broken.
    fs::remove_file(fixture.path("config")).unwrap();
    fixture.follower();
    fixture.write("nonMasqueradeCIDRs: [");
    assert_eq!(fixture.follower().state.config, MasqConfig::default());
}

#[test]
fn a_change_is_noticed_in_place_and_by_rename() {
    let fixture = Fixture::new();
    fixture.write(&list("192.0.2.0/24"));
    let receiver = fixture.watch();
    assert!(exempts(&receiver.borrow().config, "192.0.2.0/24"), "what is there at first is there at once");
    fixture.write(&list("198.51.100.0/24"));
    eventually(&receiver, "written in place", |it| exempts(&it.config, "198.51.100.0/24"));
    fs::write(fixture.path("fresh"), list("203.0.113.0/24")).unwrap();
    fs::rename(fixture.path("fresh"), fixture.path("config")).unwrap();
    eventually(&receiver, "renamed", |it| exempts(&it.config, "203.0.113.0/24"));
    fixture.write("nonMasqueradeCIDRs: [");
    eventually(&receiver, "broken", |it| it.error.is_some() && exempts(&it.config, "203.0.113.0/24"));
    fs::remove_file(fixture.path("config")).unwrap();
    eventually(&receiver, "removed", |it| !it.found && it.error.is_none());
}

/// `config` leads through `..data` to a directory named by its time; a new state is a new directory and a renamed link.
#[test]
fn a_configmaps_swap_is_noticed() {
    let fixture = Fixture::new();
    let version = |name: &str, prefix: &str| {
        fs::create_dir(fixture.path(name)).unwrap();
        fs::write(fixture.path(name).join("config"), list(prefix)).unwrap();
        symlink(name, fixture.path("..data_tmp")).unwrap();
        fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    };
    version("..2026_1", "192.0.2.0/24");
    symlink("..data/config", fixture.path("config")).unwrap();
    let receiver = fixture.watch();
    assert!(exempts(&receiver.borrow().config, "192.0.2.0/24"));
    version("..2026_2", "198.51.100.0/24");
    eventually(&receiver, "swapped", |it| exempts(&it.config, "198.51.100.0/24"));
    fs::remove_dir_all(fixture.path("..2026_1")).unwrap();
    version("..2026_3", "203.0.113.0/24");
    eventually(&receiver, "swapped again", |it| exempts(&it.config, "203.0.113.0/24"));
}

#[test]
fn a_directory_that_comes_late_or_is_replaced_is_followed() {
    let fixture = Fixture::new();
    let folder = fixture.path("volume");
    let receiver = watch(&folder.join("config"), &fixture.path("kept")).unwrap();
    assert!(!receiver.borrow().found);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config"), list("192.0.2.0/24")).unwrap();
    eventually(&receiver, "the directory came", |it| exempts(&it.config, "192.0.2.0/24"));
    fs::rename(&folder, fixture.path("old")).unwrap();
    // Whether anybody notices depends on the watch on the old directory, which noticed its own move.
    eventually(&receiver, "the directory went", |it| !it.found);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config"), list("198.51.100.0/24")).unwrap();
    eventually(&receiver, "another came", |it| exempts(&it.config, "198.51.100.0/24"));
}

#[test]
fn what_nobody_tells_of_is_found_after_the_interval() {
    let fixture = Fixture::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let far = elsewhere.path().join("far");
    fs::write(&far, "nonMasqueradeCIDRs: [192.0.2.0/24]\nresyncInterval: 1s\n").unwrap();
    symlink(&far, fixture.path("config")).unwrap();
    let receiver = fixture.watch();
    fs::write(&far, "nonMasqueradeCIDRs: [198.51.100.0/24]\nresyncInterval: 1s\n").unwrap();
    eventually(&receiver, "read again", |it| exempts(&it.config, "198.51.100.0/24"));
}

//! Each test has a directory of its own and plays what people and tools do to files.

use super::*;

struct Fixture {
    folder: tempfile::TempDir,
    directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        Self { folder, directory }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// What a scan reports, in words.
    fn scan(&mut self) -> Vec<String> {
        words(self.directory.scan().unwrap())
    }
}

fn words(events: Vec<Event>) -> Vec<String> {
    let cidr = |object: &Object| match object {
        Object::Node(node) => node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone()).unwrap_or_default(),
        Object::Pod(_) => String::new(),
    };
    let word = |event| match event {
        Event::Apply(object) => format!("+{} {}", object.key(), cidr(&object)),
        Event::Delete(key) => format!("-{key}"),
        Event::Reset(kind, objects) => format!("={kind} {}", objects.len()),
    };
    events.into_iter().map(word).collect()
}

fn node(name: &str, cidr: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: \"{cidr}\"}}\n---\n")
}

#[test]
fn files_come_change_and_go() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(node("a", "1") + &node("b", "1")));
    assert_eq!(fixture.scan(), ["+Node a 1", "+Node b 1"]);
    assert_eq!(fixture.scan(), [""; 0], "nothing changed");
    fixture.write("a.yaml", &node("a", "2"));
    assert_eq!(fixture.scan(), ["-Node b", "+Node a 2"]);
    fixture.write("c.json", r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}}"#);
    assert_eq!(fixture.scan(), ["+Node c "]);
    fs::remove_file(fixture.folder.path().join("a.yaml")).unwrap();
    assert_eq!(fixture.scan(), ["-Node a"]);
}

#[test]
fn a_file_replaced_by_rename_is_followed() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &node("a", "1"));
    fixture.scan();
    fixture.write(".a.yaml.tmp", &node("a", "2"));
    assert_eq!(fixture.scan(), [""; 0], "the temporary file is none of ours");
    fs::rename(fixture.folder.path().join(".a.yaml.tmp"), fixture.folder.path().join("a.yaml")).unwrap();
    assert_eq!(fixture.scan(), ["+Node a 2"]);
}

#[test]
fn a_file_behind_a_swapped_symlink_is_followed() {
    let mut fixture = Fixture::new();
    let path = |name: &str| fixture.folder.path().join(name);
    for version in ["1", "2"] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), node("a", version)).unwrap();
    }
    std::os::unix::fs::symlink("1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", path("a.yaml")).unwrap();
    let swap = (path("..next"), path("..data"));
    std::os::unix::fs::symlink("2", &swap.0).unwrap();
    assert_eq!(fixture.scan(), ["+Node a 1"]);
    fs::rename(swap.0, swap.1).unwrap();
    assert_eq!(fixture.scan(), ["+Node a 2"]);
}

#[test]
fn a_broken_file_keeps_what_it_held() {
    for (name, broken) in [
        ("cut short", "apiVersion: v1\nkind: Node\nmetadata: {name: a"),
        ("not the object it says", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: 7\n"),
    ] {
        let mut fixture = Fixture::new();
        fixture.write("a.yaml", &node("a", "1"));
        fixture.scan();
        fixture.write("a.yaml", broken);
        assert_eq!(fixture.scan(), [""; 0], "{name}");
        fixture.write("a.yaml", &node("a", "2"));
        assert_eq!(fixture.scan(), ["+Node a 2"], "{name}");
    }
}

#[test]
fn a_file_that_is_not_text_harms_nobody() {
    let mut fixture = Fixture::new();
    fs::write(fixture.folder.path().join("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    fs::create_dir(fixture.folder.path().join("folder.yaml")).unwrap();
    fixture.write("notes.txt", &node("x", "1"));
    fixture.write("b.yml", &node("b", "1"));
    assert_eq!(fixture.scan(), ["+Node b 1"]);
}

#[test]
fn of_two_files_with_one_object_the_last_name_wins() {
    let mut fixture = Fixture::new();
    fixture.write("2.yaml", &node("a", "from-2"));
    fixture.write("1.yaml", &node("a", "from-1"));
    assert_eq!(fixture.scan(), ["+Node a from-2"]);
    fs::remove_file(fixture.folder.path().join("2.yaml")).unwrap();
    assert_eq!(fixture.scan(), ["+Node a from-1"]);
}

#[test]
fn an_unreadable_directory_is_an_error_and_loses_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &node("a", "1"));
    fixture.scan();
    fs::rename(fixture.folder.path(), fixture.folder.path().with_extension("away")).unwrap();
    assert!(fixture.directory.scan().is_err());
    fs::rename(fixture.folder.path().with_extension("away"), fixture.folder.path()).unwrap();
    assert_eq!(fixture.scan(), [""; 0]);
}

#[tokio::test]
async fn watching_reports_everything_first_and_changes_as_they_come() {
    let fixture = Fixture::new();
    fixture.write("a.yaml", &node("a", "1"));
    let mut events = watch(fixture.folder.path(), Status::new("dir", String::new())).unwrap();
    let first = vec![events.recv().await.unwrap(), events.recv().await.unwrap()];
    assert_eq!(words(first), ["=Node 1", "=Pod 0"]);
    fixture.write("b.yaml", &node("b", "1"));
    let next = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.unwrap();
    assert_eq!(words(vec![next.unwrap()]), ["+Node b 1"]);
}

#[test]
fn watching_what_is_not_there_says_so() {
    let missing = watch(Path::new("/nonexistent/objects"), Status::new("dir", String::new()));
    assert!(missing.is_err());
}

//! Sequences of events in words, and random ones against a naive model that remembers whole lists.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::{nodes::tests::node, pods::tests::pod};

fn key(kind: Kind, name: &str) -> Key {
    let namespace = if kind == Kind::Pod { "shop" } else { "" };
    Key { kind, namespace: namespace.into(), name: name.into() }
}

fn a_node(name: &str, cidr: &str) -> Object {
    node(name, &[cidr], &["192.0.2.1"]).into()
}

fn a_pod(name: &str, uid: &str) -> Object {
    pod(name, uid, &["10.1.0.5"]).into()
}

#[test]
fn only_what_the_agent_uses_is_a_change() {
    let mut index = Index::default();
    let mut object = node("a", &["10.1.0.0/24"], &["192.0.2.1"]);
    for (what, change, expected) in [
        ("new", None, Some(Kind::Node)),
        ("a heartbeat", None, None),
        ("another label", Some("label"), None),
        ("another prefix", Some("cidr"), Some(Kind::Node)),
    ] {
        match change {
            Some("label") => object.metadata.labels = Some([("zone".to_owned(), "b".to_owned())].into()),
            Some(_) => object.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.2.0.0/24".into()]),
            None => {}
        }
        assert_eq!(index.take(Event::Apply(object.clone().into())).changed, expected, "{what}");
    }
}

#[test]
fn a_kind_is_reset_on_its_own() {
    let mut index = Index::default();
    assert!(!index.is_complete());
    index.take(Event::Reset(Kind::Node, vec![a_node("a", "10.1.0.0/24")]));
    assert_eq!(index.missing().collect::<Vec<_>>(), [Kind::Pod]);
    index.take(Event::Reset(Kind::Pod, vec![a_pod("p", "1")]));
    assert!(index.is_complete());
    let taken = index.take(Event::Reset(Kind::Pod, Vec::new()));
    assert_eq!((taken.changed, index.count(Kind::Node), index.count(Kind::Pod)), (Some(Kind::Pod), 1, 0));
    assert_eq!(index.take(Event::Reset(Kind::Node, vec![a_node("a", "10.1.0.0/24")])).changed, None);
}

#[test]
fn an_unusable_object_changes_nothing_and_is_told() {
    let mut index = Index::default();
    index.take(Event::Reset(Kind::Node, vec![a_node("a", "10.1.0.0/24")]));
    for (what, event) in [
        ("alone", Event::Apply(a_node("a", "ten"))),
        ("in a list", Event::Reset(Kind::Node, vec![a_node("a", "ten")])),
    ] {
        let taken = index.take(event);
        assert_eq!((taken.changed, taken.errors.len()), (None, 1), "{what}");
        assert!(index.nodes.get("a").is_some(), "{what}");
    }
}

/// An object by two small numbers: its name and what it says. The last content is unusable.
#[derive(Clone, Copy, Debug)]
struct Seed(Kind, u8, u8);

const UNUSABLE: u8 = 3;

impl Seed {
    fn name(self) -> String {
        format!("n{}", self.1)
    }

    fn object(self) -> Object {
        let (name, usable) = (self.name(), self.2 != UNUSABLE);
        match self.0 {
            Kind::Node if usable => a_node(&name, &format!("10.{}.0.0/24", self.2)),
            Kind::Node => a_node(&name, "ten"),
            Kind::Pod if usable => a_pod(&name, &self.2.to_string()),
            Kind::Pod => pod(&name, "1", &["ten"]).into(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Seed),
    Delete(Kind, u8),
    Reset(Kind, Vec<(u8, u8)>),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = || prop_oneof![Just(Kind::Node), Just(Kind::Pod)];
    prop_oneof![
        (kind(), 0..5_u8, 0..=UNUSABLE)
            .prop_map(|(kind, name, content)| Step::Apply(Seed(kind, name, content))),
        (kind(), 0..5_u8).prop_map(|(kind, name)| Step::Delete(kind, name)),
        (kind(), prop::collection::vec((0..5_u8, 0..=UNUSABLE), 0..5))
            .prop_map(|(kind, list)| Step::Reset(kind, list)),
    ]
}

/// Contents by kind and name; a list replaces all contents of its kind.
type Naive = BTreeMap<(Kind, String), u8>;

fn naive(model: &mut Naive, step: &Step) {
    match step {
        Step::Apply(seed) if seed.2 == UNUSABLE => {}
        Step::Apply(seed) => drop(model.insert((seed.0, seed.name()), seed.2)),
        Step::Delete(kind, name) => drop(model.remove(&(*kind, format!("n{name}")))),
        Step::Reset(kind, list) => {
            let before = model.clone();
            model.retain(|(it, _), _| it != kind);
            for &(name, content) in list {
                let key = (*kind, format!("n{name}"));
                let kept = model.get(&key).or_else(|| before.get(&key)).copied();
                if let Some(content) = Some(content).filter(|it| *it != UNUSABLE).or(kept) {
                    model.insert(key, content);
                }
            }
        }
    }
}

fn event(step: &Step) -> Event {
    match step {
        Step::Apply(seed) => Event::Apply(seed.object()),
        Step::Delete(kind, name) => Event::Delete(key(*kind, &format!("n{name}"))),
        Step::Reset(kind, list) => Event::Reset(
            *kind,
            list.iter().map(|&(name, content)| Seed(*kind, name, content).object()).collect(),
        ),
    }
}

/// The index in the model's terms.
fn seen(index: &Index) -> Naive {
    let nodes = index.nodes.iter().map(|node| {
        let cidr = node.pod_cidrs[0].to_string();
        ((Kind::Node, node.name.clone()), cidr.split('.').nth(1).unwrap().parse().unwrap())
    });
    let mut seen: Naive = nodes.collect();
    for name in 0..5 {
        let name = format!("n{name}");
        if let Some(pod) = index.pods.get(&PodKey { namespace: "shop".into(), name: name.clone() }) {
            seen.insert((Kind::Pod, name), pod.uid.parse().unwrap());
        }
    }
    seen
}

proptest! {
    #[test]
    fn any_sequence_equals_the_naive_model(steps in prop::collection::vec(step(), 0..40)) {
        let (mut index, mut model) = (Index::default(), Naive::new());
        for step in &steps {
            let before = model.clone();
            naive(&mut model, step);
            let taken = index.take(event(step));
            prop_assert_eq!(&seen(&index), &model);
            let really = before != model;
            // A list that names an object twice may report a change that its second mention takes back.
            if !matches!(step, Step::Reset(_, list) if list.iter().any(|a| list.iter().filter(|b| a.0 == b.0).count() > 1)) {
                prop_assert_eq!(taken.changed.is_some(), really, "{:?}", step);
            }
            prop_assert!(taken.changed.is_some() || !really);
        }
    }
}

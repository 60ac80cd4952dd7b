//! Named cases, and a long random life compared with a model that keeps one time stamp per address.

use proptest::prelude::*;

use super::*;

fn ipam(cidrs: &[&str]) -> Ipam {
    let mut ipam = Ipam::new(Checkpoint::default());
    ipam.set_cidrs(&cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>());
    ipam
}

fn text(addresses: &[IpAddr]) -> String {
    List(addresses).to_string()
}

#[test]
fn the_first_and_last_pod_of_each_prefix_length() {
    for (cidr, first, last, capacity) in [
        ("10.244.1.0/24", "10.244.1.1", "10.244.1.254", 254),
        ("10.244.1.8/30", "10.244.1.9", "10.244.1.10", 2),
        ("10.244.1.8/31", "10.244.1.8", "10.244.1.9", 2),
        ("10.244.1.8/32", "10.244.1.8", "10.244.1.8", 1),
        ("10.0.0.0/8", "10.0.0.1", "10.1.0.0", POOL_MAX),
        ("fd00::/64", "fd00::1", "fd00::1:0", POOL_MAX),
        ("fd00::/120", "fd00::1", "fd00::ff", 255),
        ("fd00::/127", "fd00::", "fd00::1", 2),
        ("fd00::7/128", "fd00::7", "fd00::7", 1),
        ("::/0", "::1", "::1:0", POOL_MAX),
    ] {
        let pool = Pool::new(cidr.parse().unwrap());
        assert_eq!(pool.capacity, capacity, "{cidr}");
        assert_eq!(pool.address(0).to_string(), first, "{cidr}");
        assert_eq!(pool.address(pool.capacity - 1).to_string(), last, "{cidr}");
    }
}

#[test]
fn a_dual_stack_node_gives_one_address_of_each_family() {
    let mut ipam = ipam(&["10.244.1.0/24", "fd00:1::/64"]);
    assert_eq!(text(&ipam.allocate(1, &[]).unwrap()), "10.244.1.1, fd00:1::1");
    assert_eq!(text(&ipam.allocate(2, &[]).unwrap()), "10.244.1.2, fd00:1::2");
}

#[test]
fn the_same_endpoint_gets_the_same_addresses_again() {
    let mut ipam = ipam(&["10.244.1.0/24"]);
    let first = ipam.allocate(1, &[]).unwrap();
    assert_eq!(ipam.allocate(1, &[]).unwrap(), first);
    assert_eq!(ipam.allocate(1, &first).unwrap(), first);
    let other = ["10.244.1.77".parse().unwrap()];
    assert!(matches!(ipam.allocate(1, &other), Err(IpamError::Differs { owner: 1, .. })));
}

#[test]
fn when_one_family_is_exhausted_the_other_loses_no_address() {
    let mut ipam = ipam(&["10.244.1.8/32", "fd00::/64"]);
    ipam.allocate(1, &[]).unwrap();
    assert!(matches!(ipam.allocate(2, &[]), Err(IpamError::Exhausted { capacity: 1, .. })));
    ipam.release(1);
    assert_eq!(text(&ipam.allocate(3, &[]).unwrap()), "10.244.1.8, fd00::2");
}

#[test]
fn a_second_pool_of_a_family_is_used_when_the_first_is_full() {
    let mut ipam = ipam(&["10.244.1.8/32", "10.244.9.0/24"]);
    assert_eq!(text(&ipam.allocate(1, &[]).unwrap()), "10.244.1.8");
    assert_eq!(text(&ipam.allocate(2, &[]).unwrap()), "10.244.9.1");
}

#[test]
fn a_node_without_pod_cidr_has_no_addresses() {
    assert_eq!(ipam(&[]).allocate(1, &[]), Err(IpamError::NoPool));
}

#[test]
fn requested_addresses_are_exclusive_wherever_they_are() {
    let mut ipam = ipam(&["10.244.1.0/24"]);
    let (inside, outside) = ("10.244.1.1".parse().unwrap(), "192.0.2.7".parse().unwrap());
    ipam.allocate(1, &[inside, outside]).unwrap();
    assert_eq!(ipam.allocate(2, &[outside]), Err(IpamError::InUse { address: outside, owner: 1 }));
    assert_eq!(text(&ipam.allocate(3, &[]).unwrap()), "10.244.1.2");
    ipam.release(1);
    assert!(ipam.allocate(2, &[outside]).is_ok());
}

#[test]
fn a_changed_cidr_keeps_what_is_held_and_remembers_its_order() {
    let mut ipam = ipam(&["10.244.1.0/24"]);
    ipam.allocate(1, &[]).unwrap();
    ipam.allocate(2, &[]).unwrap();
    ipam.set_cidrs(&["10.244.7.0/24".parse().unwrap()]);
    assert_eq!(text(&ipam.allocate(3, &[]).unwrap()), "10.244.7.1");
    assert_eq!(text(&ipam.release(1)), "10.244.1.1");
    ipam.set_cidrs(&["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(text(&ipam.allocate(4, &[]).unwrap()), "10.244.1.3");
}

#[test]
fn without_its_checkpoint_everything_below_the_highest_held_address_counts_as_used() {
    let mut ipam = Ipam::new(Checkpoint::default());
    ipam.adopt(1, "10.244.1.5".parse().unwrap(), false).unwrap();
    ipam.set_cidrs(&["10.244.1.0/29".parse().unwrap()]);
    let order: Vec<_> = (2..7).map(|owner| text(&ipam.allocate(owner, &[]).unwrap())).collect();
    assert_eq!(order, ["10.244.1.6", "10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4"]);
}

#[test]
fn a_checkpoint_with_nonsense_in_it_does_no_harm() {
    let pool = PoolCheckpoint { cidr: "10.244.1.0/30".parse().unwrap(), next: 900, freed: vec![7, 1, 1, 0] };
    let mut ipam = Ipam::new(Checkpoint { pools: vec![pool] });
    ipam.set_cidrs(&["10.244.1.0/30".parse().unwrap()]);
    assert_eq!(text(&ipam.allocate(1, &[]).unwrap()), "10.244.1.2");
    assert_eq!(text(&ipam.allocate(2, &[]).unwrap()), "10.244.1.1");
    assert!(ipam.allocate(3, &[]).is_err());
}

/// What a pod's life and the agent's can do to the addresses.
#[derive(Clone, Debug)]
enum Step {
    Allocate(Owner),
    Request(Owner, u32),
    Release(Owner),
    /// The agent is killed: what it wrote is what the next one finds.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u32..24).prop_map(Step::Allocate),
        1 => (1_u32..24, 0_u32..14).prop_map(|(owner, offset)| Step::Request(owner, offset)),
        3 => (1_u32..24).prop_map(Step::Release),
        1 => Just(Step::Restart),
    ]
}

/// The obvious way: one stamp per address, 0 for never used; the free address with the lowest stamp is next.
#[derive(Default)]
struct Model {
    stamps: [u64; 14],
    owners: BTreeMap<Owner, usize>,
    clock: u64,
}

impl Model {
    fn is_free(&self, slot: usize) -> bool {
        self.owners.values().all(|held| *held != slot)
    }

    fn allocate(&mut self, owner: Owner) -> Option<usize> {
        let next =
            (0..self.stamps.len()).filter(|slot| self.is_free(*slot)).min_by_key(|s| (self.stamps[*s], *s));
        let slot = self.owners.get(&owner).copied().or(next)?;
        self.owners.insert(owner, slot);
        Some(slot)
    }

    fn release(&mut self, owner: Owner) -> Option<usize> {
        let slot = self.owners.remove(&owner)?;
        self.clock += 1;
        self.stamps[slot] = self.clock;
        Some(slot)
    }
}

proptest! {
    #[test]
    fn a_long_life_with_crashes_is_the_models(steps in prop::collection::vec(step(), 1..200)) {
        let cidr: IpNet = "10.9.0.0/28".parse().unwrap();
        let address = |slot: usize| IpAddr::from([10, 9, 0, 1 + slot as u8]);
        let mut model = Model::default();
        let mut real = ipam(&["10.9.0.0/28"]);
        let mut disk = Checkpoint::default();
        // What the endpoints' records say: address and whether it was requested.
        let mut records = BTreeMap::new();
        for step in steps {
            match step {
                Step::Allocate(owner) => {
                    let expected = model.allocate(owner).map(address);
                    let got = real.allocate(owner, &[]).ok().map(|addresses| addresses[0]);
                    prop_assert_eq!(got, expected);
                    if let Some(address) = got {
                        records.entry(owner).or_insert((address, false));
                    }
                }
                Step::Request(owner, offset) => {
                    let slot = offset as usize;
                    let got = real.allocate(owner, &[address(slot)]).is_ok();
                    let held = model.owners.get(&owner).copied();
                    let expected = held.map_or(model.is_free(slot), |held| held == slot);
                    prop_assert_eq!(got, expected);
                    if got {
                        model.owners.insert(owner, slot);
                        records.entry(owner).or_insert((address(slot), true));
                    }
                }
                Step::Release(owner) => {
                    let expected: Vec<_> = model.release(owner).map(address).into_iter().collect();
                    prop_assert_eq!(real.release(owner), expected);
                    disk = real.checkpoint();
                    records.remove(&owner);
                }
                Step::Restart => {
                    real = Ipam::new(disk.clone());
                    for (owner, (address, requested)) in &records {
                        real.adopt(*owner, *address, *requested).unwrap();
                    }
                    real.set_cidrs(&[cidr]);
                }
            }
            prop_assert_eq!(real.usage()[0].used, model.owners.len());
        }
    }
}

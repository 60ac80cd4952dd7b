//! The fragments' maps, as the cases look at them and change them.

use aya::maps::{Array, HashMap, Map, MapData};
use datapath_ebpf::{
    flow::ticks_of_seconds,
    maps::{Fragment, FragmentKey, HELD_MAX, Held},
};

use crate::node::Node;

fn open(node: &Node, name: &str) -> Map {
    let data = MapData::from_pin(node.bpf_dir().join(name)).unwrap();
    Map::from_map_data(data).unwrap()
}

/// Datagrams under way.
pub fn datagrams(node: &Node) -> Vec<(FragmentKey, Fragment)> {
    let map = HashMap::<_, FragmentKey, Fragment>::try_from(open(node, "fragments")).unwrap();
    map.iter().map(Result::unwrap).collect()
}

/// Makes the datagrams under way this much older.
pub fn age_datagrams(node: &Node, seconds: u32) {
    let mut map = HashMap::<_, FragmentKey, Fragment>::try_from(open(node, "fragments")).unwrap();
    for (key, mut datagram) in datagrams(node) {
        datagram.created = datagram.created.wrapping_sub(ticks_of_seconds(seconds));
        map.insert(&key, &datagram, 0).unwrap();
    }
}

fn slots(node: &Node) -> Array<MapData, Held> {
    Array::try_from(open(node, "held")).unwrap()
}

/// The frames that are kept.
pub fn kept(node: &Node) -> Vec<Vec<u8>> {
    let slots = slots(node);
    let held = (0..HELD_MAX as u32).map(|index| slots.get(&index, 0).unwrap());
    held.filter(|slot| slot.state & Held::STATE == Held::FULL)
        .map(|slot| slot.frame[..slot.length as usize].to_vec())
        .collect()
}

/// Makes one kept frame this much older.
pub fn age(node: &Node, frame: &[u8], seconds: u32) {
    change(node, |slot| {
        if slot.frame[..slot.length as usize] == *frame {
            slot.created = slot.created.wrapping_sub(ticks_of_seconds(seconds));
        }
    });
}

/// Puts every slot into a state.
pub fn mark_all(node: &Node, state: u64) {
    change(node, |slot| slot.state = state);
}

fn change(node: &Node, change: impl Fn(&mut Held)) {
    let mut slots = slots(node);
    for index in 0..HELD_MAX as u32 {
        let mut slot = slots.get(&index, 0).unwrap();
        change(&mut slot);
        slots.set(index, &slot, 0).unwrap();
    }
}

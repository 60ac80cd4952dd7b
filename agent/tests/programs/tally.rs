//! The counters, quickly: one program's after each run, all of them now and then.

use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};
use datapath_ebpf::{
    DropReason, Forward, Outcome, Program,
    maps::Counter,
    outcome::{OUTCOMES, counter_index},
};

use super::run::Moved;

/// What the counters were when somebody looked last.
pub struct Tally {
    map: PerCpuArray<MapData, Counter>,
    counted: Vec<(u64, u64)>,
}

impl Tally {
    pub fn new(bpf_dir: &Path) -> Self {
        let map = Map::PerCpuArray(MapData::from_pin(bpf_dir.join("counters")).unwrap());
        let mut tally = Self { map: map.try_into().unwrap(), counted: Vec::new() };
        tally.counted = (0..slots()).map(|slot| tally.read(slot)).collect();
        tally
    }

    fn read(&self, slot: usize) -> (u64, u64) {
        let values = self.map.get(&(slot as u32), 0).unwrap();
        (values.iter().map(|value| value.packets).sum(), values.iter().map(|value| value.bytes).sum())
    }

    /// Whether this outcome was counted once, with these bytes; from now on it must have been.
    pub fn expect(&mut self, program: Program, outcome: Outcome, bytes: usize) -> bool {
        let slot = counter_index(program, outcome.number()) as usize;
        let (packets, sum) = &mut self.counted[slot];
        (*packets, *sum) = (*packets + 1, *sum + bytes as u64);
        self.read(slot) == self.counted[slot]
    }

    /// What one program has counted since somebody looked.
    pub fn moved(&mut self, program: Program) -> Moved {
        let first = program as usize * OUTCOMES;
        let outcomes = (0..OUTCOMES).filter(|number| name(*number).is_some());
        let slots = outcomes.map(|number| (first + number, name(number).unwrap_or_default()));
        let mut moved = Moved::new();
        for (slot, outcome) in slots {
            let (packets, bytes) = self.read(slot);
            let (packets_before, bytes_before) = std::mem::replace(&mut self.counted[slot], (packets, bytes));
            if (packets, bytes) != (packets_before, bytes_before) {
                moved.insert((program.name(), outcome), (packets - packets_before, bytes - bytes_before));
            }
        }
        moved
    }

    /// Every counter that is not what it was, in words; from now on it may be.
    pub fn strays(&mut self) -> Vec<String> {
        let now: Vec<_> = (0..slots()).map(|slot| self.read(slot)).collect();
        let before = std::mem::replace(&mut self.counted, now);
        let differing =
            (0..).zip(before.iter().zip(&self.counted)).filter(|(_, (before, now))| before != now);
        differing
            .map(|(slot, (before, now))| {
                let program = Program::ALL[slot / OUTCOMES].name();
                format!("{program} {}: {before:?} -> {now:?}", name(slot % OUTCOMES).unwrap_or("?"))
            })
            .collect()
    }
}

/// Slots that a program has.
fn slots() -> usize {
    Program::ALL.len() * OUTCOMES
}

fn name(number: usize) -> Option<&'static str> {
    let forward = Forward::ALL.iter().find(|&&forward| forward as usize == number);
    let reason = DropReason::ALL.iter().find(|&&reason| reason as usize == number);
    forward.map(|forward| forward.name()).or(reason.map(|reason| reason.name()))
}

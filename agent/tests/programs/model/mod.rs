//! The programs against a plain model of the whole translation, on random sequences of events.
//!
//! [`translation`] is a node without BPF: endpoints, sockets, flows and ways back in ordinary maps, and for each hook a function from a
//! frame to what must become of it. It shares no logic with the programs: it parses, translates and sums by the book. [`bench`] plays
//! a sequence of [`event`]s to both, and compares verdict, mark, counter, every byte, and every entry of `conntrack` and `nat` after each
//! event. Time is not waited for: the entries are made older. A sequence that shows a difference is [shrunk](mod@shrink) and printed as a
//! file for `sequences/`, whose files are replayed at every run.
//!
//! A few seconds of sequences by default. For long:
//!
//! ```text
//! HYPHA_SEQUENCES=100000 cargo test -p hypha-agent --test programs -- model::random
//! ```
//!
//! `HYPHA_SEED` repeats a run.

mod bench;
mod build;
mod claim;
mod compare;
mod datagrams;
mod errors;
mod event;
mod flow;
mod generate;
mod kept;
mod link;
mod mistakes;
pub mod packet;
mod resolve;
mod rewrite;
mod rules;
mod shrink;
pub mod sums;
mod time;
mod translation;
mod world;

use std::time::{Duration, Instant};

use self::{
    bench::{Bench, Difference},
    event::Event,
    generate::Random,
    rules::Rules,
};
use super::{BOTH, Case, cases, node::Node, properties};

pub fn cases() -> Vec<Case> {
    cases![BOTH => [random_sequences_go_as_the_model_says, kept_sequences_go_as_the_model_says, mistakes_are_found]]
}

/// How many sequences to play, instead of as many as fit into [`BUDGET`].
const SEQUENCES: &str = "HYPHA_SEQUENCES";
const BUDGET: Duration = Duration::from_secs(6);
/// Fewer than this in the budget would find nothing.
const FEWEST: u64 = 100;

fn random_sequences_go_as_the_model_says(node: &mut Node) {
    let (seed, family) = (properties::seed(), node.family);
    let wanted: Option<u64> = std::env::var(SEQUENCES).ok().map(|count| count.parse().unwrap());
    println!("{}={seed} repeats the sequences of {family:?}", properties::SEED);
    let mut bench = Bench::new(node);
    let (start, mut played, mut events) = (Instant::now(), 0, 0);
    while wanted.map_or(played < FEWEST || start.elapsed() < BUDGET, |wanted| played < wanted) {
        let sequence = generate::sequence(&mut Random::new(seed, played), bench.remotes.len());
        events += sequence.len();
        played += 1;
        if let Err(difference) = bench.play(&Rules::default(), &sequence) {
            let (events, difference) = smallest(&mut bench, &Rules::default(), sequence, difference);
            let text = kept::text(&difference.what, family, &events);
            panic!(
                "sequence {played} of {}={seed}: at event {} of {}:\n{}\nto be kept in sequences/:\n{text}",
                properties::SEED,
                difference.at + 1,
                events.len(),
                difference.what
            );
        }
    }
    let rate = played as f64 / start.elapsed().as_secs_f64();
    println!("{family:?}: {played} sequences, {events} events, {rate:.0} sequences a second");
}

/// The smallest sequence that still shows a difference, and that one.
fn smallest(
    bench: &mut Bench<'_>,
    rules: &Rules,
    sequence: Vec<Event>,
    difference: Difference,
) -> (Vec<Event>, Difference) {
    let events = shrink::shrink(sequence, |events| bench.play(rules, events).is_err());
    // A port that the program happens to choose may hide the difference; then the first one is as good.
    let difference = bench.play(rules, &events).err().unwrap_or(difference);
    (events, difference)
}

fn kept_sequences_go_as_the_model_says(node: &mut Node) {
    let family = node.family;
    let mut bench = Bench::new(node);
    for (name, kept) in kept::all(family) {
        if let Err(difference) = bench.play(&Rules::default(), &kept.events) {
            panic!("{name} ({}): at event {}: {}", kept.about, difference.at + 1, difference.what);
        }
    }
}

fn mistakes_are_found(node: &mut Node) {
    mistakes::are_found(&mut Bench::new(node));
}

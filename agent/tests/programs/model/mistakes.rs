//! The comparison must be able to fail: a model that is wrong in one rule differs from the programs, in a few events.

use super::{bench::Bench, generate, generate::Random, rules::Rules, smallest};

/// Sequences within which a mistake must show.
const ENOUGH: u64 = 3000;
/// Events that suffice to show any of them.
const FEW: usize = 6;
/// Any: the sequences need not be the same ones as elsewhere, only the same at every run.
const SEED: u64 = 3;

type Mistake = (&'static str, fn(&mut Rules));

const MISTAKES: &[Mistake] = &[
    ("any RST ends a connection", |rules| rules.rst_must_be_credible = false),
    ("a SYN does not reopen", |rules| rules.reopens = false),
    ("sockets of the host are not spared", |rules| rules.spares_sockets = false),
    ("checksums inside of ICMP errors stay", |rules| rules.quoted_sums_follow = false),
    ("what the world opens is not followed", |rules| rules.follows_inbound = false),
    ("datagrams without answer live for a minute", |rules| rules.timeouts[3] = 60),
    ("established connections end after two minutes", |rules| rules.timeouts[1] = 120),
];

/// Those that only one family can make.
const MISTAKES_V4: &[Mistake] = &[
    ("a UDP checksum of zero is changed", |rules| rules.zero_udp_stays = false),
    ("wrong header checksums pass", |rules| rules.checks_headers = false),
];

pub fn are_found(bench: &mut Bench<'_>) {
    let v4 = bench.remotes[0].is_v4();
    for (name, make) in MISTAKES.iter().chain(if v4 { MISTAKES_V4 } else { &[] }) {
        let mut rules = Rules::default();
        make(&mut rules);
        let found = (0..ENOUGH).find_map(|number| {
            let sequence = generate::sequence(&mut Random::new(SEED, number), bench.remotes.len());
            bench.play(&rules, &sequence).err().map(|difference| (sequence, difference))
        });
        let (sequence, difference) = found.unwrap_or_else(|| panic!("{name}: nothing noticed"));
        let (before, (events, _)) = (sequence.len(), smallest(bench, &rules, sequence, difference));
        println!("{name}: {before} events, of which {} show it", events.len());
        assert!(events.len() <= FEW, "{name}: {events:#?}");
        assert!(bench.play(&Rules::default(), &events).is_ok(), "{name}: it is the model that is right");
    }
}

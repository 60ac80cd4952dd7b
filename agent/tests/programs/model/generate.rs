//! Random sequences of events, the same for the same seed.

use super::{
    event::{Content, ERRORS, Event, OWNER_PORTS, Owner, Quirk, REMOTE_PORTS, Shot, Way},
    world::Pod,
};

/// Events of the longest sequence.
const LONGEST: u64 = 40;

/// SplitMix64: small, and good enough to choose events by.
pub struct Random(u64);

impl Random {
    /// The numbers of one sequence of a run.
    pub fn new(seed: u64, sequence: u64) -> Self {
        let mut random = Self(seed ^ sequence.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    /// One of these by weight.
    fn weighted<T: Clone>(&mut self, of: &[(u64, T)]) -> T {
        let mut left = self.below(of.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in of {
            if left < *weight {
                return value.clone();
            }
            left -= weight;
        }
        unreachable!("the weights' sum is above every number below it")
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What a sequence has more of than others: rare things meet each other only where both are frequent.
#[derive(Clone, Copy)]
struct Mood {
    /// Pods come and go.
    churn: bool,
    /// Time passes.
    patient: bool,
    /// Most packets are parts of datagrams.
    fragments: bool,
    /// Nothing is spoiled.
    tidy: bool,
}

/// A sequence of events. Each has a few flows of its own, which most of its packets belong to.
pub fn sequence(random: &mut Random, remotes: usize) -> Vec<Event> {
    let length = 2 + random.below(LONGEST - 1);
    let flows: Vec<Shot> = (0..1 + random.below(4)).map(|_| flow(random, remotes)).collect();
    let mood = Mood {
        churn: random.once_in(4),
        patient: random.once_in(4),
        fragments: random.once_in(4),
        tidy: random.once_in(4),
    };
    (0..length).map(|_| event(random, mood, &flows, remotes)).collect()
}

fn flow(random: &mut Random, remotes: usize) -> Shot {
    let any = |random: &mut Random, count: usize| random.below(count as u64) as usize;
    Shot {
        way: Way::Out,
        owner: random.weighted(&[(5, Owner::A), (2, Owner::B), (2, Owner::Host)]),
        port: any(random, OWNER_PORTS.len()),
        remote: if random.once_in(6) { any(random, remotes) } else { any(random, 2) },
        remote_port: any(random, REMOTE_PORTS.len()),
        content: plain(random),
        quirks: Vec::new(),
    }
}

/// Kinds of events.
#[derive(Clone, Copy)]
enum Kind {
    Packet,
    Wait,
    Collect,
    Remove,
    Add,
    Listen,
}

fn event(random: &mut Random, mood: Mood, flows: &[Shot], remotes: usize) -> Event {
    let often = |mood: bool, usual, much| if mood { much } else { usual };
    let kinds = [
        (80, Kind::Packet),
        (often(mood.patient, 10, 30), Kind::Wait),
        (often(mood.patient, 5, 15), Kind::Collect),
        (often(mood.churn, 2, 12), Kind::Remove),
        (often(mood.churn, 2, 12), Kind::Add),
        (1, Kind::Listen),
    ];
    match random.weighted(&kinds) {
        Kind::Packet => Event::Packet(shot(random, mood, flows, remotes)),
        Kind::Wait => Event::Wait(random.one(&[0.25, 5.5, 20.5, 31.5, 61.5, 120.5, 181.5, 601.5, 7441.5])),
        Kind::Collect => Event::Collect,
        Kind::Remove => Event::Remove(random.one(&Pod::ALL)),
        Kind::Add => Event::Add(random.one(&Pod::ALL)),
        Kind::Listen => Event::Listen(random.once_in(2)),
    }
}

fn shot(random: &mut Random, mood: Mood, flows: &[Shot], remotes: usize) -> Shot {
    let mut shot = if random.once_in(8) { flow(random, remotes) } else { random.one(flows) };
    shot.way = random.weighted(&[(10, Way::Out), (8, Way::Back), (2, Way::In), (1, Way::OutByStack)]);
    shot.content = match &shot.content {
        Content::Tcp { .. } => tcp(random),
        Content::Udp { .. } => udp(random),
        Content::Echo { .. } => echo(random, matches!(shot.way, Way::Back | Way::In)),
        other => other.clone(),
    };
    if random.once_in(6) {
        shot.content = error(random, &shot.content);
    }
    if mood.fragments && !random.once_in(4) {
        shot.quirks.push(fragment(random));
    }
    if random.once_in(if mood.tidy { 40 } else { 5 }) {
        shot.quirks.extend(quirks(random));
    }
    shot
}

fn fragment(random: &mut Random) -> Quirk {
    let (from, to) = random.one(&[(0, 1), (0, 2), (1, 2), (2, 255), (1, 255), (0, 255)]);
    Quirk::Part { id: random.below(2) as u8, from, to }
}

fn plain(random: &mut Random) -> Content {
    match random.below(20) {
        0..9 => tcp(random),
        9..15 => udp(random),
        15..18 => echo(random, false),
        18 => Content::Sctp,
        _ => Content::Other,
    }
}

fn tcp(random: &mut Random) -> Content {
    const FLAGS: [(u64, u8); 10] = [
        (6, 0x02),
        (4, 0x12),
        (8, 0x10),
        (3, 0x18),
        (3, 0x11),
        (3, 0x04),
        (3, 0x14),
        (1, 0x01),
        (1, 0x00),
        (1, 0xff),
    ];
    let flags = if random.once_in(20) { random.below(256) as u8 } else { random.weighted(&FLAGS) };
    let small = |random: &mut Random| random.below(4) as u8;
    Content::Tcp { flags, seq: small(random), ack: small(random), length: random.one(&[0, 0, 1, 2, 13]) }
}

fn udp(random: &mut Random) -> Content {
    Content::Udp { checksum: !random.once_in(4), length: random.one(&[0, 1, 8, 33]) }
}

fn echo(random: &mut Random, answer: bool) -> Content {
    let reply = if random.once_in(8) { !answer } else { answer };
    Content::Echo { reply, length: random.one(&[0, 3, 32]) }
}

fn error(random: &mut Random, about: &Content) -> Content {
    let about = match about {
        // What an error is about came the other way.
        Content::Echo { reply, length } => Content::Echo { reply: !reply, length: *length },
        other => other.clone(),
    };
    Content::Error {
        kind: random.below(ERRORS.len() as u64) as usize,
        about: Box::new(about),
        quoted: random.one(&[3, 4, 5, 6, 8, 8, 12, 18, 20, 255]),
        by_router: random.once_in(2),
        inside: if random.once_in(3) { quirks(random) } else { Vec::new() },
    }
}

fn quirks(random: &mut Random) -> Vec<Quirk> {
    let count = if random.once_in(4) { 2 } else { 1 };
    (0..count).map(|_| quirk(random)).collect()
}

fn quirk(random: &mut Random) -> Quirk {
    match random.below(19) {
        0 => Quirk::LastHop,
        1..4 => Quirk::Extensions(random.one(&[1, 1, 2, 4, 5])),
        4..8 => fragment(random),
        8 => Quirk::HeaderSum,
        9 | 10 => Quirk::TransportSum,
        11 => Quirk::Length(random.one(&[-40, -8, -1, 1, 8])),
        12 => Quirk::DataOffset(random.one(&[0, 4, 6, 15])),
        13 => Quirk::UdpLength(random.one(&[-9, -1, 1])),
        14 => Quirk::Cut(random.one(&[1, 4, 8, 12, 24])),
        15 => Quirk::Padding(random.one(&[1, 6, 20])),
        _ => Quirk::Flip { bit: random.below(100 * 8) as u16, repaired: random.once_in(2) },
    }
}

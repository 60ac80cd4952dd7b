//! Making a failing sequence as small as it gets: fewer events first (delta debugging), simpler ones then.

use super::event::Event;

/// How often a sequence may be tried in all.
const TRIES: usize = 2000;

/// The smallest sequence found for which `fails` still holds.
pub fn shrink(events: Vec<Event>, mut fails: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut tries = 0;
    let mut still_fails = |events: &[Event]| {
        tries += 1;
        tries <= TRIES && fails(events)
    };
    let mut smallest = events;
    loop {
        let before = smallest.clone();
        smallest = leave_out(smallest, &mut still_fails);
        smallest = simplify(smallest, &mut still_fails);
        if smallest == before {
            return smallest;
        }
    }
}

/// Leaves out runs of events, long ones first, down to single ones.
fn leave_out(mut events: Vec<Event>, fails: &mut impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut length = events.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < events.len() {
            let end = (at + length).min(events.len());
            let without = [&events[..at], &events[end..]].concat();
            if fails(&without) { events = without } else { at = end }
        }
        if length == 1 {
            return events;
        }
        length /= 2;
    }
}

fn simplify(mut events: Vec<Event>, fails: &mut impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    for at in 0..events.len() {
        while let Some(simpler) = events[at].simpler().into_iter().find_map(|event| {
            let mut events = events.clone();
            events[at] = event;
            fails(&events).then_some(events)
        }) {
            events = simpler;
        }
    }
    events
}

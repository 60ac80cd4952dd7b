//! What a program left against what the model says.

use datapath_ebpf::{
    Forward, Outcome, Program,
    maps::{self, FlowKey, MARK_HANDLED},
};

use super::{
    flow::{Direction, Flow},
    translation::Back,
};

/// What a run left.
pub struct Ran {
    pub verdict: i32,
    pub mark: u32,
    pub frame: Vec<u8>,
}

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// Verdict, mark and every byte.
pub fn ran(program: Program, outcome: Outcome, frame: &[u8], ran: &Ran) -> Result<(), String> {
    let (verdict, mark) = verdict_and_mark(program, outcome);
    if (ran.verdict, ran.mark) != (verdict, mark) {
        return Err(format!(
            "{outcome:?}: verdict and mark {:?}, expected {:?}",
            (ran.verdict, ran.mark),
            (verdict, mark)
        ));
    }
    // Nobody sees what is left of a packet that was dropped.
    if matches!(outcome, Outcome::Drop(_)) || ran.frame == frame {
        return Ok(());
    }
    let differs = ran.frame.iter().zip(frame).position(|(a, b)| a != b).unwrap_or(frame.len());
    Err(format!(
        "{outcome:?}: frames differ from byte {differs}\n    left     {}\n    expected {}",
        hex(&ran.frame),
        hex(frame)
    ))
}

fn verdict_and_mark(program: Program, outcome: Outcome) -> (i32, u32) {
    let Outcome::Forward(forward) = outcome else { return (DROP, 0) };
    if forward == Forward::Held {
        return (DROP, 0);
    }
    if program == Program::ToUplink || forward == Forward::Stack {
        return (NEXT, 0);
    }
    // Marks end where packets cross into a pod's namespace.
    let into_pod = matches!(forward, Forward::Pod | Forward::Unmasquerade)
        || (program, forward) == (Program::FromUplink, Forward::RelatedError);
    (REDIRECT, if into_pod { 0 } else { MARK_HANDLED })
}

/// An entry of `conntrack`.
pub fn flow(key: &FlowKey, model: Option<&Flow>, map: Option<&maps::Flow>, ahead: i64) -> Result<(), String> {
    let (model, map) = match (model, map) {
        (None, None) => return Ok(()),
        (Some(model), Some(map)) => (model, map),
        (model, map) => return Err(format!("conntrack {key:?}: {map:?}, expected {model:?}")),
    };
    let (nat_address, nat_port) = model.nat.unwrap_or((datapath_ebpf::Ip::UNSPECIFIED, 0));
    let flags = u8::from(model.inbound()) | if model.host { maps::Flow::HOST } else { 0 };
    let same = map.nat_address == nat_address
        && map.nat_port.get() == nat_port
        && map.ifindex == model.ifindex
        && map.flags == flags
        && map.reserved == 0
        && model.created.holds_nanoseconds(map.created, ahead)
        && direction(&model.sent, &map.sent, ahead)
        && direction(&model.received, &map.received, ahead);
    if same {
        return Ok(());
    }
    Err(format!(
        "conntrack {key:?}:\n    is       {map:?}\n    expected {model:?}\n    (clock ahead by {ahead})"
    ))
}

fn direction(model: &Direction, map: &maps::Direction, ahead: i64) -> bool {
    let seen = match model.last_seen {
        None => map.last_seen == 0,
        Some(span) => span.holds_ticks(map.last_seen, ahead),
    };
    let is = (map.packets, map.bytes, map.end, map.ack, map.tcp_flags, map.reserved);
    seen && is == (model.packets, model.bytes, model.end, model.ack, model.tcp_flags, [0; 3])
}

/// An entry of `nat`.
pub fn back(
    key: &FlowKey,
    model: Option<&Back>,
    map: Option<&maps::Reverse>,
    ahead: i64,
) -> Result<(), String> {
    let same = match (model, map) {
        (None, None) => true,
        (Some(model), Some(map)) => {
            (map.address, map.port.get(), map.flags, map.reserved)
                == (model.address, model.port, if model.host { maps::Flow::HOST } else { 0 }, 0)
                && model.created.holds_ticks(map.created, ahead)
        }
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("nat {key:?}: {map:?}, expected {model:?}")) }
}

/// Keys of a whole map.
pub fn keys<'a>(name: &str, map: &[FlowKey], model: impl Iterator<Item = &'a FlowKey>) -> Result<(), String> {
    let mut map = map.to_vec();
    map.sort_unstable();
    let model: Vec<FlowKey> = model.copied().collect();
    if map == model { Ok(()) } else { Err(format!("{name} has {map:?}, expected {model:?}")) }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Plays sequences of events to the real programs and to the model at once.

use std::{
    collections::BTreeSet,
    net::{IpAddr, TcpListener, UdpSocket},
};

use aya::maps::{HashMap, Map, MapData};
use datapath_ebpf::{
    Ip, Outcome, Program,
    maps::{Flow, FlowKey, Fragment, FragmentKey, Reverse},
};
use hypha_agent::datapath::{Settings, Sweep, now, test_run};

use super::{
    compare::{self, Ran},
    event::{BOUND, CONNECTED, Event, LISTENED, MAY_LISTEN, REMOTE_PORTS},
    packet::{self, TCP, UDP},
    resolve::{Hook, Resolved},
    rules::Rules,
    time,
    translation::{Model, Step, Stop, Verdict, key_of},
    world::{Pod, Socket, World},
};
use crate::{node::Node, tally::Tally};

/// Where the programs and the model part.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The event's number, from 0.
    pub at: usize,
    pub what: String,
}

/// A node with its maps at hand, used for one sequence after the other.
pub struct Bench<'a> {
    node: &'a mut Node,
    pub remotes: Vec<Ip>,
    conntrack: HashMap<MapData, FlowKey, Flow>,
    nat: HashMap<MapData, FlowKey, Reverse>,
    fragments: HashMap<MapData, FragmentKey, Fragment>,
    tally: Tally,
    sockets: Vec<Socket>,
    /// Held open.
    _sockets: (TcpListener, [UdpSocket; 2]),
    listener: Option<TcpListener>,
}

impl<'a> Bench<'a> {
    pub fn new(node: &'a mut Node) -> Self {
        // Maps of the usual size take longer to be walked than a sequence to be played.
        node.reopen(&Settings { conntrack_max: 1024, ..Settings::default() });
        // An agent that has just started ends what an earlier one may have left before it publishes anything.
        node.datapath.collect(Sweep::Owners, now()).unwrap();
        let open = |name| Map::HashMap(MapData::from_pin(node.bpf_dir().join(name)).unwrap());
        let fragments = Map::LruHashMap(MapData::from_pin(node.bpf_dir().join("fragments")).unwrap());
        let tally = Tally::new(node.bpf_dir());
        let (conntrack, nat) = (open("conntrack").try_into().unwrap(), open("nat").try_into().unwrap());
        let other = node.family.address("203.0.113.10", "2001:db8:f::10");
        let remotes = [node.at.world, other, node.at.exempt, node.at.native].map(Ip::from).to_vec();
        let (sockets, held) = open_sockets(node, remotes[0]);
        Self {
            node,
            remotes,
            conntrack,
            nat,
            fragments: fragments.try_into().unwrap(),
            tally,
            sockets,
            _sockets: held,
            listener: None,
        }
    }

    /// Plays a sequence from empty maps; leaves them empty.
    pub fn play(&mut self, rules: &Rules, events: &[Event]) -> Result<(), Difference> {
        let model = Model::new(rules.clone(), World::new(self.node, self.sockets.clone()));
        let mut run = Play { bench: self, model, ahead: 0, touched: BTreeSet::new() };
        let result = run.all(events);
        run.clean(result.is_err());
        result
    }

    fn run(&mut self, hook: Hook, frame: &[u8]) -> test_run::Ran {
        let (program, ifindex) = match hook {
            Hook::FromPod(Pod::A) => (Program::FromPod, self.node.devices.pod),
            Hook::FromPod(Pod::B) => (Program::FromPod, self.node.devices.neighbour),
            Hook::ToUplink => (Program::ToUplink, self.node.devices.uplink),
            Hook::FromUplink => (Program::FromUplink, self.node.devices.uplink),
        };
        let packet = test_run::Packet { frame, ifindex, gso_size: 0, mark: 0, repeat: 1 };
        self.node.datapath.test_run(program, &packet).unwrap()
    }
}

/// The host's sockets that [`event`](super::event) names.
fn open_sockets(node: &Node, remote: Ip) -> (Vec<Socket>, (TcpListener, [UdpSocket; 2])) {
    let any = node.family.address("0.0.0.0", "::");
    let listening = TcpListener::bind((any, LISTENED)).unwrap();
    let bound = UdpSocket::bind((any, BOUND)).unwrap();
    let connected = UdpSocket::bind((node.at.node, CONNECTED)).unwrap();
    connected.connect((IpAddr::from(remote), REMOTE_PORTS[0])).unwrap();
    let sockets = vec![
        Socket { protocol: TCP, port: LISTENED, remote: None },
        Socket { protocol: UDP, port: BOUND, remote: None },
        Socket { protocol: UDP, port: CONNECTED, remote: Some((remote, REMOTE_PORTS[0])) },
    ];
    (sockets, (listening, [bound, connected]))
}

/// One sequence under way.
struct Play<'b, 'a> {
    bench: &'b mut Bench<'a>,
    model: Model,
    /// Nanoseconds that the model's clock has jumped.
    ahead: i64,
    /// Keys that packets may have left in a map.
    touched: BTreeSet<FlowKey>,
}

impl Play<'_, '_> {
    fn all(&mut self, events: &[Event]) -> Result<(), Difference> {
        for (at, event) in events.iter().enumerate() {
            self.one(event).and_then(|()| self.compare_touched()).map_err(|what| Difference { at, what })?;
        }
        self.compare_all().map_err(|what| Difference { at: events.len(), what })
    }

    fn one(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Packet(shot) => {
                let resolved = Resolved::new(shot, &self.model, &self.bench.remotes);
                return self.packet(&resolved);
            }
            Event::Wait(seconds) => self.jump(time::ticks(*seconds)),
            Event::Collect => {
                let collect = || self.bench.node.datapath.collect(Sweep::Audit, now()).unwrap();
                let (now, _) = time::during(self.ahead, collect);
                let conntrack = &self.bench.conntrack;
                self.model.collect(now, |key| conntrack.get(key, 0).is_ok());
            }
            Event::Remove(pod) => {
                self.bench.node.datapath.withdraw(self.model.world.address(*pod)).unwrap();
                self.model.remove(*pod);
            }
            Event::Add(pod) => {
                let address = self.model.world.address(*pod);
                let node = &mut *self.bench.node;
                let endpoint = node.desired.endpoints[&address];
                let (now, ()) =
                    time::during(self.ahead, || node.datapath.publish(address, &endpoint).unwrap());
                let conntrack = &self.bench.conntrack;
                self.model.add(*pod, now, |key| conntrack.get(key, 0).is_ok());
            }
            Event::Listen(on) => self.listen(*on),
        }
        Ok(())
    }

    fn listen(&mut self, on: bool) {
        let node = &*self.bench.node;
        let any = node.family.address("0.0.0.0", "::");
        self.bench.listener = None;
        self.model.world.sockets.retain(|socket| (socket.protocol, socket.port) != (TCP, MAY_LISTEN));
        if on {
            self.bench.listener = Some(TcpListener::bind((any, MAY_LISTEN)).unwrap());
            self.model.world.sockets.push(Socket { protocol: TCP, port: MAY_LISTEN, remote: None });
        }
    }

    fn packet(&mut self, shot: &Resolved) -> Result<(), String> {
        let program = shot.hook.program();
        self.touched.extend([shot.key, shot.key.reversed()]);
        if let Ok(packet) = packet::read(&self.model.rules, &shot.frame, self.model.world.v4) {
            let key = key_of(&packet);
            self.touched.extend([key, key.reversed()]);
        }
        let (now, ran) = time::during(self.ahead, || self.bench.run(shot.hook, &shot.frame));
        let conntrack = &self.bench.conntrack;
        let chosen = |key: &FlowKey| conntrack.get(key, 0).ok().map(|flow| flow.nat_port.get());
        let step = Step { frame: &shot.frame, now, chosen: &chosen };
        let verdict = match shot.hook {
            Hook::FromPod(pod) => self.model.pod_sends(pod, &step),
            Hook::ToUplink => self.model.stack_sends(&step),
            Hook::FromUplink => self.model.world_sends(&step),
        };
        let (outcome, frame) = outcome(verdict, &shot.frame)?;
        let length = shot.frame.len();
        let moved = self.count(program, outcome, length);
        let ran = Ran { verdict: ran.verdict, mark: ran.mark, frame: ran.frame };
        let about = || format!("{:?}\n    sent     {}\n", shot.hook, compare::hex(&shot.frame));
        moved.and_then(|()| compare::ran(program, outcome, &frame, &ran)).map_err(|what| about() + &what)
    }

    /// The outcome's counter, and no other, must have moved.
    fn count(&mut self, program: Program, outcome: Outcome, length: usize) -> Result<(), String> {
        if self.bench.tally.expect(program, outcome, length) {
            return Ok(());
        }
        Err(format!("expected {outcome:?}; counters that moved otherwise: {:?}", self.bench.tally.strays()))
    }

    /// Everything in the maps becomes this much older, which is the same as waiting.
    fn jump(&mut self, ticks: i64) {
        let by = ticks as u32;
        for key in self.model.conntrack.keys() {
            let Ok(mut flow) = self.bench.conntrack.get(key, 0) else { continue };
            flow.created = flow.created.wrapping_sub(time::nanoseconds(ticks).cast_unsigned());
            for direction in [&mut flow.sent, &mut flow.received].into_iter().filter(|d| d.packets > 0) {
                direction.last_seen = direction.last_seen.wrapping_sub(by);
            }
            self.bench.conntrack.insert(key, &flow, 0).unwrap();
        }
        for key in self.model.nat.keys() {
            let Ok(mut back) = self.bench.nat.get(key, 0) else { continue };
            back.created = back.created.wrapping_sub(by);
            self.bench.nat.insert(key, &back, 0).unwrap();
        }
        for key in self.datagrams() {
            let Ok(mut datagram) = self.bench.fragments.get(&key, 0) else { continue };
            datagram.created = datagram.created.wrapping_sub(by);
            self.bench.fragments.insert(&key, &datagram, 0).unwrap();
        }
        self.ahead += time::nanoseconds(ticks);
    }

    fn datagrams(&self) -> Vec<FragmentKey> {
        self.bench.fragments.keys().map(Result::unwrap).collect()
    }

    /// The entries that packets of this sequence may have made.
    fn compare_touched(&mut self) -> Result<(), String> {
        let bench = &*self.bench;
        let known = self.touched.iter().chain(self.model.conntrack.keys()).chain(self.model.nat.keys());
        let keys: BTreeSet<FlowKey> = known.copied().collect();
        for key in &keys {
            let flow = bench.conntrack.get(key, 0).ok();
            compare::flow(key, self.model.conntrack.get(key), flow.as_ref(), self.ahead)?;
            let back = bench.nat.get(key, 0).ok();
            compare::back(key, self.model.nat.get(key), back.as_ref(), self.ahead)?;
        }
        self.touched.extend(keys);
        Ok(())
    }

    /// Every entry there is, and every counter.
    fn compare_all(&mut self) -> Result<(), String> {
        let strays = self.bench.tally.strays();
        if !strays.is_empty() {
            return Err(format!("counters moved more than once: {strays:?}"));
        }
        let bench = &*self.bench;
        let flows: Vec<FlowKey> = bench.conntrack.keys().map(Result::unwrap).collect();
        let backs: Vec<FlowKey> = bench.nat.keys().map(Result::unwrap).collect();
        compare::keys("conntrack", &flows, self.model.conntrack.keys())?;
        compare::keys("nat", &backs, self.model.nat.keys())
    }

    /// Empties the maps and brings the pods back.
    fn clean(mut self, thoroughly: bool) {
        self.listen(false);
        let mut keys: Vec<FlowKey> = self.touched.iter().copied().collect();
        keys.extend(self.model.conntrack.keys().chain(self.model.nat.keys()));
        if thoroughly {
            keys.extend(self.bench.conntrack.keys().chain(self.bench.nat.keys()).map(Result::unwrap));
        }
        for key in &keys {
            // Not there is fine.
            let _ = self.bench.conntrack.remove(key);
            let _ = self.bench.nat.remove(key);
        }
        for key in self.datagrams() {
            let _ = self.bench.fragments.remove(&key);
        }
        for pod in Pod::ALL {
            let address = self.model.world.address(pod);
            if !self.model.world.present.contains(&pod) || self.model.world.leaving.contains(&pod) {
                let endpoint = self.bench.node.desired.endpoints[&address];
                self.bench.node.datapath.publish(address, &endpoint).unwrap();
            }
        }
    }
}

/// The model's verdict as an outcome, and the frame that must be left.
fn outcome(verdict: Verdict, sent: &[u8]) -> Result<(Outcome, Vec<u8>), String> {
    match verdict {
        Ok((forward, frame)) => Ok((Outcome::Forward(forward), frame)),
        Err(Stop::Drop(reason)) => Ok((Outcome::Drop(reason), sent.to_vec())),
        Err(Stop::Illegal(what)) => Err(what),
    }
}

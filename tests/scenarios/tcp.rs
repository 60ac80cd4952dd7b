//! TCP's corners through masquerade, with real stacks at both ends.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use datapath_ebpf::{
    flow::Class,
    maps::{Flow, FlowKey},
    packet::TCP,
};
use hypha_lab::{
    Family, Lab, LabSpec, Pod, Routing, Station,
    maps::Maps,
    poll, shell,
    traffic::{
        raw::{IpSender, tcp_reset},
        socket::{self, PATIENCE},
    },
};
use libtest_mimic::Trial;
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::scenario;

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    type Body = fn(&mut Lab, Family) -> Result<()>;
    let cases: [(&str, Body); 5] = [
        ("a_port_is_used_again_at_once", a_port_is_used_again_at_once),
        ("both_ends_open_at_the_same_time", both_ends_open_at_the_same_time),
        ("a_reset_out_of_nowhere_ends_nothing", a_reset_out_of_nowhere_ends_nothing),
        ("a_reset_of_an_unknown_connection_hurts_nobody", a_reset_of_an_unknown_connection_hurts_nobody),
        ("a_reset_arrives_in_both_directions", a_reset_arrives_in_both_directions),
    ];
    let trial = |family: Family| {
        cases.map(|(name, body)| {
            let spec = LabSpec::nodes(1, Routing::Native);
            scenario(format!("tcp::{name} ({family})"), spec, move |lab| body(lab, family))
        })
    };
    Family::BOTH.into_iter().flat_map(trial).collect()
}

/// A connection through masquerade: both ends, and the pod it is from.
struct Connection {
    pod: Pod,
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(lab: &Lab, family: Family) -> Result<Self> {
        let pod = lab.node(0).add_pod("a")?;
        let listener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
        let client = socket::tcp_connect(pod.netns(), listener.local_addr()?)?;
        let (server, _) = socket::tcp_accept(&listener)?;
        let mut connection = Self { pod, client, server };
        connection.talks()?;
        Ok(connection)
    }

    /// A byte each way.
    fn talks(&mut self) -> Result<()> {
        talk(&mut self.client, &mut self.server)?;
        talk(&mut self.server, &mut self.client)
    }

    /// Its entry.
    fn flow(&self, lab: &Lab) -> Result<(FlowKey, Flow)> {
        let (owner, remote) = (self.client.local_addr()?, self.client.peer_addr()?);
        let flows = Maps::of(lab.node(0).bpf_dir()).conntrack()?;
        let found = flows.into_iter().find(|(key, _)| {
            key.src == owner.ip().into()
                && key.src_port.get() == owner.port()
                && key.dst == remote.ip().into()
        });
        found.context("the connection has no flow")
    }

    fn class(&self, lab: &Lab) -> Result<Class> {
        Ok(self.flow(lab)?.1.class(TCP))
    }
}

fn talk(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"x")?;
    to.read_exact(&mut [0]).context("nothing was heard")
}

/// A socket of the pod's on a fixed port, connected.
fn connect_from(station: &dyn Station, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        let family = Family::of(to.ip());
        socket.bind(&SocketAddr::new(family.unspecified(), port).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    };
    station.netns().enter(connect)?.with_context(|| format!("{} cannot connect from {port}", station.name()))
}

/// The other end still is in TIME_WAIT when the next SYN with the same ports comes, and so is the flow's entry.
fn a_port_is_used_again_at_once(lab: &mut Lab, family: Family) -> Result<()> {
    const PORT: u16 = 43_210;
    let pod = lab.node(0).add_pod("a")?;
    let listener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
    let to = listener.local_addr()?;
    let mut peers = Vec::new();
    for round in 0..20 {
        // Until the last acknowledgement is there, the pod's own stack still holds the port.
        let connect = || connect_from(&pod, PORT, to).with_context(|| format!("round {round}"));
        let mut client = poll::eventually("the port can be bound and connected", PATIENCE, connect)?;
        let (mut server, peer) = socket::tcp_accept(&listener)?;
        talk(&mut client, &mut server)?;
        talk(&mut server, &mut client)?;
        // The world closes first: TIME_WAIT is its.
        drop(server);
        ensure!(client.read(&mut [0])? == 0, "round {round}: not the end of the stream");
        peers.push(peer);
    }
    ensure!(peers.iter().all(|peer| peer.port() == PORT), "the port was not kept: {peers:?}");
    let flows = Maps::of(lab.node(0).bpf_dir()).conntrack()?;
    ensure!(flows.len() == 1, "twenty connections of one tuple have {} flows", flows.len());
    Ok(())
}

/// SYNs that cross (RFC 9293, section 3.5): the world drops the pod's until it has sent its own.
fn both_ends_open_at_the_same_time(lab: &mut Lab, family: Family) -> Result<()> {
    const PORTS: (u16, u16) = (43_300, 43_301);
    let pod = lab.node(0).add_pod("a")?;
    let world = lab.world();
    for line in [
        "add table inet hold",
        "add chain inet hold in { type filter hook input priority 0; }",
        "add rule inet hold in tcp flags & (syn|ack) == syn drop",
    ] {
        shell::text(world.netns().command("nft").arg(line))?;
    }
    let (from_pod, from_world) = (
        SocketAddr::new(world.address(family), PORTS.1),
        SocketAddr::new(lab.node(0).address(family), PORTS.0),
    );
    let maps = Maps::of(lab.node(0).bpf_dir());
    let opened = std::thread::scope(|scope| -> Result<[TcpStream; 2]> {
        let client = scope.spawn(|| connect_from(&pod, PORTS.0, from_pod));
        poll::eventually("the pod's SYN has passed", PATIENCE, || {
            ensure!(!maps.nat()?.is_empty(), "no claim");
            Ok(())
        })?;
        let server = connect_from(world, PORTS.1, from_world)?;
        let client = client.join().map_err(|_| anyhow::anyhow!("connecting panicked"))??;
        Ok([client, server])
    });
    let [mut client, mut server] = opened?;
    talk(&mut client, &mut server)?;
    talk(&mut server, &mut client)?;
    let [(_, flow)] = maps.conntrack()?[..] else { anyhow::bail!("not one flow: {:?}", maps.conntrack()?) };
    ensure!(flow.class(TCP) == Class::TcpEstablished, "{:?}", flow.class(TCP));
    Ok(())
}

/// Somebody guesses addresses and ports, but not the sequence number.
fn a_reset_out_of_nowhere_ends_nothing(lab: &mut Lab, family: Family) -> Result<()> {
    let mut connection = Connection::open(lab, family)?;
    let (_, flow) = connection.flow(lab)?;
    let attacker = IpSender::open(lab.world().netns(), family)?;
    let remote = connection.server.local_addr()?;
    let node = SocketAddr::new(lab.node(0).address(family), flow.nat_port.get());
    for guess in [0, 1 << 20, u32::MAX / 2] {
        let reset = tcp_reset(remote, node, flow.received.end.wrapping_add(1 + guess))?;
        attacker.send(&reset, node.ip())?;
    }
    poll::eventually("the forged packets have passed", PATIENCE, || {
        let received = connection.flow(lab)?.1.received.packets;
        ensure!(received >= flow.received.packets + 3, "{received} packets received");
        Ok(())
    })?;
    ensure!(connection.class(lab)? == Class::TcpEstablished, "torn down by a guess");
    connection.talks().context("after the forged packets")
}

/// A socket that knows nothing of a connection answers by an RST: it reaches nobody but the one who asked.
fn a_reset_of_an_unknown_connection_hurts_nobody(lab: &mut Lab, family: Family) -> Result<()> {
    let mut connection = Connection::open(lab, family)?;
    let maps = Maps::of(lab.node(0).bpf_dir());
    let before = maps.conntrack()?.len();
    let attacker = IpSender::open(lab.world().netns(), family)?;
    let node = lab.node(0).address(family);
    let remote = SocketAddr::new(lab.world().address(family), 7);
    for port in 50_000..50_050 {
        attacker.send(&tcp_reset(remote, SocketAddr::new(node, port), 1)?, node)?;
    }
    connection.talks()?;
    ensure!(maps.conntrack()?.len() == before, "resets from outside have made flows");
    Ok(())
}

/// An abort is an abort at the other end, whoever makes it, and the flow is closing.
fn a_reset_arrives_in_both_directions(lab: &mut Lab, family: Family) -> Result<()> {
    let Connection { pod, client, mut server } = Connection::open(lab, family)?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    is_reset(&mut server).context("the world")?;

    let listener: TcpListener = socket::tcp_listener(lab.world().netns(), lab.world().address(family))?;
    let mut client = socket::tcp_connect(pod.netns(), listener.local_addr()?)?;
    let (mut server, _) = socket::tcp_accept(&listener)?;
    talk(&mut client, &mut server)?;
    SockRef::from(&server).set_linger(Some(Duration::ZERO))?;
    drop(server);
    is_reset(&mut client).context("the pod")?;
    let flows = Maps::of(lab.node(0).bpf_dir()).conntrack()?;
    let open: Vec<_> = flows.iter().filter(|(_, flow)| flow.class(TCP) != Class::TcpClosing).collect();
    ensure!(open.is_empty(), "flows that do not close: {open:?}");
    Ok(())
}

fn is_reset(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => anyhow::bail!("{other:?} instead of a reset"),
    }
}

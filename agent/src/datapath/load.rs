//! Loading the object, with the maps that an earlier agent has left.
//!
//! A pinned map is adopted when it is the map this agent expects: same kind, same sizes, and written by an agent with
//! the same [`LAYOUT`]. Any other is unpinned and made anew. Attached programs keep the map they were loaded with, so
//! traffic goes on by the old map until this agent has filled the new one and swaps the programs. If only the size of the
//! maps of flows differs, the flows are carried over ([`carry`]).

use std::{fs, io, path::Path, thread};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, MapError, MapInfo},
    pin::PinError,
    programs::{ProgramError, RawTracePoint, SchedClassifier},
};
use datapath_ebpf::{
    Program,
    maps::{LAYOUT, Node},
};
use tracing::{info, warn};

use super::{
    DatapathError,
    carry::{self, Carry},
    collect::{self, Collector},
    links,
    object::OBJECT,
    settings::Settings,
    tables::{Tables, take},
};

/// The maps that are pinned, by name. `scratch` is not: it holds nothing between packets.
pub const MAPS: [&str; 15] = [
    "endpoints",
    "routes",
    "host_ports",
    "uplinks",
    "node",
    "conntrack",
    "nat",
    "ports",
    "claims",
    "timeouts",
    "fragments",
    "held",
    "counters",
    "events",
    "event_stats",
];

/// The loaded programs, in the order of [`Program::ALL`].
pub type Programs = Vec<(Program, SchedClassifier)>;

/// What loading gives.
pub struct Loaded {
    /// The maps.
    pub tables: Tables,
    /// The programs on packets.
    pub programs: Programs,
    /// The program that ends flows, and its answers.
    pub collector: Collector,
    /// Flows that are on their way from maps of another size.
    pub carry: Option<Carry>,
}

/// Loads the object and adopts or makes the maps under `bpf_dir`.
pub fn load(bpf_dir: &Path, settings: &Settings) -> Result<Loaded, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::NoObject);
    }
    links::create_directory(bpf_dir)?;
    discard_foreign_pins(bpf_dir)?;
    carry::set_aside(bpf_dir, settings.conntrack_max)?;
    let mut ebpf = load_object(bpf_dir, settings)?;
    let mut tables = Tables::take(&mut ebpf)?;
    tables.set_timeouts(&settings.timeouts)?;
    let collection = take(&mut ebpf, "collection")?;
    let (programs, collect) = load_programs(ebpf, bpf_dir)?;
    let collector = Collector::new(collect, collection, settings.conntrack_max);
    Ok(Loaded { tables, programs, collector, carry: Carry::begin(bpf_dir)? })
}

/// The object with its maps. A pinned map that the kernel describes differently from the object is discarded, once.
fn load_object(bpf_dir: &Path, settings: &Settings) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    // The level is for the second attempt: aya asks for a log only when the verifier refuses a program.
    loader
        .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        .default_map_pin_directory(bpf_dir)
        .map_max_entries("conntrack", settings.conntrack_max)
        .map_max_entries("nat", settings.conntrack_max);
    for _ in MAPS {
        match loader.load(OBJECT) {
            Err(EbpfError::MapError(MapError::IncompatiblePinnedMap {
                name,
                property,
                expected,
                actual,
            })) => {
                warn!(map = name, property, expected, actual, "pinned map is another version's: made anew");
                unpin(&bpf_dir.join(name))?;
            }
            loaded => return Ok(loaded?),
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Has the kernel verify every program, all at once: privileged callers need not wait for each other there, and the largest program
/// takes as long as all others together.
fn verify(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let names = || Program::ALL.iter().map(|program| program.name()).chain([collect::PROGRAM]);
    let known = |name: &str| names().find(|known| *known == name);
    thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter_map(|(name, program)| Some((known(name)?, program)));
        let verified = programs
            .map(|(name, program)| {
                scope.spawn(move || load_one(program).map_err(DatapathError::program(name, 0)))
            })
            .collect::<Vec<_>>();
        verified
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn load_one(program: &mut aya::programs::Program) -> Result<(), ProgramError> {
    match program {
        aya::programs::Program::SchedClassifier(program) => program.load(),
        aya::programs::Program::RawTracePoint(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Loads every program and frees the parsed object.
fn load_programs(mut ebpf: Ebpf, bpf_dir: &Path) -> Result<(Programs, RawTracePoint), DatapathError> {
    verify(&mut ebpf)?;
    let mut programs = Vec::with_capacity(Program::ALL.len());
    for &which in Program::ALL {
        let name = which.name();
        let program: &mut SchedClassifier = program_of(&mut ebpf, name)?;
        let taken = taken_out(name, bpf_dir, |pin| program.pin(pin), |pin| SchedClassifier::from_pin(pin))?;
        programs.push((which, taken));
    }
    let name = collect::PROGRAM;
    let program: &mut RawTracePoint = program_of(&mut ebpf, name)?;
    let collect = taken_out(name, bpf_dir, |pin| program.pin(pin), |pin| RawTracePoint::from_pin(pin))?;
    Ok((programs, collect))
}

fn program_of<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, DatapathError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing { kind: "program", name })?;
    program.try_into().map_err(DatapathError::program(name, 0))
}

/// The program without the object it came from, which holds a megabyte of parsed ELF. A pin is aya's only way there.
fn taken_out<T>(
    name: &'static str,
    bpf_dir: &Path,
    put: impl FnOnce(&Path) -> Result<(), PinError>,
    take: impl FnOnce(&Path) -> Result<T, ProgramError>,
) -> Result<T, DatapathError> {
    let pin = bpf_dir.join(format!("loading_{name}"));
    unpin(&pin)?;
    put(&pin).map_err(|source| DatapathError::Pin { path: pin.clone(), source })?;
    let taken = take(&pin).map_err(DatapathError::program(name, 0));
    unpin(&pin)?;
    taken
}

/// Removes pins under our maps' names that are no maps, or were written by an agent with other layouts.
fn discard_foreign_pins(bpf_dir: &Path) -> Result<(), DatapathError> {
    let another_layout = match pinned_layout(bpf_dir) {
        Some(LAYOUT) | None => false,
        Some(layout) => {
            warn!(found = layout, expected = LAYOUT, "pinned maps have another version's layouts: made anew");
            true
        }
    };
    if another_layout {
        carry::forget(bpf_dir)?;
    }
    for map in MAPS {
        let pin = bpf_dir.join(map);
        if pin.exists() && (another_layout || MapInfo::from_pin(&pin).is_err()) {
            info!(pin = %pin.display(), "discarding a pin that is not ours");
            unpin(&pin)?;
        }
    }
    Ok(())
}

/// The layout of the agent that filled the pinned maps; `None` when nobody has yet.
fn pinned_layout(bpf_dir: &Path) -> Option<u32> {
    let pin = bpf_dir.join("node");
    if !pin.exists() {
        return None;
    }
    let read = || -> Result<u32, MapError> {
        let node: Array<MapData, Node> = Array::try_from(aya::maps::Map::Array(MapData::from_pin(&pin)?))?;
        Ok(node.get(&0, 0)?.layout)
    };
    match read() {
        Ok(0) => None,
        Ok(layout) => Some(layout),
        // A `node` that cannot be read as ours means that its neighbours were not written by us either.
        Err(_) => Some(0),
    }
}

fn unpin(pin: &Path) -> Result<(), DatapathError> {
    let removed = if pin.is_dir() { fs::remove_dir_all(pin) } else { fs::remove_file(pin) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::pins("removing", pin, error))
        }
        _ => Ok(()),
    }
}

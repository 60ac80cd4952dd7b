//! What the running kernel's verifier says about each program of an object.
//!
//! aya loads programs too, but drops the verifier's log of those that pass, and the log is the only place where the
//! kernel tells the stack depth. So aya parses, relocates and makes the maps, and the load itself is done here. Nothing
//! is pinned and nothing attached: it all goes when the descriptors close.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::{io, mem};

use anyhow::{Context as _, bail};
use aya::maps::MapData;
use aya_obj::btf::BtfFeature;
use aya_obj::generated::{bpf_cmd, bpf_map_type, bpf_prog_info, bpf_prog_type};
use aya_obj::{EbpfSectionKind, Function, Object, ProgramSection};
use serde::Serialize;

use crate::bpf::{bpf, no_attributes};
use crate::table::table;

/// `BPF_LOG_STATS` of the kernel: a few lines of totals instead of every step.
const LOG_STATISTICS: u32 = 4;
const LOG_BYTES: usize = 64 * 1024;

/// One program's cost.
#[derive(Serialize)]
pub struct Program {
    /// The program's name.
    pub name: String,
    /// Instructions in the object, called functions included.
    pub instructions: usize,
    /// Instructions the verifier walked, every path counted; the kernel's limit is one million.
    pub verified: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Bytes of stack per function, the program itself first; the limit of a call chain is 512.
    pub stack: Vec<u32>,
}

/// Loads every program of the object and reports in the order of their names.
pub fn measure(object: &[u8]) -> anyhow::Result<Vec<Program>> {
    let mut object = Object::parse(object).context("parsing the eBPF object")?;
    let types = load_types(&mut object)?;
    let text = object.functions.keys().map(|&(section, _)| section).collect();
    let maps = object
        .maps
        .drain()
        .map(|(name, map)| Ok((create_map(&name, &map)?, name, map)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let descriptors =
        maps.iter().map(|(data, name, map)| (name.as_str(), data.fd().as_fd().as_raw_fd(), map));
    object.relocate_maps(descriptors, &text).context("pointing the programs at their maps")?;
    object.relocate_calls(&text).context("linking the programs' functions")?;

    let mut programs = Vec::new();
    for (name, program) in &object.programs {
        let kind = match program.section {
            ProgramSection::SchedClassifier => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
            ProgramSection::RawTracePoint => bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT,
            _ => bail!("program `{name}`: teach xtask's verifier view how to load its kind"),
        };
        let function = object.functions.get(&program.function_key());
        let function = function.with_context(|| format!("the object has no code for program `{name}`"))?;
        programs.push(load(name, kind, &program.license, function, types.as_ref())?);
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// The programs as a table.
pub fn table_of(programs: &[Program]) -> String {
    let rows = programs.iter().map(|p| {
        let own = p.stack.first().copied().unwrap_or_default();
        let callees = p.stack.get(1..).unwrap_or_default();
        let deepest = callees.iter().max().copied().unwrap_or_default();
        [
            p.name.clone(),
            p.instructions.to_string(),
            p.verified.to_string(),
            p.jited_bytes.to_string(),
            own.to_string(),
            format!("{} (largest {deepest})", callees.len()),
        ]
    });
    table(["program", "instructions", "verified", "jited bytes", "stack bytes", "callees' stacks"], rows)
}

/// A map as the loader would make it, contents of constants included: the verifier folds them.
fn create_map(name: &str, map: &aya_obj::Map) -> anyhow::Result<MapData> {
    // Without the types' BTF: the verifier asks only for sizes.
    let is_ring = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
    // A ring's declaration names the type of its records, which is not the size of a value.
    let value_size = if is_ring { 0 } else { map.value_size() };
    let shape = (map.map_type(), map.key_size(), value_size, map.max_entries(), map.map_flags());
    let bare = aya_obj::Map::new_from_params(shape.0, shape.1, shape.2, shape.3, shape.4);
    let data = MapData::create(bare, name, None).with_context(|| format!("creating map `{name}`"))?;
    let descriptor = data.fd().as_fd().as_raw_fd();
    if !map.data().is_empty() {
        fill(descriptor, map.data()).with_context(|| format!("filling map `{name}`"))?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        freeze(descriptor).with_context(|| format!("freezing map `{name}`"))?;
    }
    Ok(data)
}

/// Writes the single entry of a map of global data.
fn fill(map: RawFd, data: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attributes = no_attributes();
    // SAFETY: every bit pattern is valid for the variant's integers.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = map.cast_unsigned();
    element.key = (&raw const key).expose_provenance() as u64;
    element.__bindgen_anon_1.value = data.as_ptr().expose_provenance() as u64;
    // SAFETY: key and value live across the call; the map's value is as long as the section it was made from.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

fn freeze(map: RawFd) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_2.map_fd = map.cast_unsigned();
    // SAFETY: the command takes nothing but the descriptor.
    unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attributes) }.map(drop)
}

/// The object's BTF in the kernel: a function that is passed to a helper (`bpf_loop`) must have its type described.
fn load_types(object: &mut Object) -> anyhow::Result<Option<OwnedFd>> {
    let all_supported = || Some(|_: BtfFeature| true);
    let Some(types) = object.fixup_and_sanitize_btf(all_supported).context("reading the object's BTF")?
    else {
        return Ok(None);
    };
    let bytes = types.to_bytes();
    let mut attributes = no_attributes();
    // SAFETY: every bit pattern is valid for the variant's integers.
    let request = unsafe { &mut attributes.__bindgen_anon_7 };
    request.btf = bytes.as_ptr().expose_provenance() as u64;
    request.btf_size = u32::try_from(bytes.len())?;
    // SAFETY: the bytes live across the call, and their length is the one passed.
    let descriptor =
        unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) }.context("loading the object's BTF")?;
    // SAFETY: BPF_BTF_LOAD returned a new descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(descriptor)?) }))
}

/// Loads one program and reads what the kernel noted about it.
fn load(
    name: &str,
    kind: bpf_prog_type,
    license: &CString,
    function: &Function,
    types: Option<&OwnedFd>,
) -> anyhow::Result<Program> {
    let functions = function.func_info.func_info_bytes();
    let mut log = vec![0_u8; LOG_BYTES];
    let mut attributes = no_attributes();
    // SAFETY: every bit pattern is valid for the variant's integers.
    let request = unsafe { &mut attributes.__bindgen_anon_3 };
    request.prog_type = kind as u32;
    request.insns = function.instructions.as_ptr().expose_provenance() as u64;
    request.insn_cnt = u32::try_from(function.instructions.len())?;
    request.license = license.as_ptr().expose_provenance() as u64;
    if let Some(types) = types {
        request.prog_btf_fd = types.as_raw_fd().cast_unsigned();
        request.func_info = functions.as_ptr().expose_provenance() as u64;
        request.func_info_cnt = u32::try_from(function.func_info.len())?;
        request.func_info_rec_size = u32::try_from(function.func_info_rec_size)?;
    }
    request.log_level = LOG_STATISTICS;
    request.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    request.log_size = u32::try_from(log.len())?;
    // SAFETY: instructions, licence and log live across the call, and their lengths are the ones passed.
    let loaded = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) };

    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    let descriptor = match loaded {
        Ok(descriptor) => RawFd::try_from(descriptor)?,
        Err(error) => bail!("the verifier refuses program `{name}` ({error}):\n{log}"),
    };
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let info = info(&program).with_context(|| format!("asking the kernel about program `{name}`"))?;
    Ok(Program {
        name: name.to_owned(),
        instructions: function.instructions.len(),
        verified: info.verified_insns,
        jited_bytes: info.jited_prog_len,
        stack: stack_depths(&log),
    })
}

fn info(program: &OwnedFd) -> io::Result<bpf_prog_info> {
    // SAFETY: integers and byte arrays only: all zeroes is a value.
    let mut info = unsafe { mem::zeroed::<bpf_prog_info>() };
    let mut attributes = no_attributes();
    attributes.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attributes.info.info = (&raw mut info).expose_provenance() as u64;
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: the kernel writes at most `info_len` bytes, which is the size of `info`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(|_| info)
}

/// The numbers of the log's line `stack depth 96+0+24`: one per function.
fn stack_depths(log: &str) -> Vec<u32> {
    let line = log.lines().find_map(|line| line.strip_prefix("stack depth "));
    line.map_or_else(Vec::new, |depths| {
        // Newer kernels add " max N" behind the sum.
        let depths = depths.split_whitespace().next().unwrap_or_default();
        depths.split('+').filter_map(|depth| depth.parse().ok()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_stack_of_every_function_from_the_log() {
        let log = "verification time 812 usec\nstack depth 96+0+24\nprocessed 512 insns (limit 1000000)\n";
        assert_eq!(stack_depths(log), [96, 0, 24]);
        assert_eq!(stack_depths("stack depth 32 max 32\n"), [32]);
        assert_eq!(stack_depths("processed 5 insns\n"), [] as [u32; 0]);
    }
}

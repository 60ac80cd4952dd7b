//! Pins of links: `<bpf-dir>/links/<program>-<ifindex>`, what keeps programs attached while no agent runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};
use datapath_ebpf::Program;

use super::DatapathError;

/// Where links are pinned.
pub fn directory(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join("links")
}

/// Makes the BPF directory and the one for links.
pub fn create_directory(bpf_dir: &Path) -> Result<(), DatapathError> {
    let links = directory(bpf_dir);
    fs::create_dir_all(&links).map_err(|source| DatapathError::pins("making", &links, source))
}

/// The pin of one link.
pub fn pin_of(directory: &Path, program: Program, ifindex: u32) -> PathBuf {
    directory.join(format!("{}-{ifindex}", program.name()))
}

/// Every pin in the directory that is one of ours.
pub fn pinned(directory: &Path) -> Result<Vec<(Program, u32)>, DatapathError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| DatapathError::pins("reading", directory, source))?,
    };
    Ok(entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect())
}

fn parse(name: &str) -> Option<(Program, u32)> {
    let (program, ifindex) = name.rsplit_once('-')?;
    let program = Program::ALL.iter().find(|candidate| candidate.name() == program)?;
    Some((*program, ifindex.parse().ok()?))
}

/// The link an earlier agent has pinned; `None` when there is no pin or it is no link.
pub fn open(pin: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(pin).ok().map(FdLink::from)
}

/// Pins a link, replacing whatever is at the path, and gives it back: holding it too keeps the program attached when
/// someone removes the pins.
pub fn pin(link: FdLink, pin: &Path) -> Result<FdLink, DatapathError> {
    remove(pin)?;
    let pinned = link.pin(pin).map_err(|source| DatapathError::Pin { path: pin.to_owned(), source })?;
    Ok(pinned.into())
}

/// Removes a pin; not there is fine.
pub fn remove(pin: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::pins("removing", pin, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_says_which_program_is_where() {
        let path = pin_of(Path::new("/d"), Program::FromUplink, 12);
        assert_eq!(path, Path::new("/d/from_uplink-12"));
        assert_eq!(parse("from_uplink-12"), Some((Program::FromUplink, 12)));
        for foreign in ["", "from_uplink", "other-1", "to_pod-x", "to_pod-"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}

//! The image's one layer: a compressed tar of its files.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// An executable in the image.
pub struct Entry {
    /// Its path from the root, without a leading slash.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// A layer with the two digests that an image names it by.
pub struct Layer {
    /// The compressed tar.
    pub packed: Vec<u8>,
    /// The digest of the tar before compression: `diff_id`.
    pub diff_id: String,
}

/// Packs files and the directories above them, sorted, owned by root, without times.
pub fn pack(entries: &[Entry]) -> anyhow::Result<Layer> {
    let mut builder = tar::Builder::new(Vec::new());
    let above = |entry: &Entry| -> Vec<String> {
        let directories = Path::new(&entry.path).ancestors().skip(1);
        directories.map(|path| path.display().to_string()).filter(|path| !path.is_empty()).collect()
    };
    for directory in entries.iter().flat_map(above).collect::<BTreeSet<_>>() {
        let mut header = header(EntryType::Directory, 0);
        builder.append_data(&mut header, format!("{directory}/"), &[][..]).context("packing a directory")?;
    }
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for Entry { path, content } in sorted {
        let mut header = header(EntryType::Regular, content.len());
        let packed = builder.append_data(&mut header, path, content.as_slice());
        packed.with_context(|| format!("packing {path}"))?;
    }
    let tar = builder.into_inner().context("ending the layer")?;
    Ok(Layer { packed: compress(&tar)?, diff_id: digest(&tar) })
}

/// Everything in the image may be read and executed (or entered) by all and written by nobody but root.
pub fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The digest as images write it.
pub fn digest(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Without the name and time that gzip would put in.
fn compress(tar: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(tar).context("compressing the layer")?;
    encoder.finish().context("compressing the layer")
}

/// Whether an ELF executable asks for an interpreter, which is what loads shared libraries.
pub fn is_dynamic(elf: &[u8]) -> anyhow::Result<bool> {
    let header =
        object::elf::FileHeader64::<object::Endianness>::parse(elf).context("reading an executable")?;
    let endian = header.endian().context("reading an executable")?;
    let segments = header.program_headers(endian, elf).context("reading an executable")?;
    Ok(segments.iter().any(|segment| segment.p_type(endian) == object::elf::PT_INTERP))
}

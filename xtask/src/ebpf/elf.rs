//! Reads the symbol table of an eBPF object: just enough ELF to see what a linker must not have left behind.
//!
//! Std-only because `agent/build.rs` compiles this file too: a parser crate would be built a second time there.

/// One symbol of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The name as the compiler mangled it.
    pub name: String,
    /// Whether some section defines it; an undefined symbol is one the loader could not resolve.
    pub defined: bool,
}

const SYMBOL_TABLE: u32 = 2;
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

/// The named symbols of a little-endian 64-bit ELF file, or `None` when the file is no such thing.
pub fn symbols(elf: &[u8]) -> Option<Vec<Symbol>> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = usize::try_from(number(elf, 40, 8)?).ok()?;
    let count = usize::try_from(number(elf, 60, 2)?).ok()?;
    let header =
        |index: usize| elf.get(headers + index * SECTION_HEADER_BYTES..)?.get(..SECTION_HEADER_BYTES);

    let mut found = Vec::new();
    for section in (0..count).filter_map(header) {
        if number(section, 4, 4)? != u64::from(SYMBOL_TABLE) {
            continue;
        }
        let strings = body(elf, header(usize::try_from(number(section, 40, 4)?).ok()?)?)?;
        for entry in body(elf, section)?.as_chunks::<SYMBOL_BYTES>().0 {
            let name = string(strings, usize::try_from(number(entry, 0, 4)?).ok()?)?;
            if !name.is_empty() {
                found.push(Symbol { name, defined: number(entry, 6, 2)? != 0 });
            }
        }
    }
    Some(found)
}

/// The bytes that a section header points at.
fn body<'a>(elf: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let offset = usize::try_from(number(header, 24, 8)?).ok()?;
    let size = usize::try_from(number(header, 32, 8)?).ok()?;
    elf.get(offset..)?.get(..size)
}

/// The little-endian number of `width` bytes at `offset`.
fn number(bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.get(..width)?;
    Some(field.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

/// The zero-terminated string at `offset`.
fn string(table: &[u8], offset: usize) -> Option<String> {
    let rest = table.get(offset..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_symbols_of_a_real_executable() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let symbols = symbols(&own).unwrap();
        assert!(symbols.iter().any(|s| s.name == "main" && s.defined));
        assert!(symbols.iter().any(|s| s.name.starts_with("__libc_start_main") && !s.defined));
    }

    #[test]
    fn refuses_what_is_no_elf_or_is_cut_short() {
        assert_eq!(symbols(b""), None);
        assert_eq!(symbols(b"#!/bin/sh\nexit 0\n"), None);
        assert_eq!(symbols(b"\x7fELF\x02\x01\x01"), None);
    }
}

//! Tables for people, JSON for programs.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// Form of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
}

/// Prints rows under a header, columns two spaces apart as `kubectl` does.
pub fn print_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    println!("{}", table(header, rows));
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    let columns = table.column_count();
    for index in 0..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
        }
    }
    table.trim_fmt()
}

/// Prints a document.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let text = table(&["NAME", "N"], [vec!["a".into(), "1".into()], vec!["longer".into(), "22".into()]]);
        assert_eq!(text, "NAME    N\na       1\nlonger  22");
    }
}

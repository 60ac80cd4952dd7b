//! Tables for people, JSON for programs.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

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

/// Prints rows of values: a table under the columns' names, or a JSON array of objects with the names as keys.
pub fn print_listing(
    format: Format,
    columns: &[&str],
    rows: impl IntoIterator<Item = Vec<Value>>,
) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let keys = || columns.iter().map(|&column| column.to_owned());
            let objects = rows.into_iter().map(|row| keys().zip(row).collect::<Map<_, _>>());
            print_json(&objects.collect::<Vec<_>>())
        }
        Format::Table => {
            let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
            let header: Vec<&str> = header.iter().map(String::as_str).collect();
            print_table(&header, rows.into_iter().map(|row| row.iter().map(cell).collect()));
            Ok(())
        }
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
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

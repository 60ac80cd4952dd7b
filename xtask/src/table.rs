//! Aligned tables for people.

use comfy_table::{CellAlignment, Table, presets};

/// A table with a header; every column but the first is right-aligned, as numbers are compared by their last digit.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_align_at_their_last_digit() {
        let rows = [["from_pod".to_owned(), "7".to_owned()], ["to_pod".to_owned(), "1234".to_owned()]];
        let lines: Vec<usize> =
            table(["program", "size"], rows).lines().map(|l| l.trim_end().len()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.windows(2).all(|pair| pair[0] == pair[1]), "{lines:?}");
    }
}

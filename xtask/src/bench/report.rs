//! Medians, ratios, and the tables they are shown in.

use std::collections::BTreeMap;

use serde::Serialize;

use super::load::Test;
use super::paths::{Group, Route};
use crate::table::table;

/// All figures of one path: per test, one per round.
#[derive(Serialize)]
pub struct Row {
    /// What it is compared with.
    pub group: Group,
    /// What carries the packets.
    pub path: &'static str,
    /// Rates per round: transactions, or bits, per second.
    pub rounds: BTreeMap<Test, Vec<f64>>,
    /// The middle of the rounds.
    pub median: BTreeMap<Test, f64>,
    /// The middle of each round's ratio to the group's first path in the same round.
    pub ratio: BTreeMap<Test, f64>,
    /// Why there are no figures, when there are none.
    pub error: Option<String>,
}

impl Row {
    /// A row that waits for its figures.
    pub fn new(route: &Route<'_>) -> Self {
        Self {
            group: route.group,
            path: route.name,
            rounds: BTreeMap::new(),
            median: BTreeMap::new(),
            ratio: BTreeMap::new(),
            error: None,
        }
    }
}

/// Fills in medians and ratios.
///
/// A ratio is taken within a round, where both figures saw the same machine: its median is steadier than the ratio of
/// two medians.
pub fn summarise(rows: &mut [Row]) {
    for index in 0..rows.len() {
        let Some(measure) = rows.iter().position(|row| row.group == rows[index].group) else { continue };
        for test in Test::ALL {
            let (Some(own), Some(base)) = (rows[index].rounds.get(&test), rows[measure].rounds.get(&test))
            else {
                continue;
            };
            let ratios: Vec<f64> = own.iter().zip(base).map(|(own, base)| own / base).collect();
            let (median_rate, median_ratio) = (median(own), median(&ratios));
            rows[index].median.insert(test, median_rate);
            rows[index].ratio.insert(test, median_ratio);
        }
    }
}

/// The value in the middle; `NaN` of nothing.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The smallest value that `percent` of the values do not exceed; `NaN` of nothing.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The rows as a table: for every test the median and, in brackets, the ratio.
pub fn table_of(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let figure = |test| match (row.median.get(&test), row.ratio.get(&test)) {
            (Some(rate), Some(ratio)) => format!("{} ({ratio:.2})", test.format(*rate)),
            _ => "-".to_owned(),
        };
        let [rr, crr, udp, stream] = Test::ALL.map(figure);
        [format!("{}: {}", title(row.group), row.path), rr, crr, udp, stream]
    });
    let [rr, crr, udp, stream] = Test::ALL.map(Test::heading);
    table(["path (ratio to the group's first)", rr, crr, udp, stream], lines)
}

fn title(group: Group) -> &'static str {
    match group {
        Group::SameNode => "same node",
        Group::Native => "cross node",
        Group::Tunnel => "cross node, VXLAN",
        Group::World => "to the world",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &'static str, rounds: &[f64]) -> Row {
        Row {
            group: Group::Native,
            path,
            rounds: [(Test::TcpRr, rounds.to_vec())].into(),
            median: BTreeMap::new(),
            ratio: BTreeMap::new(),
            error: None,
        }
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([median(&values), percentile(&values, 99), percentile(&values, 1)], [3.0, 5.0, 1.0]);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was half as fast in the second round: the ratio does not notice.
        let mut rows = [row("measure", &[100.0, 50.0, 100.0]), row("other", &[90.0, 45.0, 80.0])];
        summarise(&mut rows);
        assert_eq!(rows[0].ratio[&Test::TcpRr], 1.0);
        assert_eq!(rows[1].ratio[&Test::TcpRr], 0.9);
        assert_eq!(rows[1].median[&Test::TcpRr], 80.0);
    }
}

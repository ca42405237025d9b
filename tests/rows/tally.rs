//! Counts what is proven of models whose rows brute force finds independent.

use std::collections::BTreeMap;

use inferq::model::rows::RowsVerdict;

#[derive(Default)]
pub struct Tally {
    pub independent: usize,
    pub proven: usize,
    pub unknown: usize,
    pub coupled: usize,
    pub dependent: usize,
    /// Operators behind what is unknown or coupled though no run shows it, with an example.
    operators: BTreeMap<String, (usize, String)>,
    /// Models that are proven independent and are not.
    pub wrong: Vec<String>,
}

impl Tally {
    pub fn count_independent(&mut self, name: &str, verdict: &RowsVerdict) {
        self.independent += 1;
        let kind = match verdict {
            RowsVerdict::Independent => {
                self.proven += 1;
                return;
            }
            RowsVerdict::Unknown { .. } => {
                self.unknown += 1;
                "unknown"
            }
            RowsVerdict::Coupled { .. } => {
                self.coupled += 1;
                "coupled"
            }
        };
        let reason = without_names(verdict.reason().unwrap_or_default());
        let entry = self.operators.entry(format!("{kind}: {reason}"));
        entry.or_insert_with(|| (0, name.to_owned())).0 += 1;
    }

    pub fn count_dependent(&mut self, name: &str, verdict: &RowsVerdict, difference: &str) {
        self.dependent += 1;
        if *verdict == RowsVerdict::Independent {
            self.wrong.push(format!("{name}: {difference}"));
        }
    }

    /// Holds the proof to what it could do when this was written: never wrong, and no weaker.
    #[track_caller]
    pub fn check(&self, independent_min: usize, proven_share_min: f64) {
        assert!(
            self.wrong.is_empty(),
            "proven independent, and are not:\n{}",
            self.wrong.join("\n")
        );
        assert!(
            self.independent >= independent_min,
            "{} independent by brute force",
            self.independent
        );
        let share = self.proven as f64 / self.independent as f64;
        assert!(
            share >= proven_share_min,
            "{share:.2} of the independent ones are proven"
        );
    }

    pub fn print(&self, title: &str) {
        let Self {
            independent,
            proven,
            unknown,
            coupled,
            dependent,
            ..
        } = self;
        println!("{title}: {independent} independent by brute force, of which");
        println!("  proven {proven}, unknown {unknown}, coupled {coupled}; {dependent} dependent by brute force");
        let mut operators: Vec<_> = self.operators.iter().collect();
        operators.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, example)) in operators {
            println!("  {count:5} {reason}  [{example}]");
        }
    }
}

/// The reason without the names of nodes and values.
fn without_names(reason: &str) -> String {
    let parts = reason.split('`');
    let kept: Vec<&str> = parts
        .enumerate()
        .filter(|(at, _)| at % 2 == 0)
        .map(|(_, part)| part)
        .collect();
    kept.join("…")
}

//! Which model a job is for: the models of a mix, by their weights. Pure.

use std::str::FromStr;

use crate::model::repository::{NAME_ALLOWED, is_name};

/// A model and how often it comes, beside the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub model: String,
    pub weight: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, weight) = text.split_once('=').unwrap_or((text, "1"));
        if !is_name(model) {
            return Err(format!("`{model}` is no model's name: allowed are {NAME_ALLOWED}"));
        }
        match weight.parse() {
            Ok(weight) if (1..=WEIGHT_MAX).contains(&weight) => Ok(Self {
                model: model.to_owned(),
                weight,
            }),
            _ => Err(format!(
                "`{weight}` is no weight: allowed are whole numbers from 1 to {WEIGHT_MAX}, such as digits=3"
            )),
        }
    }
}

/// A sequence in which every model comes as often as its weight says, and as evenly as it can; it repeats.
#[derive(Debug)]
pub struct Mix(Vec<usize>);

impl Mix {
    /// `weights` are those of the models, and not empty.
    pub fn new(weights: &[u32]) -> Self {
        let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
        let mut credit = vec![0; weights.len()];
        let sequence = (0..total).map(|_| {
            for (credit, &weight) in credit.iter_mut().zip(weights) {
                *credit += i64::from(weight);
            }
            // The one that has waited for longest; of equals the first.
            let next = (0..credit.len())
                .max_by_key(|&at| (credit[at], usize::MAX - at))
                .unwrap_or(0);
            credit[next] -= total;
            next
        });
        Self(sequence.collect())
    }

    /// The index of the model of a job.
    pub fn model_of(&self, number: u64) -> usize {
        self.0[(number % self.0.len() as u64) as usize]
    }
}

const WEIGHT_MAX: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_comes_as_often_as_its_weight_says_and_evenly() {
        let mix = Mix::new(&[1, 3]);

        let sequence: Vec<usize> = (0..8).map(|number| mix.model_of(number)).collect();

        assert_eq!(sequence, [1, 0, 1, 1, 1, 0, 1, 1]);
    }

    #[test]
    fn equal_weights_take_turns_and_one_model_is_alone() {
        let turns = Mix::new(&[7, 7]);
        let alone = Mix::new(&[5]);

        assert_eq!([0, 1, 2, 3].map(|number| turns.model_of(number)), [0, 1, 0, 1]);
        assert_eq!([0, 1, 99].map(|number| alone.model_of(number)), [0, 0, 0]);
    }

    #[test]
    fn a_share_is_a_name_and_perhaps_a_weight() {
        let share = |text: &str| text.parse::<Share>();

        assert_eq!(share("a").unwrap().weight, 1);
        assert_eq!(
            share("a-b.c=30").unwrap(),
            Share {
                model: "a-b.c".to_owned(),
                weight: 30
            }
        );
        for (text, named) in [
            ("", "``"),
            ("a b", "`a b`"),
            ("a=0", "`0`"),
            ("a=1.5", "`1.5`"),
            ("a=1001", "`1001`"),
            ("a=", "``"),
        ] {
            let said = share(text).unwrap_err();
            assert!(said.starts_with(named) && said.contains("allowed are"), "{said}");
        }
    }
}

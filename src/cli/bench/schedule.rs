//! When jobs are due: it follows from the rates and a seed alone, never from how fast answers come. Pure.

use std::time::Duration;

use clap::ValueEnum;

use super::rates::Stage;

/// How jobs lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// At random, as the jobs of many independent producers do; they come in bursts, which queues feel
    Poisson,
    /// Evenly
    Fixed,
}

/// The times at which jobs are due, ascending, from the begin of the first stage.
///
/// A stage's rate integrated over time counts jobs. A job is due where that count reaches the next whole number, or, for
/// a Poisson process of any rate, the next sum of exponential gaps with mean one.
#[derive(Debug)]
pub struct Schedule {
    stages: Vec<Stage>,
    spacing: Spacing,
    random: fastrand::Rng,
    /// The stage in which the next job is due, unless it is a later one.
    at: usize,
    /// Jobs and seconds of all stages before that.
    before: (f64, f64),
    /// Where the count of jobs must get for the next one.
    target: f64,
}

impl Schedule {
    pub fn new(stages: Vec<Stage>, spacing: Spacing, seed: u64) -> Self {
        let mut schedule = Self {
            stages,
            spacing,
            random: fastrand::Rng::with_seed(seed),
            at: 0,
            before: (0.0, 0.0),
            target: 0.0,
        };
        if spacing == Spacing::Poisson {
            schedule.target += schedule.gap();
        }
        schedule
    }

    fn gap(&mut self) -> f64 {
        match self.spacing {
            Spacing::Fixed => 1.0,
            Spacing::Poisson => -(1.0 - self.random.f64()).ln(),
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        loop {
            let stage = self.stages.get(self.at)?;
            let (jobs, seconds) = self.before;
            if let Some(within) = stage.seconds_to(self.target - jobs) {
                self.target += self.gap();
                return Some(Duration::from_secs_f64(seconds + within));
            }
            self.before = (jobs + stage.jobs(), seconds + stage.seconds());
            self.at += 1;
        }
    }
}

impl Stage {
    fn seconds(&self) -> f64 {
        self.lasts.map_or(f64::INFINITY, |lasts| lasts.as_secs_f64())
    }

    /// Jobs of the whole stage.
    fn jobs(&self) -> f64 {
        self.seconds() * (self.from + self.to) / 2.0
    }

    /// When so many jobs were due; `None` if that is not within the stage.
    fn seconds_to(&self, jobs: f64) -> Option<f64> {
        if jobs >= self.jobs() {
            return None;
        }
        // The root of from·t + slope·t²/2 = jobs, written so that a slope of zero needs no case of its own.
        let slope = (self.to - self.from) / self.seconds();
        let root = (self.from * self.from + 2.0 * slope * jobs).max(0.0).sqrt();
        let seconds = 2.0 * jobs / (self.from + root);
        // Of a ramp from nothing the very first job is due at once.
        Some(if seconds.is_finite() {
            seconds.min(self.seconds())
        } else {
            0.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, spacing: Spacing, seed: u64) -> Vec<f64> {
        let rates: super::super::rates::Rates = text.parse().unwrap();
        let due = Schedule::new(rates.0, spacing, seed);
        due.take(10_000).map(|due| due.as_secs_f64()).collect()
    }

    fn counted(due: &[f64], from: f64, to: f64) -> usize {
        due.iter().filter(|due| (from..to).contains(*due)).count()
    }

    #[test]
    fn fixed_spacing_is_even_and_ends_with_its_stage() {
        let due = schedule("4@2s", Spacing::Fixed, 1);

        assert_eq!(due, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]);
    }

    #[test]
    fn a_rate_without_an_end_goes_on() {
        let due = schedule("100", Spacing::Fixed, 1);

        assert_eq!((due.len(), due[9_999]), (10_000, 99.99));
    }

    #[test]
    fn a_ramp_sends_as_many_jobs_in_each_part_as_its_rate_says() {
        // The rate at t is 100·t, so that t seconds have 50·t² jobs.
        for (text, parts) in [("0..400@4s", [50, 150, 250, 350]), ("400..0@4s", [350, 250, 150, 50])] {
            let due = schedule(text, Spacing::Fixed, 1);

            assert_eq!(due.len(), 800, "{text}");
            assert!(due.is_sorted(), "{text}");
            for (second, jobs) in parts.into_iter().enumerate() {
                let came = counted(&due, second as f64, second as f64 + 1.0);
                assert!(came.abs_diff(jobs) <= 1, "{text}, second {second}: {came}");
            }
        }
    }

    #[test]
    fn stages_follow_one_another() {
        let due = schedule("10@1s,0..0.001@10s,100@1s", Spacing::Fixed, 1);

        assert_eq!(counted(&due, 0.0, 1.0), 10);
        assert_eq!(counted(&due, 1.0, 11.0), 1);
        assert!(counted(&due, 11.0, 12.0).abs_diff(99) <= 1);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_bursts_of_independent_producers() {
        let due = schedule("1000@5s,2000@2s", Spacing::Poisson, 7);

        // Five standard deviations; the seed is fixed all the same.
        assert!(counted(&due, 0.0, 5.0).abs_diff(5_000) < 354);
        assert!(counted(&due, 5.0, 7.0).abs_diff(4_000) < 317);
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).take(4_000).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Exponential gaps deviate by as much as their mean; even ones would not at all.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_seed_gives_the_same_times_again_and_another_seed_others() {
        let due = |seed| schedule("100@1s", Spacing::Poisson, seed);

        assert_eq!(due(1), due(1));
        assert_ne!(due(1), due(2));
    }
}

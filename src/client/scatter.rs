//! One job, cut by row into several, and their answers put together again: only where the workers say that rows stay apart.

use std::num::NonZeroUsize;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::{Answer, CallError, Client, Job, RowRelation};
use crate::wire::tensor::Tensor;

impl Client {
    /// Sends the rows of one job as several jobs of up to `rows_per_job` rows, and returns one answer with the rows in their
    /// order.
    ///
    /// The first part is sent by itself, and the rest only if its answer says that rows are independent; they go to the version
    /// that gave it, [`Options::in_flight_max`](super::Options::in_flight_max) at a time. A job that has no more rows, was
    /// encoded before, or whose inputs have not as many rows each, is sent as it is. Timeouts and deadlines are those of each
    /// part; a `message_id` is followed by `-` and the number of the part, from 0.
    ///
    /// Shapes: in `[rows, …]` for every input; out `[rows, …]` for every output. The answer has the time of the whole as its
    /// latency, and neither `timing` nor `batch_rows`.
    /// # Errors
    /// [`CallError`] of the first part that has no answer; `Scatter` if the answers cannot be put together: rows depend on each
    /// other, or nothing says that they do not; an output has not one row for each; or another version answered.
    pub async fn scatter(&self, job: Job, rows_per_job: NonZeroUsize) -> Result<Answer, CallError> {
        let started = Instant::now();
        let Some(parts) = parts(&job, rows_per_job.get()) else {
            return self.call(job).await;
        };
        let mut parts = parts.into_iter();
        let mut gathered = Gathered::of(job.model);
        if let Some((rows, part)) = parts.next() {
            gathered.push(rows, self.call(part).await?)?;
        }
        let version = gathered.version();
        let calls = parts.map(|(rows, part)| {
            let part = Job {
                version: version.clone(),
                ..part
            };
            async move { Ok::<_, CallError>((rows, self.call(part).await?)) }
        });
        let in_flight_max = self.shared.options.in_flight_max.max(1);
        let mut answers = stream::iter(calls).buffered(in_flight_max);
        while let Some((rows, answer)) = answers.try_next().await? {
            gathered.push(rows, answer)?;
        }
        Ok(Answer {
            latency: started.elapsed(),
            ..gathered.whole()?
        })
    }
}

/// The job cut by row, each part with its number of rows; `None` of a job that is sent as it is.
fn parts(job: &Job, rows_per_job: usize) -> Option<Vec<(usize, Job)>> {
    let rows = job.inputs.first()?.rows()?;
    if job.encoded.is_some() || rows <= rows_per_job || job.inputs.iter().any(|input| input.rows() != Some(rows)) {
        return None;
    }
    let inputs: Option<Vec<_>> = job.inputs.iter().map(|input| input.cut_rows(rows_per_job)).collect();
    let mut inputs: Vec<_> = inputs?.into_iter().map(Vec::into_iter).collect();
    let starts = (0..rows).step_by(rows_per_job);
    let part = |(number, start): (usize, usize)| {
        let part = Job {
            // Each has as many parts.
            inputs: inputs.iter_mut().filter_map(Iterator::next).collect(),
            message_id: job.message_id.as_ref().map(|id| format!("{id}-{number}")),
            ..job.clone()
        };
        (rows_per_job.min(rows - start), part)
    };
    Some(starts.enumerate().map(part).collect())
}

/// The answers to the parts of a job so far, in the order of their rows.
struct Gathered {
    model: String,
    answers: Vec<Answer>,
}

impl Gathered {
    fn of(model: String) -> Self {
        Self {
            model,
            answers: Vec::new(),
        }
    }

    fn version(&self) -> Option<String> {
        self.answers.first().map(|answer| answer.model_version.clone())
    }

    /// Takes the answer to the next `rows` rows.
    fn push(&mut self, rows: usize, answer: Answer) -> Result<(), ScatterError> {
        if answer.rows != Some(RowRelation::Independent) {
            return Err(ScatterError::Relation {
                model: self.model.clone(),
                said: answer.rows,
            });
        }
        if let Some(first) = self.version()
            && first != answer.model_version
        {
            return Err(ScatterError::Version {
                model: self.model.clone(),
                first,
                other: answer.model_version,
            });
        }
        if let Some(output) = answer.outputs.iter().find(|output| !answer.is_by_row(output, rows)) {
            return Err(ScatterError::Output {
                model: self.model.clone(),
                output: output.name.clone(),
                shape: output.shape.clone(),
                rows,
            });
        }
        self.answers.push(answer);
        Ok(())
    }

    fn whole(self) -> Result<Answer, ScatterError> {
        let Self { model, answers } = self;
        let Some(first) = answers.first() else {
            return Err(ScatterError::Relation { model, said: None });
        };
        let outputs = first.outputs.iter().enumerate().map(|(place, output)| {
            let parts: Option<Vec<&Tensor>> = answers.iter().map(|answer| answer.outputs.get(place)).collect();
            parts
                .and_then(|parts| Tensor::concat_rows(&parts))
                .ok_or_else(|| ScatterError::Uneven {
                    model: model.clone(),
                    output: output.name.clone(),
                })
        });
        Ok(Answer {
            outputs: outputs.collect::<Result<_, _>>()?,
            batch_rows: None,
            timing: None,
            ..first.clone()
        })
    }
}

/// Answers to the parts of a job that cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScatterError {
    #[error(
        "model `{model}` does not say that its rows are independent ({}), so that no job for it may be cut by row",
        said.map_or("it says nothing", RowRelation::name)
    )]
    Relation { model: String, said: Option<RowRelation> },
    #[error(
        "output `{output}` of model `{model}` has shape {shape:?} for {rows} rows, so that it is not one row for each"
    )]
    Output {
        model: String,
        output: String,
        shape: Vec<usize>,
        rows: usize,
    },
    #[error("output `{output}` of model `{model}` has rows of another kind in one part of the job than in another")]
    Uneven { model: String, output: String },
    #[error("version {first} of model `{model}` answered the first part of the job, and version {other} another one")]
    Version {
        model: String,
        first: String,
        other: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tensor::Datatype;

    fn job(rows: usize) -> Job {
        let values: Vec<f32> = (0..rows).map(|row| row as f32).collect();
        let flags = Tensor {
            name: "b".to_owned(),
            datatype: Datatype::Bool,
            shape: vec![rows],
            data: vec![1; rows].into(),
        };
        Job {
            message_id: Some("seven".to_owned()),
            ..Job::new("m", vec![Tensor::fp32("a", &[rows, 1], &values), flags])
        }
    }

    /// An answer as a worker gives it whose model keeps rows apart.
    fn answer(version: &str, outputs: Vec<Tensor>) -> Answer {
        Answer {
            model_version: version.to_owned(),
            outputs,
            latency: std::time::Duration::ZERO,
            batch_rows: Some(9),
            timing: None,
            rows: Some(RowRelation::Independent),
            row_outputs: None,
        }
    }

    fn y(values: &[f32]) -> Tensor {
        Tensor::fp32("y", &[values.len(), 1], values)
    }

    #[test]
    fn every_input_is_cut_along_its_first_axis() {
        let parts = parts(&job(5), 2).unwrap();

        let rows: Vec<usize> = parts.iter().map(|(rows, _)| *rows).collect();
        let ids: Vec<_> = parts
            .iter()
            .filter_map(|(_, part)| part.message_id.as_deref())
            .collect();
        assert_eq!(rows, [2, 2, 1]);
        assert_eq!(ids, ["seven-0", "seven-1", "seven-2"]);
        assert_eq!(parts[1].1.inputs[0], Tensor::fp32("a", &[2, 1], &[2.0, 3.0]));
        assert_eq!(parts[2].1.inputs[1].shape, [1]);
    }

    #[test]
    fn a_job_that_cannot_be_cut_is_sent_as_it_is() {
        let mut uneven = job(3);
        uneven.inputs[1] = Tensor::fp32("b", &[2], &[0.0; 2]);
        let mut short = job(3);
        short.inputs[0].data = short.inputs[0].data.slice(..11);

        for job in [&job(2), &uneven, &short, &Job::new("m", Vec::new())] {
            assert!(parts(job, 2).is_none());
        }
    }

    #[test]
    fn answers_are_put_together_in_their_order() {
        let mut gathered = Gathered::of("m".to_owned());

        gathered.push(2, answer("3", vec![y(&[1.0, 2.0])])).unwrap();
        gathered.push(1, answer("3", vec![y(&[3.0])])).unwrap();
        let whole = gathered.whole().unwrap();

        assert_eq!(whole.outputs, [y(&[1.0, 2.0, 3.0])]);
        assert_eq!((&*whole.model_version, whole.batch_rows), ("3", None));
    }

    #[test]
    fn answers_whose_rows_do_not_stay_apart_are_refused() {
        let relation = |said| Answer {
            rows: said,
            ..answer("3", vec![y(&[1.0, 2.0])])
        };
        for (came, sentence) in [
            (
                relation(None),
                "model `m` does not say that its rows are independent (it says nothing)",
            ),
            (relation(Some(RowRelation::Unknown)), "independent (unknown)"),
            (relation(Some(RowRelation::Coupled)), "independent (coupled)"),
            (
                answer("4", vec![y(&[1.0, 2.0])]),
                "version 3 of model `m` answered the first part of the job, and version 4",
            ),
            (
                answer("3", vec![y(&[1.0])]),
                "output `y` of model `m` has shape [1, 1] for 2 rows",
            ),
            (
                answer("3", vec![Tensor::fp32("y", &[], &[1.0])]),
                "has shape [] for 2 rows",
            ),
        ] {
            let mut gathered = Gathered::of("m".to_owned());
            gathered.push(1, answer("3", vec![y(&[0.0])])).unwrap();

            let refused = gathered.push(2, came).unwrap_err().to_string();

            assert!(refused.contains(sentence), "{refused}");
        }
    }

    #[test]
    fn outputs_that_differ_between_parts_are_refused() {
        for outputs in [vec![Tensor::fp32("y", &[1, 2], &[0.0; 2])], Vec::new()] {
            let mut gathered = Gathered::of("m".to_owned());
            gathered.push(1, answer("3", vec![y(&[0.0])])).unwrap();
            gathered.push(1, answer("3", outputs)).unwrap();

            let refused = gathered.whole().unwrap_err().to_string();

            assert!(
                refused.contains("output `y` of model `m` has rows of another kind"),
                "{refused}"
            );
        }
    }
}

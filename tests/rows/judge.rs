//! The judge: runs rows alone and among neighbours in the real ONNX Runtime, and compares their answers.

use std::path::Path;
use std::sync::Once;

use half::{bf16, f16};
use inferq::model::Tolerance;
use inferq::model::rows::{self, RowsProof};
use inferq::wire::tensor::{Datatype, bytes_elements};
use inferq::worker::hardware::Hardware;
use inferq::worker::infer::{Engine, Input, Output};
use inferq::worker::onnx::{OnnxEngine, Runtime, SharedWeights, TELEMETRY_OFF};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Rows to judge a model with; those of one number belong together.
pub struct Pool {
    /// In the order of the model's inputs.
    pub inputs: Vec<PoolInput>,
}

pub struct PoolInput {
    /// Shape of one row.
    pub shape: Vec<usize>,
    pub rows: Vec<Vec<u8>>,
}

/// A model with what its graph says of its rows.
pub struct Subject {
    engine: OnnxEngine,
    pub proof: RowsProof,
}

/// What the runs of a model show of its rows.
pub enum Judgement {
    /// Fewer than two rows run alone, so nothing is shown.
    NoRows,
    /// No answer depends on the company of its row.
    Independent,
    /// A row's answer is another one in company, or is no row.
    Dependent(String),
}

impl Subject {
    /// # Errors
    /// ONNX Runtime does not load the model in this file.
    pub fn load(runtime: &Runtime, path: &Path) -> Result<Self, String> {
        let weights = SharedWeights::new(runtime);
        let engine = OnnxEngine::load(runtime, path, &weights, &Hardware::CPU).map_err(|error| error.to_string())?;
        Ok(Self {
            engine,
            proof: rows::prove(path),
        })
    }

    /// Compares every row alone with itself in companies of 2, 5 and 50 that `rng` draws.
    pub fn judge(&mut self, pool: &Pool, rng: &mut fastrand::Rng) -> Judgement {
        let rows = pool.inputs.first().map_or(0, |input| input.rows.len());
        let mut alone = Vec::new();
        for row in 0..rows {
            if let Ok(outputs) = self.run(pool, &[row]) {
                alone.push((row, outputs));
            }
        }
        if alone.len() < 2 {
            return Judgement::NoRows;
        }
        match self.differs(pool, &alone, rng) {
            Some(difference) => Judgement::Dependent(difference),
            None => Judgement::Independent,
        }
    }

    fn differs(&mut self, pool: &Pool, alone: &[(usize, Vec<Output>)], rng: &mut fastrand::Rng) -> Option<String> {
        for (row, expected) in alone.iter().take(2) {
            match self.run(pool, &[*row]) {
                Ok(again) => {
                    let again: Vec<_> = again.iter().collect();
                    let expected: Vec<_> = expected.iter().collect();
                    if let Some(difference) = self.row_differs(&expected, &again, 0, 1) {
                        return Some(format!("row {row} twice alone: {difference}"));
                    }
                }
                Err(error) => return Some(format!("row {row} fails the second time: {error}")),
            }
        }
        for size in COMPANIES {
            let company: Vec<usize> = (0..size).map(|_| rng.usize(..alone.len())).collect();
            let numbers: Vec<usize> = company.iter().map(|at| alone[*at].0).collect();
            let outputs = match self.run(pool, &numbers) {
                Ok(outputs) => outputs,
                Err(error) => return Some(format!("rows {numbers:?} fail together: {error}")),
            };
            let outputs: Vec<_> = outputs.iter().collect();
            for (place, at) in company.iter().enumerate() {
                let expected: Vec<_> = alone[*at].1.iter().collect();
                if let Some(difference) = self.row_differs(&expected, &outputs, place, size) {
                    return Some(format!(
                        "row {} at place {place} of {numbers:?}: {difference}",
                        alone[*at].0
                    ));
                }
            }
        }
        None
    }

    fn run(&mut self, pool: &Pool, numbers: &[usize]) -> Result<Vec<Output>, String> {
        let inputs: Vec<Input<'_>> = pool
            .inputs
            .iter()
            .map(|input| Input {
                shape: [&[numbers.len()], &input.shape[..]].concat(),
                parts: numbers.iter().map(|row| &*input.rows[*row]).collect(),
            })
            .collect();
        self.engine.run(&inputs).map_err(|error| error.to_string())
    }

    /// Where the answer to a row alone differs from that at this place of so many.
    fn row_differs(&self, alone: &[&Output], among: &[&Output], place: usize, rows: usize) -> Option<String> {
        let specs = &self.engine.signature().outputs;
        alone.iter().zip(among).zip(specs).find_map(|((alone, among), spec)| {
            let name = &spec.name;
            let (Some((1, own)), Some((count, shape))) = (split(&alone.shape), split(&among.shape)) else {
                return Some(format!("output `{name}` is {:?} for one row", alone.shape));
            };
            if count != rows || own != shape {
                let (one, many) = (&alone.shape, &among.shape);
                return Some(format!(
                    "output `{name}` is {one:?} for one row and {many:?} for {rows}"
                ));
            }
            let got = part(spec.datatype, among.bytes(), place, rows);
            let difference = difference(spec.datatype, alone.bytes(), &got)?;
            Some(format!("output `{name}`: {difference}"))
        })
    }
}

fn split(shape: &[usize]) -> Option<(usize, &[usize])> {
    let (first, rest) = shape.split_first()?;
    Some((*first, rest))
}

/// The bytes of one of so many rows.
fn part(datatype: Datatype, data: &[u8], place: usize, rows: usize) -> Vec<u8> {
    if datatype != Datatype::Bytes {
        let bytes = data.len() / rows;
        return data[place * bytes..][..bytes].to_vec();
    }
    let elements: Vec<&[u8]> = bytes_elements(data).collect();
    let count = elements.len() / rows;
    let own = &elements[place * count..][..count];
    own.iter()
        .flat_map(|text| [&(text.len() as u32).to_le_bytes(), *text].concat())
        .collect()
}

fn difference(datatype: Datatype, alone: &[u8], among: &[u8]) -> Option<String> {
    if alone == among {
        return None;
    }
    let (Some(expected), Some(got)) = (floats(datatype, alone), floats(datatype, among)) else {
        return Some(format!("{alone:?} alone, {among:?} in company"));
    };
    let tolerance = Tolerance::default_for(datatype);
    let is_apart = |(one, other): &(&f64, &f64)| {
        let allowed = tolerance.absolute + tolerance.relative * one.abs();
        let is_equal = one == other || one.is_nan() && other.is_nan();
        !(is_equal || one.is_finite() && (*one - *other).abs() <= allowed)
    };
    let (one, other) = expected.iter().zip(&got).find(is_apart)?;
    Some(format!("{one} alone, {other} in company"))
}

/// The elements of a tensor of floats; `None` for other datatypes.
pub fn floats(datatype: Datatype, data: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks().0.iter().map(|bytes| value(*bytes)).collect()
    }
    Some(match datatype {
        Datatype::Fp16 => each(data, |bytes| f16::from_le_bytes(bytes).to_f64()),
        Datatype::Bf16 => each(data, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        Datatype::Fp32 => each(data, |bytes| f32::from_le_bytes(bytes).into()),
        Datatype::Fp64 => each(data, f64::from_le_bytes),
        _ => return None,
    })
}

/// The bytes of floats of this datatype.
pub fn float_bytes(datatype: Datatype, values: &[f64]) -> Vec<u8> {
    let bytes = |value: &f64| match datatype {
        Datatype::Fp16 => f16::from_f64(*value).to_le_bytes().to_vec(),
        Datatype::Bf16 => bf16::from_f64(*value).to_le_bytes().to_vec(),
        Datatype::Fp32 => (*value as f32).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// The runtime, in a process that takes no more memory than stated: some graphs take the size of a tensor from a row.
pub fn runtime() -> Runtime {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        #[expect(unsafe_code, reason = "changing the environment is unsafe since edition 2024")]
        // SAFETY: nothing else in this process reads or writes the environment.
        unsafe {
            std::env::set_var(TELEMETRY_OFF, "1");
        }
        let maximum = getrlimit(Resource::As).maximum;
        let limit = Rlimit {
            current: Some(MEMORY_MAX),
            maximum,
        };
        setrlimit(Resource::As, limit).unwrap();
    });
    Runtime::load().unwrap()
}

const COMPANIES: [usize; 13] = [2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 50, 50];
const MEMORY_MAX: u64 = 4 << 30;

//! Rows to try a model with: recorded ones if there are enough, otherwise made up.

use super::golden::Golden;
use super::signature::{Dim, Signature, TensorSpec};
use crate::wire::tensor::Datatype;
use crate::worker::infer::Input;

/// Rows to try one after the other: the recorded ones, then made-up ones of every form, each made only when it is asked for.
pub(super) fn candidates(signature: &Signature, golden: Option<&Golden>) -> impl Iterator<Item = ProbeRows> {
    let recorded = golden.and_then(|golden| ProbeRows::recorded(signature, golden));
    let is_dynamic = |dim: &Dim| matches!(dim, Dim::Dynamic(_));
    let has_inner = signature
        .inputs
        .iter()
        .any(|spec| spec.shape.iter().skip(1).any(is_dynamic));
    let sizes = if has_inner { &INNER_SIZES[..] } else { &INNER_SIZES[..1] };
    let forms = sizes
        .iter()
        .flat_map(|size| SCALES.map(|scale| Form { size: *size, scale }));
    let generated = forms.filter_map(|form| ProbeRows::generated(signature, form));
    recorded.into_iter().chain(generated)
}

/// Distinct rows for every input of a model.
pub(super) struct ProbeRows {
    /// In the order of the signature.
    inputs: Vec<InputRows>,
}

/// What the signature leaves open about made-up rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// For every dynamic axis but the first.
    pub(super) size: usize,
    /// Times the values; at most 60, so that the largest fits an `INT8`.
    pub(super) scale: u8,
}

struct InputRows {
    /// Shape of one row: the input's without its first axis.
    shape: Vec<usize>,
    rows: Vec<Vec<u8>>,
}

impl ProbeRows {
    /// The first `ROWS` distinct rows of golden vectors; `None` if there are fewer, or they do not fit the model.
    fn recorded(signature: &Signature, golden: &Golden) -> Option<Self> {
        let tensors = golden.inputs_for(&signature.inputs).ok()?;
        let rows = golden.rows()?;
        let mut all = Vec::new();
        for tensor in tensors {
            let elements = super::compare::elements(tensor.datatype, &tensor.data)?;
            // `chunks` of no elements at all would panic.
            let per_row = elements.len().checked_div(rows).filter(|per_row| *per_row > 0)?;
            let joined = |elements: &[&[u8]]| joined(tensor.datatype, elements);
            all.push(InputRows {
                shape: tensor.shape.get(1..)?.to_vec(),
                rows: elements.chunks(per_row).map(joined).collect(),
            });
        }
        let row = |at: usize| all.iter().map(|input| &input.rows[at]).collect::<Vec<_>>();
        let mut distinct: Vec<usize> = Vec::new();
        for at in 0..rows {
            if distinct.len() < ROWS && distinct.iter().all(|other| row(*other) != row(at)) {
                distinct.push(at);
            }
        }
        for input in &mut all {
            input.rows = distinct.iter().map(|at| input.rows[*at].clone()).collect();
        }
        (distinct.len() == ROWS).then_some(Self { inputs: all })
    }

    /// Made-up rows; `None` if they would take too much memory.
    pub(super) fn generated(signature: &Signature, form: Form) -> Option<Self> {
        let inputs = signature.inputs.iter().enumerate();
        let inputs = inputs.map(|(input, spec)| InputRows::generated(input, spec, form));
        Some(Self {
            inputs: inputs.collect::<Option<_>>()?,
        })
    }

    /// One row, as the inputs of a run.
    pub(super) fn single(&self, row: usize) -> Vec<Input<'_>> {
        self.inputs.iter().map(|input| input.run(row..=row)).collect()
    }

    /// The first row, as often as it takes to fill an axis of fixed size; `None` if that takes too much memory.
    pub(super) fn filling<'a>(&'a self, signature: &Signature) -> Option<Vec<Input<'a>>> {
        let inputs = self.inputs.iter().zip(&signature.inputs);
        inputs
            .map(|(input, spec)| {
                let rows = match spec.shape.first() {
                    Some(Dim::Fixed(size)) => *size,
                    Some(Dim::Dynamic(_)) | None => 1,
                };
                let row = input.rows[0].as_slice();
                let fits = rows.saturating_mul(row.len().max(1)) <= FILLING_BYTES_MAX;
                let mut shape: Vec<usize> = spec.shape.first().map(|_| rows).into_iter().collect();
                shape.extend(&input.shape);
                fits.then(|| Input {
                    shape,
                    parts: vec![row; rows],
                })
            })
            .collect()
    }

    /// All rows, as the inputs of one run.
    pub(super) fn together(&self) -> Vec<Input<'_>> {
        self.repeated(ROWS)
    }

    /// So many rows, these over and over, as the inputs of one run.
    pub(super) fn repeated(&self, rows: usize) -> Vec<Input<'_>> {
        self.inputs
            .iter()
            .map(|input| input.run((0..rows).map(|row| row % ROWS)))
            .collect()
    }
}

impl InputRows {
    fn generated(input: usize, spec: &TensorSpec, form: Form) -> Option<Self> {
        let shape: Vec<usize> = spec
            .shape
            .iter()
            .skip(1)
            .map(|dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Dynamic(_) => form.size,
            })
            .collect();
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size))?;
        if elements > ROW_ELEMENTS_MAX {
            return None;
        }
        let row = |row: usize| {
            let mut data = Vec::new();
            for element in 0..elements {
                push(spec.datatype, form.scale, [input, row, element], &mut data);
            }
            data
        };
        Some(Self {
            shape,
            rows: (0..ROWS).map(row).collect(),
        })
    }

    fn run(&self, rows: impl Iterator<Item = usize>) -> Input<'_> {
        let parts: Vec<_> = rows.map(|row| &*self.rows[row]).collect();
        let mut shape = vec![parts.len()];
        shape.extend(&self.shape);
        Input { shape, parts }
    }
}

fn joined(datatype: Datatype, elements: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for element in elements {
        if datatype == Datatype::Bytes {
            // Cannot be cut off: the length was read from four bytes.
            data.extend((element.len() as u32).to_le_bytes());
        }
        data.extend(*element);
    }
    data
}

/// Appends a value that differs from row to row and from element to element, given input, row and element.
///
/// Whole numbers are 0, 1 and 2, because they are often indices into a table whose size the signature does not tell.
/// Floats are between -1 and 1, and in no simple relation, so that neither a mean nor a sum of them coincides.
fn push(datatype: Datatype, scale: u8, [input, row, element]: [usize; 3], data: &mut Vec<u8>) {
    let whole = ((input + row + element) % ROWS) as u8;
    // The golden ratio's multiples spread evenly over [0, 1) and never repeat.
    let spread = ((element * ROWS + row + 1 + 7 * input) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
    let (scaled, spread) = (whole * scale, spread * f64::from(scale));
    match datatype {
        Datatype::Bool => data.push(whole % 2),
        Datatype::Fp16 => data.extend(half::f16::from_f64(spread).to_le_bytes()),
        Datatype::Bf16 => data.extend(half::bf16::from_f64(spread).to_le_bytes()),
        Datatype::Fp32 => data.extend((spread as f32).to_le_bytes()),
        Datatype::Fp64 => data.extend(spread.to_le_bytes()),
        Datatype::Bytes => data.extend([1, 0, 0, 0, b'a' + whole]),
        Datatype::Uint8 | Datatype::Int8 => data.push(scaled),
        Datatype::Uint16 | Datatype::Int16 => data.extend(u16::from(scaled).to_le_bytes()),
        Datatype::Uint32 | Datatype::Int32 => data.extend(u32::from(scaled).to_le_bytes()),
        Datatype::Uint64 | Datatype::Int64 => data.extend(u64::from(scaled).to_le_bytes()),
    }
}

/// What to try for dynamic axes besides the first. A length of 1 suits most; some models need a longer sequence
/// or a larger image before anything is left after their convolutions, or before a softmax says something.
pub(super) const INNER_SIZES: [usize; 4] = [1, 2, 8, 32];
/// How large to make the values. A classifier that only names the class calls small rows all the same.
pub(super) const SCALES: [u8; 3] = [1, 10, 50];
/// With two rows an exchange of both would still look like a rule; a third, in the middle, has two neighbours.
pub(super) const ROWS: usize = 3;
/// A dynamic image of 1024 x 1024 in three colours still fits; three such rows are some 50 MB.
const ROW_ELEMENTS_MAX: usize = 1 << 22;
/// Eight such rows of FP64.
const FILLING_BYTES_MAX: usize = ROW_ELEMENTS_MAX * 64;

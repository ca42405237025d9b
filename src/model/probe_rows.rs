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
        .flat_map(|size| SCALES.map(|scale| Form::new(*size, scale)));
    // A table of two entries refuses a 2. Of one number there are only two such rows, so longer ones come first.
    let has_whole = signature.inputs.iter().any(|spec| is_whole(spec.datatype));
    let sizes = if has_whole { sizes } else { &[] };
    let has_other = signature.inputs.iter().any(|spec| !is_whole(spec.datatype));
    let scales = if has_other { &SCALES[..] } else { &SCALES[..1] };
    let binary = sizes.iter().rev().flat_map(move |size| {
        scales.iter().map(|scale| Form {
            is_binary: true,
            ..Form::new(*size, *scale)
        })
    });
    let generated = forms
        .chain(binary)
        .filter_map(|form| ProbeRows::generated(signature, form));
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
    /// Restricts whole numbers to 0 and 1, whatever the scale.
    pub(super) is_binary: bool,
}

impl Form {
    pub(super) fn new(size: usize, scale: u8) -> Self {
        Self {
            size,
            scale,
            is_binary: false,
        }
    }
}

/// One row of every input, in the order of the signature.
pub(super) type Row = Vec<Vec<u8>>;

/// Another scale for the values of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Floats a fiftieth, whole numbers 1 at the most.
    Dim,
    /// So many times as large; whole numbers no larger than their datatype holds.
    Times(u16),
    /// Floats only.
    NotANumber,
    /// Floats only.
    Infinite,
}

impl Change {
    /// Company that a row is tried in.
    pub(super) const NEIGHBOURS: [Self; 4] = [Self::Times(50), Self::Times(10_000), Self::NotANumber, Self::Infinite];

    fn float(self, value: f64) -> f64 {
        match self {
            Self::Dim => value / 50.0,
            Self::Times(times) => value * f64::from(times),
            Self::NotANumber => f64::NAN,
            Self::Infinite => f64::INFINITY,
        }
    }

    fn whole(self, value: i128) -> i128 {
        match self {
            Self::Dim => value.min(1),
            Self::Times(times) => value.saturating_mul(times.into()),
            Self::NotANumber | Self::Infinite => value,
        }
    }

    fn apply(self, datatype: Datatype, data: &[u8], floats_only: bool) -> Vec<u8> {
        if is_whole(datatype) && floats_only {
            return data.to_vec();
        }
        macro_rules! changed {
            (float $type:ty, $to:expr, $from:expr) => {
                data.chunks_exact(size_of::<$type>())
                    .flat_map(|bytes| $from(self.float($to(<$type>::from_le_bytes(array(bytes))))).to_le_bytes())
                    .collect()
            };
            (whole $type:ty) => {
                data.chunks_exact(size_of::<$type>())
                    .flat_map(|bytes| {
                        let value = self.whole(<$type>::from_le_bytes(array(bytes)).into());
                        // Clamped to what the datatype holds.
                        (value.clamp(<$type>::MIN.into(), <$type>::MAX.into()) as $type).to_le_bytes()
                    })
                    .collect()
            };
        }
        match datatype {
            Datatype::Bool | Datatype::Bytes => data.to_vec(),
            Datatype::Fp16 => changed!(float half::f16, half::f16::to_f64, half::f16::from_f64),
            Datatype::Bf16 => changed!(float half::bf16, half::bf16::to_f64, half::bf16::from_f64),
            Datatype::Fp32 => changed!(float f32, f64::from, |value| value as f32),
            Datatype::Fp64 => changed!(float f64, f64::from, f64::from),
            Datatype::Uint8 => changed!(whole u8),
            Datatype::Uint16 => changed!(whole u16),
            Datatype::Uint32 => changed!(whole u32),
            Datatype::Uint64 => changed!(whole u64),
            Datatype::Int8 => changed!(whole i8),
            Datatype::Int16 => changed!(whole i16),
            Datatype::Int32 => changed!(whole i32),
            Datatype::Int64 => changed!(whole i64),
        }
    }
}

/// The bytes of one element; `chunks_exact` gives no other number of them.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

fn is_whole(datatype: Datatype) -> bool {
    match datatype {
        Datatype::Uint8
        | Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64 => true,
        Datatype::Bool | Datatype::Bytes => false,
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => false,
    }
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

    pub(super) fn row(&self, row: usize) -> Row {
        self.inputs.iter().map(|input| input.rows[row].clone()).collect()
    }

    /// A row at another scale; `None` if that changes nothing.
    pub(super) fn changed(&self, signature: &Signature, row: usize, change: Change, floats_only: bool) -> Option<Row> {
        let inputs = self.inputs.iter().zip(&signature.inputs);
        let changed: Row = inputs
            .map(|(input, spec)| change.apply(spec.datatype, &input.rows[row], floats_only))
            .collect();
        (changed != self.row(row)).then_some(changed)
    }

    /// Other rows of the same shape.
    pub(super) fn with_rows(&self, rows: [Row; ROWS]) -> Self {
        let inputs = self.inputs.iter().enumerate();
        let inputs = inputs.map(|(at, input)| InputRows {
            shape: input.shape.clone(),
            rows: rows.iter().map(|row| row[at].clone()).collect(),
        });
        Self {
            inputs: inputs.collect(),
        }
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
                push(spec.datatype, form, [input, row, element], &mut data);
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
/// Whole numbers are 0, 1 and 2, because they are often indices into a table whose size the signature does not tell, or 0 and 1:
/// then the rows of two elements are `1 0`, `0 1` and `1 1`.
/// Floats are between -1 and 1, and in no simple relation, so that neither a mean nor a sum of them coincides.
fn push(datatype: Datatype, form: Form, [input, row, element]: [usize; 3], data: &mut Vec<u8>) {
    let whole = ((input + row + element) % ROWS) as u8;
    // The golden ratio's multiples spread evenly over [0, 1) and never repeat.
    let spread = ((element * ROWS + row + 1 + 7 * input) as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0;
    let binary = ((row + 1) >> ((input + element) % 2) & 1) as u8;
    let scaled = if form.is_binary { binary } else { whole * form.scale };
    let spread = spread * f64::from(form.scale);
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

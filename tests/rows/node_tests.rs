//! ONNX's own node tests, of which inputs become rows and others weights, in every combination.

use std::fs;
use std::path::Path;
use std::process::Command;

use inferq::model::onnx::tensor_proto::DataType;
use inferq::model::onnx::{ModelProto, TensorProto, type_proto};
use inferq::wire::tensor::Datatype;
use prost::Message as _;

use super::graph::{any_shape, rows_of};
use super::judge::{Judgement, Pool, PoolInput, Subject, float_bytes, floats, runtime};
use super::tally::Tally;

#[test]
fn no_node_test_proven_independent_depends_on_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let mut tally = Tally::default();
    let (mut variants, mut not_loaded, mut without_rows) = (0, 0, 0);

    for case in cases(folder.path()) {
        for rows in case.variants() {
            variants += 1;
            let name = format!("{} {rows:?}", case.name);
            let path = folder.path().join("variant.onnx");
            let Some(mut subject) = case.load(&runtime, &rows, &path) else {
                not_loaded += 1;
                continue;
            };
            let mut rng = fastrand::Rng::with_seed(variants);
            let pool = case.pool(&rows, &mut rng);
            let verdict = subject.proof.verdict.clone();
            match subject.judge(&pool, &mut rng) {
                Judgement::NoRows => without_rows += 1,
                Judgement::Independent => tally.count_independent(&name, &verdict),
                Judgement::Dependent(difference) => tally.count_dependent(&name, &verdict, &difference),
            }
        }
    }

    tally.print("node tests");
    println!("  of {variants} variants {not_loaded} are not loaded, of {without_rows} no two rows run");
    tally.check(1200, 0.9);
}

struct Case {
    name: String,
    model: ModelProto,
    inputs: Vec<TensorProto>,
}

/// Has Python write the cases, and reads them.
fn cases(folder: &Path) -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let written = Command::new(root.join(".deps/python/bin/python"))
        .arg("-B")
        .arg(root.join("tests/python/node_tests.py"))
        .arg(folder)
        .status()
        .unwrap();
    assert!(
        written.success(),
        "node_tests.py failed; `make setup` installs what it needs"
    );
    let mut folders: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders.iter().map(|folder| Case::read(folder)).collect()
}

impl Case {
    fn read(folder: &Path) -> Self {
        let decoded =
            |place: usize| TensorProto::decode(&*fs::read(folder.join(format!("input_{place}.pb"))).ok()?).ok();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model: ModelProto::decode(&*fs::read(folder.join("model.onnx")).unwrap()).unwrap(),
            inputs: (0..).map_while(decoded).collect(),
        }
    }

    /// The inputs that become rows, for every variant of the case.
    fn variants(&self) -> Vec<Vec<usize>> {
        let can_be_rows = |place: &usize| {
            let tensor = &self.inputs[*place];
            tensor.dims.first().is_some_and(|rows| *rows > 0) && rows_of_tensor(tensor).is_some()
        };
        let able: Vec<usize> = (0..self.inputs.len()).filter(can_be_rows).collect();
        if able.len() > SUBSETS_MAX {
            let alone = able.iter().map(|place| vec![*place]);
            return alone.chain([able.clone()]).collect();
        }
        let subset = |bits: usize| {
            let chosen = able.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
            chosen.map(|(_, place)| *place).collect()
        };
        (1..1 << able.len()).map(subset).collect()
    }

    /// Loads the variant; where ONNX Runtime does not know the newest operator sets, as one of the newest that it does.
    fn load(&self, runtime: &inferq::worker::onnx::Runtime, rows: &[usize], path: &Path) -> Option<Subject> {
        let mut model = self.variant(rows);
        for newest in OPSETS {
            for opset in model
                .opset_import
                .iter_mut()
                .filter(|opset| matches!(opset.domain(), "" | "ai.onnx"))
            {
                opset.version = opset.version.map(|version| version.min(newest));
            }
            fs::write(path, model.encode_to_vec()).unwrap();
            if let Ok(subject) = Subject::load(runtime, path) {
                return Some(subject);
            }
        }
        None
    }

    /// The model with these inputs as rows, and the others as weights.
    fn variant(&self, rows: &[usize]) -> ModelProto {
        let mut model = self.model.clone();
        model.ir_version = model.ir_version.map(|version| version.min(IR_VERSION));
        let graph = model.graph.as_mut().unwrap();
        let mut inputs = Vec::new();
        for (place, tensor) in self.inputs.iter().enumerate() {
            if rows.contains(&place) {
                inputs.push(rows_of(tensor.name(), tensor.data_type(), &tensor.dims[1..]));
            } else {
                graph.initializer.push(tensor.clone());
            }
        }
        graph.input = inputs;
        graph.value_info.clear();
        for output in &mut graph.output {
            // They state the number of rows of the case.
            let kind = output.r#type.as_ref().and_then(|kind| kind.value.as_ref());
            if let Some(type_proto::Value::TensorType(tensor)) = kind {
                *output = any_shape(output.name(), tensor.elem_type());
            }
        }
        model
    }

    /// The rows of the case, and what is made of them.
    fn pool(&self, rows: &[usize], rng: &mut fastrand::Rng) -> Pool {
        let cut: Vec<_> = rows
            .iter()
            .filter_map(|place| rows_of_tensor(&self.inputs[*place]))
            .collect();
        let count = cut.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0).min(BASES_MAX);
        let mut inputs: Vec<PoolInput> = rows
            .iter()
            .map(|place| PoolInput {
                shape: self.inputs[*place].dims[1..]
                    .iter()
                    .map(|size| *size as usize)
                    .collect(),
                rows: Vec::new(),
            })
            .collect();
        for base in 0..count {
            for change in CHANGES {
                for (input, (datatype, rows)) in inputs.iter_mut().zip(&cut) {
                    input
                        .rows
                        .push(changed(*datatype, &rows[base % rows.len()], change, rng));
                }
            }
        }
        Pool { inputs }
    }
}

/// A tensor cut along its first axis; `None` where its elements are no datatype that can be served.
fn rows_of_tensor(tensor: &TensorProto) -> Option<(Datatype, Vec<Vec<u8>>)> {
    let datatype = match DataType::try_from(tensor.data_type()).ok()? {
        DataType::Bool => Datatype::Bool,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Int8 => Datatype::Int8,
        DataType::Int16 => Datatype::Int16,
        DataType::Int32 => Datatype::Int32,
        DataType::Int64 => Datatype::Int64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Bfloat16 => Datatype::Bf16,
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::String => Datatype::Bytes,
        _ => return None,
    };
    let count = usize::try_from(*tensor.dims.first()?).ok()?;
    let per_row: i64 = tensor.dims[1..].iter().product();
    let per_row = usize::try_from(per_row).ok()?;
    let rows = match datatype.element_bytes() {
        Some(bytes) => {
            let data = tensor.raw_data.as_deref()?;
            (0..count)
                .map(|row| data[row * per_row * bytes..][..per_row * bytes].to_vec())
                .collect()
        }
        None => {
            let element = |text: &Vec<u8>| [&(text.len() as u32).to_le_bytes(), &text[..]].concat();
            let row = |row| {
                tensor.string_data[row * per_row..][..per_row]
                    .iter()
                    .flat_map(element)
                    .collect()
            };
            (0..count).map(row).collect()
        }
    };
    Some((datatype, rows))
}

#[derive(Clone, Copy)]
enum Change {
    Nothing,
    Times(f64),
    Permuted,
    NotFinite,
}

fn changed(datatype: Datatype, row: &[u8], change: Change, rng: &mut fastrand::Rng) -> Vec<u8> {
    let floats = floats(datatype, row);
    match (change, floats) {
        (Change::Nothing, _) => row.to_vec(),
        (Change::Times(factor), Some(values)) => {
            let values: Vec<f64> = values.iter().map(|value| value * factor).collect();
            float_bytes(datatype, &values)
        }
        (Change::NotFinite, Some(mut values)) => {
            for value in &mut values {
                match rng.u8(..6) {
                    0 => *value = f64::NAN,
                    1 => *value = f64::INFINITY,
                    2 => *value = f64::NEG_INFINITY,
                    _ => {}
                }
            }
            float_bytes(datatype, &values)
        }
        (Change::Permuted, _) => permuted(datatype, row, rng),
        (Change::Times(_) | Change::NotFinite, None) => row.to_vec(),
    }
}

fn permuted(datatype: Datatype, row: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let Some(bytes) = datatype.element_bytes() else {
        return row.to_vec();
    };
    let mut elements: Vec<&[u8]> = row.chunks(bytes).collect();
    rng.shuffle(&mut elements);
    elements.concat()
}

const SUBSETS_MAX: usize = 4;
const BASES_MAX: usize = 4;
const CHANGES: [Change; 6] = [
    Change::Nothing,
    Change::Times(50.0),
    Change::Times(10_000.0),
    Change::Times(-1.0),
    Change::Permuted,
    Change::NotFinite,
];
/// As stated, then the newest that ONNX Runtime 1.28 knows, from the last.
const OPSETS: [i64; 4] = [i64::MAX, 26, 25, 24];
/// Older than any that ONNX Runtime refuses, and new enough for every operator.
const IR_VERSION: i64 = 10;

//! Graphs drawn from seeds: whatever operators follow each other, none that is proven independent may let rows meet.

use std::collections::HashSet;
use std::fs;

use inferq::model::onnx::tensor_proto::DataType;
use inferq::model::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use prost::Message as _;

use super::graph::{any_shape, rows_of};
use super::judge::{Judgement, Pool, PoolInput, Subject, runtime};
use super::tally::Tally;

#[test]
fn no_random_graph_proven_independent_depends_on_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let runtime = runtime();
    let mut tally = Tally::default();
    let mut judged = 0;

    for seed in 0.. {
        if judged == GRAPHS {
            break;
        }
        let mut drawn = Drawn::new(seed);
        drawn.grow();
        fs::write(&path, drawn.model().encode_to_vec()).unwrap();
        let Ok(mut subject) = Subject::load(&runtime, &path) else {
            continue;
        };
        let pool = drawn.pool();
        let verdict = subject.proof.verdict.clone();
        let name = format!("seed {seed}: {}", drawn.kinds());
        match subject.judge(&pool, &mut drawn.rng) {
            Judgement::NoRows => continue,
            Judgement::Independent => tally.count_independent(&name, &verdict),
            Judgement::Dependent(difference) => tally.count_dependent(&name, &verdict, &difference),
        }
        judged += 1;
    }

    tally.print("random graphs");
    tally.check(150, 0.75);
}

/// A value of the graph; an axis of -1 holds the rows.
#[derive(Clone)]
struct Drawable {
    name: String,
    shape: Vec<i64>,
}

/// A graph that is being drawn.
struct Drawn {
    rng: fastrand::Rng,
    graph: GraphProto,
    values: Vec<Drawable>,
    names: usize,
    inputs: Vec<Vec<i64>>,
}

impl Drawn {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shapes: [&[i64]; 6] = [&[4], &[3, 4], &[4, 4], &[], &[2, 4, 4], &[1]];
        let first = shapes[rng.usize(..shapes.len())].to_vec();
        let mut inputs = vec![first.clone()];
        if rng.u8(..3) == 0 {
            inputs.push(if rng.bool() {
                first
            } else {
                shapes[rng.usize(..shapes.len())].to_vec()
            });
        }
        let mut drawn = Self {
            rng,
            graph: GraphProto {
                name: Some("drawn".to_owned()),
                ..GraphProto::default()
            },
            values: Vec::new(),
            names: 0,
            inputs: inputs.clone(),
        };
        for (place, behind) in inputs.iter().enumerate() {
            let name = format!("x{place}");
            drawn.graph.input.push(rows_of(&name, DataType::Float as i32, behind));
            drawn.values.push(Drawable {
                name,
                shape: [&[-1], &behind[..]].concat(),
            });
        }
        drawn
    }

    fn grow(&mut self) {
        for _ in 0..self.rng.usize(3..=10) {
            // The newest more often than others, so that chains become long.
            let newest = self.values.len() - 1;
            let at = if self.rng.u8(..4) > 0 {
                newest
            } else {
                self.rng.usize(..=newest)
            };
            let value = self.values[at].clone();
            self.step(&value);
        }
        let last = self.values[self.values.len() - 1].clone();
        let mut outputs = vec![last];
        if self.rng.u8(..4) == 0 {
            outputs.push(self.values[self.rng.usize(..self.values.len())].clone());
        }
        for (place, value) in outputs.iter().enumerate() {
            let name = format!("y{place}");
            self.push("Identity", vec![value.name.clone()], vec![name.clone()], Vec::new());
            self.graph.output.push(any_shape(&name, DataType::Float as i32));
        }
        self.prune();
    }

    /// Adds one operator upon a value.
    fn step(&mut self, value: &Drawable) {
        match self.rng.u8(..24) {
            0..=2 => self.unary(value),
            3..=5 => self.binary(value),
            6..=8 => self.product(value),
            9 | 10 => self.transpose(value),
            11 | 12 => self.reshape(value),
            13 | 14 => self.reduce(value),
            15 | 16 => self.along(value),
            17 => self.join(value),
            18 | 19 => self.take(value),
            20 => self.repeat(value),
            21 => self.quantize(value),
            22 => self.recurrent(value),
            _ => self.body(value),
        }
    }

    fn unary(&mut self, value: &Drawable) {
        let kind = self.one_of(&["Relu", "Tanh", "Neg", "Abs", "Sigmoid", "Floor", "IsNaN"]);
        if kind == "IsNaN" {
            let truth = self.node(kind, &[&value.name], Vec::new());
            let cast = self.node("Cast", &[&truth], vec![int("to", 1)]);
            return self.keep(cast, value.shape.clone());
        }
        let name = self.node(kind, &[&value.name], Vec::new());
        self.keep(name, value.shape.clone());
    }

    fn binary(&mut self, value: &Drawable) {
        let kind = self.one_of(&["Add", "Sub", "Mul", "Max"]);
        let others: Vec<Drawable> = self
            .values
            .iter()
            .filter(|other| other.shape == value.shape)
            .cloned()
            .collect();
        let other = if !others.is_empty() && self.rng.bool() {
            others[self.rng.usize(..others.len())].name.clone()
        } else {
            let axes = self.rng.usize(..=value.shape.len());
            let shape: Vec<i64> = value.shape[value.shape.len() - axes..]
                .iter()
                .map(|size| {
                    if *size == -1 || self.rng.u8(..4) == 0 {
                        self.rng.i64(1..=2)
                    } else {
                        *size
                    }
                })
                .collect();
            self.floats(&shape)
        };
        let name = self.node(kind, &[&value.name, &other], Vec::new());
        self.keep(name, value.shape.clone());
    }

    fn product(&mut self, value: &Drawable) {
        let rank = value.shape.len();
        let last = value.shape[rank - 1];
        if rank == 2 && self.rng.u8(..4) == 0 {
            let turned = self.node("Transpose", &[&value.name], Vec::new());
            let name = self.node("MatMul", &[&value.name, &turned], Vec::new());
            return self.keep(name, vec![value.shape[0]; 2]);
        }
        if rank >= 2 && value.shape[rank - 2] > 0 && self.rng.u8(..3) == 0 {
            let left = self.floats(&[3, value.shape[rank - 2]]);
            let name = self.node("MatMul", &[&left, &value.name], Vec::new());
            let mut shape = value.shape.clone();
            shape[rank - 2] = 3;
            return self.keep(name, shape);
        }
        let right = self.floats(&[if last > 0 { last } else { 1 }, 4]);
        let name = if rank == 2 && self.rng.bool() {
            let turned = i64::from(self.rng.u8(..4) == 0);
            let bias = self.floats(&[4]);
            self.node("Gemm", &[&value.name, &right, &bias], vec![int("transA", turned)])
        } else {
            self.node("MatMul", &[&value.name, &right], Vec::new())
        };
        let mut shape = value.shape.clone();
        shape[rank - 1] = 4;
        self.keep(name, shape);
    }

    fn transpose(&mut self, value: &Drawable) {
        let mut order: Vec<usize> = (0..value.shape.len()).collect();
        self.rng.shuffle(&mut order);
        let name = self.node(
            "Transpose",
            &[&value.name],
            vec![ints("perm", order.iter().map(|axis| *axis as i64))],
        );
        self.keep(name, order.iter().map(|axis| value.shape[*axis]).collect());
    }

    fn reshape(&mut self, value: &Drawable) {
        let fixed: i64 = value.shape.iter().filter(|size| **size > 0).product();
        if self.rng.u8(..3) == 0 {
            // As PyTorch writes `x.view(x.size(k), -1)`.
            let at = self.rng.usize(..value.shape.len());
            let shape = self.node("Shape", &[&value.name], Vec::new());
            let index = self.integers(&[at as i64]);
            let size = self.node("Gather", &[&shape, &index], Vec::new());
            let open = self.integers(&[-1]);
            let target = self.node("Concat", &[&size, &open], vec![int("axis", 0)]);
            let name = self.node("Reshape", &[&value.name, &target], Vec::new());
            let rest = if value.shape[at] == -1 { fixed } else { -1 };
            return self.keep(name, vec![value.shape[at], rest]);
        }
        let halves = if fixed % 2 == 0 { 2 } else { 1 };
        let (target, shape) = match self.rng.u8(..4) {
            0 => (vec![-1, fixed], vec![-1, fixed]),
            1 => (
                vec![0, -1],
                vec![value.shape[0], if value.shape[0] == -1 { fixed } else { -1 }],
            ),
            2 => (vec![-1, halves, fixed / halves], vec![-1, halves, fixed / halves]),
            _ => (vec![halves, -1, fixed / halves], vec![halves, -1, fixed / halves]),
        };
        let target = self.integers(&target);
        let name = self.node("Reshape", &[&value.name, &target], Vec::new());
        self.keep(name, shape);
    }

    fn reduce(&mut self, value: &Drawable) {
        let kind = self.one_of(&["ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2"]);
        let axis = self.axis(value);
        let name = self.node(
            kind,
            &[&value.name],
            vec![ints("axes", [axis as i64]), int("keepdims", 1)],
        );
        let mut shape = value.shape.clone();
        shape[axis] = 1;
        if self.rng.bool() {
            let spread = self.node("Sub", &[&value.name, &name], Vec::new());
            return self.keep(spread, value.shape.clone());
        }
        self.keep(name, shape);
    }

    fn along(&mut self, value: &Drawable) {
        let axis = self.axis(value);
        let at = int("axis", axis as i64);
        match self.rng.u8(..5) {
            0 | 1 => {
                let name = self.node("Softmax", &[&value.name], vec![at]);
                self.keep(name, value.shape.clone());
            }
            2 => {
                let place = self.scalar(axis as i64);
                let name = self.node("CumSum", &[&value.name, &place], Vec::new());
                self.keep(name, value.shape.clone());
            }
            3 => {
                let index = self.node("ArgMax", &[&value.name], vec![at]);
                let name = self.node("Cast", &[&index], vec![int("to", 1)]);
                let mut shape = value.shape.clone();
                shape[axis] = 1;
                self.keep(name, shape);
            }
            _ => {
                let behind: Vec<i64> = value.shape[axis..].iter().map(|size| (*size).max(1)).collect();
                let scale = self.floats(&behind);
                let name = self.node("LayerNormalization", &[&value.name, &scale], vec![at]);
                self.keep(name, value.shape.clone());
            }
        }
    }

    fn join(&mut self, value: &Drawable) {
        let axis = self.axis(value);
        let name = self.node("Concat", &[&value.name, &value.name], vec![int("axis", axis as i64)]);
        let mut shape = value.shape.clone();
        shape[axis] *= 2;
        self.keep(name, shape);
    }

    fn take(&mut self, value: &Drawable) {
        let axis = self.axis(value);
        let mut shape = value.shape.clone();
        let name = if self.rng.bool() {
            shape[axis] = 1;
            let index = self.integers(&[0]);
            self.node("Gather", &[&value.name, &index], vec![int("axis", axis as i64)])
        } else {
            let (start, end, at) = (self.integers(&[0]), self.rng.i64(1..=4), self.integers(&[axis as i64]));
            let end = if self.rng.u8(..3) == 0 {
                i64::from(i32::MAX)
            } else {
                end
            };
            if end <= 4 {
                shape[axis] = shape[axis].clamp(1, end);
            }
            let end = self.integers(&[end]);
            self.node("Slice", &[&value.name, &start, &end, &at], Vec::new())
        };
        self.keep(name, shape);
    }

    fn repeat(&mut self, value: &Drawable) {
        let mut times = vec![1; value.shape.len()];
        let axis = self.axis(value);
        times[axis] = 2;
        let times = self.integers(&times);
        let name = self.node("Tile", &[&value.name, &times], Vec::new());
        let mut shape = value.shape.clone();
        shape[axis] *= 2;
        self.keep(name, shape);
    }

    fn quantize(&mut self, value: &Drawable) {
        let [q, s, z] = [self.fresh(), self.fresh(), self.fresh()];
        if self.rng.bool() {
            let outputs = vec![q.clone(), s.clone(), z.clone()];
            self.push("DynamicQuantizeLinear", vec![value.name.clone()], outputs, Vec::new());
            let name = self.node("DequantizeLinear", &[&q, &s, &z], Vec::new());
            return self.keep(name, value.shape.clone());
        }
        let scale = self.floats(&[]);
        let quantized = self.node("QuantizeLinear", &[&value.name, &scale], Vec::new());
        let name = self.node("DequantizeLinear", &[&quantized, &scale], Vec::new());
        self.keep(name, value.shape.clone());
    }

    /// A GRU over a value of three axes, whichever of them is time.
    fn recurrent(&mut self, value: &Drawable) {
        let &[first, second, width] = &value.shape[..] else {
            return;
        };
        if width <= 0 {
            return;
        }
        let (weights, recurrence) = (self.floats(&[1, 6, width]), self.floats(&[1, 6, 2]));
        let name = self.node(
            "GRU",
            &[&value.name, &weights, &recurrence],
            vec![int("hidden_size", 2)],
        );
        let one = self.integers(&[1]);
        let squeezed = self.node("Squeeze", &[&name, &one], Vec::new());
        self.keep(squeezed, vec![first, second, 2]);
    }

    /// A Scan over some axis, with or without something that it carries on.
    fn body(&mut self, value: &Drawable) {
        let axis = self.axis(value);
        let carries = self.rng.bool();
        let mut slice = value.shape.clone();
        slice.remove(axis);
        let mut body = GraphProto {
            name: Some("body".to_owned()),
            ..GraphProto::default()
        };
        let node = |kind: &str, inputs: &[&str], output: &str| NodeProto {
            op_type: Some(kind.to_owned()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let float = DataType::Float as i32;
        if carries {
            body.input.push(any_shape("state", float));
            body.node.push(node("Add", &["state", "turn"], "sum"));
            body.node.push(node("Identity", &["sum"], "next"));
            body.output.push(any_shape("next", float));
        } else {
            body.node.push(node("Tanh", &["turn"], "sum"));
        }
        body.input.push(any_shape("turn", float));
        body.output.push(any_shape("sum", float));
        let graph = AttributeProto {
            name: Some("body".to_owned()),
            r#type: Some(GRAPH),
            g: Some(body),
            ..AttributeProto::default()
        };
        let attributes = vec![
            int("num_scan_inputs", 1),
            ints("scan_input_axes", [axis as i64]),
            ints("scan_output_axes", [axis as i64]),
            graph,
        ];
        let output = self.fresh();
        if carries {
            let (state, last) = (self.floats(&[]), self.fresh());
            // As large as a turn from the first one on.
            let shaped = self.node(
                "ReduceMax",
                &[&value.name],
                vec![ints("axes", [axis as i64]), int("keepdims", 0)],
            );
            let zero = self.node("Mul", &[&shaped, &state], Vec::new());
            self.push(
                "Scan",
                vec![zero, value.name.clone()],
                vec![last, output.clone()],
                attributes,
            );
        } else {
            self.push("Scan", vec![value.name.clone()], vec![output.clone()], attributes);
        }
        self.keep(output, value.shape.clone());
    }

    fn axis(&mut self, value: &Drawable) -> usize {
        // The rows less often than others, or nearly nothing would stay apart.
        let axis = self.rng.usize(..value.shape.len());
        if value.shape[axis] == -1 && self.rng.u8(..3) > 0 {
            self.rng.usize(..value.shape.len())
        } else {
            axis
        }
    }

    fn one_of(&mut self, kinds: &[&'static str]) -> &'static str {
        kinds[self.rng.usize(..kinds.len())]
    }

    fn keep(&mut self, name: String, shape: Vec<i64>) {
        let shape = shape
            .into_iter()
            .map(|size| if size < 0 { -1 } else { size })
            .collect::<Vec<_>>();
        if !shape.is_empty() {
            self.values.push(Drawable { name, shape });
        }
    }

    fn fresh(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    fn node(&mut self, kind: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh();
        let inputs = inputs.iter().map(ToString::to_string).collect();
        self.push(kind, inputs, vec![output.clone()], attributes);
        output
    }

    fn push(&mut self, kind: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            name: Some(format!("{}_{kind}", output[0])),
            op_type: Some(kind.to_owned()),
            input,
            output,
            attribute,
            ..NodeProto::default()
        });
    }

    fn floats(&mut self, shape: &[i64]) -> String {
        let name = self.fresh();
        let count = shape.iter().product::<i64>() as usize;
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(DataType::Float as i32),
            dims: shape.to_vec(),
            float_data: (0..count).map(|_| self.rng.f32() + 0.1).collect(),
            ..TensorProto::default()
        });
        name
    }

    fn integers(&mut self, values: &[i64]) -> String {
        self.constant(values, vec![values.len() as i64])
    }

    fn scalar(&mut self, value: i64) -> String {
        self.constant(&[value], Vec::new())
    }

    fn constant(&mut self, values: &[i64], dims: Vec<i64>) -> String {
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            name: Some(name.clone()),
            data_type: Some(DataType::Int64 as i32),
            dims,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        name
    }

    /// Leaves out what reaches no output: ONNX Runtime runs it all the same, and where it fails for several rows it spoils no
    /// answer, but costs a run.
    fn prune(&mut self) {
        let mut needed: HashSet<String> = self
            .graph
            .output
            .iter()
            .map(|output| output.name().to_owned())
            .collect();
        let mut kept = Vec::new();
        for node in std::mem::take(&mut self.graph.node).into_iter().rev() {
            if node.output.iter().any(|name| needed.contains(name)) {
                needed.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.graph.node = kept;
    }

    fn model(&self) -> ModelProto {
        ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(17),
            }],
            graph: Some(self.graph.clone()),
            ..ModelProto::default()
        }
    }

    /// The operators, for messages.
    fn kinds(&self) -> String {
        let kinds: Vec<&str> = self.graph.node.iter().map(NodeProto::op_type).collect();
        kinds.join(" ")
    }

    /// Rows of several scales.
    fn pool(&mut self) -> Pool {
        let inputs = self.inputs.clone();
        let input = |behind: &Vec<i64>| {
            let count = behind.iter().product::<i64>() as usize;
            let mut row = |scale: f32| -> Vec<u8> {
                let values = (0..count).map(|_| (self.rng.f32() * 2.0 - 1.0) * scale);
                values.flat_map(f32::to_le_bytes).collect()
            };
            let scales = [1.0, 1.0, 1.0, 50.0, 10_000.0, 0.01];
            let mut rows: Vec<Vec<u8>> = scales.map(&mut row).into();
            rows.push(f32::NAN.to_le_bytes().repeat(count));
            rows.push(f32::INFINITY.to_le_bytes().repeat(count));
            PoolInput {
                shape: behind.iter().map(|size| *size as usize).collect(),
                rows,
            }
        };
        Pool {
            inputs: inputs.iter().map(input).collect(),
        }
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(INT),
        i: Some(value),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(INTS),
        ints: values.into_iter().collect(),
        ..AttributeProto::default()
    }
}

const GRAPHS: usize = 500;
/// Kinds of attributes, as ONNX numbers them.
const INT: i32 = 2;
const GRAPH: i32 = 5;
const INTS: i32 = 7;

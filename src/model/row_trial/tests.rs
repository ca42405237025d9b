use super::*;
use crate::model::test_engine::{Array, TestEngine, f32_bytes, spec};
use crate::wire::rows::RowRelation::{Coupled, Independent, Unknown};
use crate::wire::tensor::Tensor;

/// Runs of a trial of floats that shows something at once: three rows, the first again, all together; the dim row; every
/// neighbour, alone and with others.
const RUNS: usize = ROWS + 1 + 1 + 1 + 2 * Change::NEIGHBOURS.len();

fn trial(engine: &mut TestEngine, golden: Option<&Golden>) -> Result<TrialReport, BatchingError> {
    let signature = engine.signature().clone();
    try_rows(engine, &signature, golden)
}

fn relation(engine: &mut TestEngine) -> RowRelation {
    trial(engine, None).unwrap().relation
}

fn reason(engine: &mut TestEngine) -> String {
    trial(engine, None).unwrap().reason.expect("not independent")
}

/// One input and one output of `FP32 [batch,3]`, by a rule on all rows.
fn by_batch(rule: impl FnMut(Vec<Vec<f32>>) -> Vec<Vec<f32>> + Send + 'static) -> TestEngine {
    let mut rule = rule;
    let io = |name| vec![spec(name, Datatype::Fp32, &["batch", "3"])];
    TestEngine::new(io("x"), io("y"), move |inputs| {
        let rows = rule(inputs[0].rows());
        Ok(vec![Array::f32(&[rows.len(), 3], rows.concat())])
    })
}

/// Divides everything by a number that depends on all rows.
fn divided(by: impl Fn(&[f32]) -> f32 + Send + 'static) -> TestEngine {
    by_batch(move |rows| {
        let by = by(&rows.concat());
        let scaled = |row: &Vec<f32>| row.iter().map(|value| value / by).collect();
        rows.iter().map(scaled).collect()
    })
}

fn minus_mean(mut rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    for column in 0..3 {
        let mean = rows.iter().map(|row| row[column]).sum::<f32>() / rows.len() as f32;
        rows.iter_mut().for_each(|row| row[column] -= 0.001 * mean);
    }
    rows
}

fn golden(rows: &[[f32; 3]]) -> Golden {
    let tensor = |name: &str| Tensor {
        name: name.into(),
        datatype: Datatype::Fp32,
        shape: vec![rows.len(), 3],
        data: f32_bytes(rows.concat()).into(),
    };
    Golden {
        path: "golden.npz".into(),
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        tolerance: None,
    }
}

#[test]
fn rows_that_ignore_each_other_are_batched() {
    assert_eq!(relation(&mut TestEngine::sums()), Independent);
}

#[test]
fn the_last_bits_may_differ_between_batch_sizes() {
    let mut engine = by_batch(|rows| {
        let bits = 1.0 + rows.len() as f32 * 1e-6;
        rows.iter()
            .map(|row| row.iter().map(|value| value * bits).collect())
            .collect()
    });

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn a_model_that_takes_the_mean_of_its_batch_is_found() {
    let reason = reason(&mut by_batch(minus_mean));

    assert!(
        reason.starts_with("output y of a row depends on its neighbours: "),
        "{reason}"
    );
    assert!(reason.ends_with(" with others"), "{reason}");
}

#[test]
fn rows_that_come_back_in_another_order_are_found() {
    let reversed = reason(&mut by_batch(|mut rows| {
        rows.reverse();
        rows
    }));
    let rotated = reason(&mut by_batch(|mut rows| {
        rows.rotate_left(1);
        rows
    }));

    assert!(reversed.contains("depends on its neighbours"), "{reversed}");
    assert!(rotated.contains("depends on its neighbours"), "{rotated}");
}

#[test]
fn a_shape_that_depends_on_the_neighbours_is_found() {
    let mut engine = TestEngine::new(
        vec![spec("x", Datatype::Fp32, &["n", "1"])],
        vec![spec("y", Datatype::Fp32, &["n", "m"])],
        |inputs| {
            let rows = inputs[0].shape[0];
            Ok(vec![Array::f32(&[rows, rows], inputs[0].to_f32().repeat(rows))])
        },
    );

    let reason = reason(&mut engine);

    assert!(reason.ends_with("shape [1] alone, [3] with others"), "{reason}");
}

#[test]
fn an_output_without_a_row_for_each_row_is_found() {
    for shape in [&[][..], &[1], &[2]] {
        let inputs = vec![spec("x", Datatype::Fp32, &["n", "3"])];
        let outputs = vec![spec("y", Datatype::Fp32, &[])];
        let mut engine = TestEngine::new(inputs, outputs, |_| {
            Ok(vec![Array::f32(shape, vec![0.5; shape.iter().product()])])
        });

        assert_eq!(
            reason(&mut engine),
            "output y does not have one row for each row of input"
        );
    }
}

#[test]
fn a_model_that_fails_on_made_up_rows_says_what_to_do() {
    let io = |name| vec![spec(name, Datatype::Int64, &["n", "tokens"])];
    let mut engine = TestEngine::new(io("ids"), io("y"), |_| {
        Err(EngineError::Run("index out of range".into()))
    });

    let reason = reason(&mut engine);

    let expected = "nothing shows that rows are independent (with a single row, the model failed on this input: \
                    index out of range): record at least 3 distinct golden rows, or set batching in model.toml";
    assert_eq!(reason, expected);
    // Whole numbers of 0 and 1 have one scale.
    assert_eq!(
        engine.runs,
        probe_rows::INNER_SIZES.len() * (probe_rows::SCALES.len() + 1)
    );
}

#[test]
fn a_model_that_answers_every_row_alike_shows_nothing() {
    let reason = reason(&mut TestEngine::by_row(|_| [1.0, f32::NAN]));

    assert!(reason.contains("(every row gave the same outputs)"), "{reason}");
}

#[test]
fn classifiers_of_large_values_are_tried_with_them() {
    let mut engine = TestEngine::by_row(|row| [if row[0] > 5.0 { 1.0 } else { 0.0 }, 0.0]);

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn a_dynamic_axis_is_tried_at_several_sizes() {
    let mut engine = TestEngine::new(
        vec![spec("image", Datatype::Fp32, &["n", "3", "height", "width"])],
        vec![spec("y", Datatype::Fp32, &["n"])],
        |inputs| {
            let shape = &inputs[0].shape;
            if shape[2] < 8 {
                return Err(EngineError::Run("kernel larger than image".into()));
            }
            Ok(vec![Array::f32(
                &[shape[0]],
                inputs[0].rows().iter().map(|row| row.iter().sum()),
            )])
        },
    );

    assert_eq!(relation(&mut engine), Independent);
    assert_eq!(engine.runs, 2 * probe_rows::SCALES.len() + RUNS);
}

#[test]
fn indices_strings_truths_are_made_up_small() {
    let inputs = vec![
        spec("ids", Datatype::Int32, &["n", "4"]),
        spec("words", Datatype::Bytes, &["n"]),
        spec("mask", Datatype::Bool, &["n", "2"]),
    ];
    let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Uint8, &["n"])], |inputs| {
        let [ids, words, mask] = inputs else { unreachable!() };
        if ids.data.chunks(4).any(|id| id[0] > 2 || id[1..] != [0; 3]) {
            return Err(EngineError::Run("index out of range".into()));
        }
        let letters: Vec<_> = words.data.chunks(5).map(|word| word[4]).collect();
        assert!(letters.iter().all(|letter| b"abc".contains(letter)));
        assert!(mask.data.iter().all(|truth| *truth < 2));
        Ok(vec![Array {
            shape: vec![letters.len()],
            data: letters,
        }])
    });

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn golden_rows_are_tried_before_made_up_ones() {
    let mut engine = by_batch(|rows| {
        assert!(rows.iter().all(|row| row[0].abs() >= 0.2 || row[0].is_nan()));
        rows
    });

    let rows = [[10.0; 3], [10.0; 3], [11.0; 3], [12.0; 3]];
    let report = trial(&mut engine, Some(&golden(&rows))).unwrap();

    assert_eq!(report.relation, Independent);
    assert_eq!(engine.runs, RUNS);
}

#[test]
fn too_few_distinct_golden_rows_give_way_to_made_up_ones() {
    for rows in [&[][..], &[[9.0; 3]], &[[9.0; 3], [8.0; 3], [9.0; 3]]] {
        let mut engine = by_batch(|rows| {
            assert!(rows.iter().flatten().all(|value| ![8.0, 9.0].contains(value)));
            rows
        });

        assert_eq!(trial(&mut engine, Some(&golden(rows))).unwrap().relation, Independent);
    }
}

#[test]
fn a_lost_device_is_an_error() {
    let io = |name| vec![spec(name, Datatype::Fp32, &["n"])];
    let mut engine = TestEngine::new(io("x"), io("y"), |_| Err(EngineError::Device("gone".into())));

    assert!(matches!(trial(&mut engine, None), Err(BatchingError::Device(_))));
}

#[test]
fn rows_too_large_to_make_up_are_not_tried() {
    for size in ["5000000", "18446744073709551615"] {
        let inputs = vec![spec("x", Datatype::Fp32, &["n", "2", size])];
        let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n"])], |_| unreachable!());

        assert!(reason(&mut engine).contains("(a row is too large to be made up)"));
    }
}

#[test]
fn a_branch_on_the_largest_float_of_all_rows_is_found() {
    let mut engine = divided(|values| {
        if values.iter().any(|value| *value > 1.0) {
            255.0
        } else {
            1.0
        }
    });

    let reason = reason(&mut engine);

    assert!(
        reason.starts_with("output y of a row depends on its neighbours: "),
        "{reason}"
    );
    assert!(reason.ends_with(" beside larger values"), "{reason}");
}

#[test]
fn a_branch_on_the_largest_byte_of_all_rows_is_found() {
    for (columns, above) in [("1", 1), ("4", 1), ("4", 9), ("4", 127)] {
        let inputs = vec![spec("x", Datatype::Uint8, &["n", columns])];
        let outputs = vec![spec("y", Datatype::Fp32, &["n", columns])];
        let mut engine = TestEngine::new(inputs, outputs, move |inputs| {
            let pixels = &inputs[0].data;
            let by = if pixels.iter().any(|pixel| *pixel > above) {
                255.0
            } else {
                1.0
            };
            let values = pixels.iter().map(|pixel| f32::from(*pixel) / by);
            Ok(vec![Array::f32(&inputs[0].shape, values)])
        });

        assert_eq!(relation(&mut engine), Coupled, "{columns} columns, above {above}");
    }
}

#[test]
fn a_branch_on_what_is_no_number_is_found() {
    for (is_hit, beside) in [
        (f32::is_nan as fn(f32) -> bool, "beside NaN"),
        (f32::is_infinite, "beside infinite values"),
    ] {
        let mut engine = divided(move |values| {
            if values.iter().any(|value| is_hit(*value)) {
                2.0
            } else {
                1.0
            }
        });

        let reason = reason(&mut engine);

        assert!(reason.ends_with(beside), "{reason}");
    }
}

#[test]
fn a_step_that_all_rows_have_in_common_is_found() {
    // As a quantization to 8 bits at run time has it.
    let mut engine = by_batch(|rows| {
        let largest = rows.iter().flatten().fold(0.0_f32, |most, value| most.max(value.abs()));
        let step = if largest.is_finite() { largest / 127.0 } else { 1.0 };
        let rounded = |row: &Vec<f32>| row.iter().map(|value| (value / step).round() * step).collect();
        rows.iter().map(rounded).collect()
    });

    assert_eq!(relation(&mut engine), Coupled);
}

#[test]
fn rows_of_any_scale_may_be_independent() {
    let mut engine = by_batch(|rows| {
        let soft = |row: &Vec<f32>| {
            let sum: f32 = row.iter().map(|value| value.exp()).sum();
            row.iter().map(|value| value.exp() / sum).collect()
        };
        rows.iter().map(soft).collect()
    });

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn the_order_of_a_sum_shows_in_large_values_only() {
    // Sums of large values that cancel differ from batch to batch by what rounding makes of them.
    let mut engine = by_batch(|rows| {
        let rounding = rows.len() as f32 * 3e-6;
        let near = |row: &Vec<f32>| row.iter().map(|value| value + row[0].abs() * rounding).collect();
        rows.iter().map(near).collect()
    });

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn a_neighbour_that_fails_alone_is_left_out() {
    let mut engine = TestEngine::new(
        vec![spec("x", Datatype::Fp32, &["n", "3"])],
        vec![spec("y", Datatype::Fp32, &["n", "3"])],
        |inputs| {
            let values = inputs[0].to_f32();
            if values.iter().any(|value| value.is_nan()) {
                return Err(EngineError::Run("no number".into()));
            }
            Ok(vec![Array::f32(&inputs[0].shape, values)])
        },
    );

    assert_eq!(relation(&mut engine), Independent);
    assert_eq!(engine.runs, RUNS - 1);
}

#[test]
fn floats_are_scaled_though_indices_beside_them_are_not() {
    let inputs = vec![
        spec("ids", Datatype::Int64, &["n", "2"]),
        spec("x", Datatype::Fp32, &["n", "2"]),
    ];
    let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Fp32, &["n", "2"])], |inputs| {
        if inputs[0].data.chunks(8).any(|id| id[0] > 2 || id[1..] != [0; 7]) {
            return Err(EngineError::Run("index out of range".into()));
        }
        let values = inputs[1].to_f32();
        let by = if values.iter().any(|value| *value > 1.0) {
            255.0
        } else {
            1.0
        };
        Ok(vec![Array::f32(
            &inputs[1].shape,
            values.iter().map(|value| value / by),
        )])
    });

    assert_eq!(relation(&mut engine), Coupled);
}

#[test]
fn a_random_or_stateful_model_is_called_that() {
    let mut run = 0.0;
    let mut engine = by_batch(move |mut rows| {
        run += 1.0;
        rows.iter_mut().flatten().for_each(|value| *value += run);
        rows
    });

    let report = trial(&mut engine, None).unwrap();

    assert_eq!(report.relation, Unknown);
    let reason = report.reason.unwrap();
    let expected =
        "the model answers the same row differently each time: it is random, or keeps something from run to run; ";
    assert!(reason.starts_with(expected), "{reason}");
    assert_eq!(report.row_outputs, [true]);
}

#[test]
fn a_table_of_two_entries_is_tried_with_0_or_1() {
    let inputs = vec![
        spec("ids", Datatype::Int64, &["n", "tokens"]),
        spec("token_type_ids", Datatype::Int64, &["n", "tokens"]),
    ];
    let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Int64, &["n", "tokens"])], |inputs| {
        if inputs[1].data.chunks(8).any(|id| id[0] > 1 || id[1..] != [0; 7]) {
            return Err(EngineError::Run("index out of range".into()));
        }
        Ok(vec![inputs[0].clone()])
    });

    assert_eq!(relation(&mut engine), Independent);
}

#[test]
fn made_up_rows_of_0_or_1_are_three_different_ones() {
    let inputs = vec![spec("truths", Datatype::Int64, &["n", "2"])];
    let (told, heard) = std::sync::mpsc::channel();
    let mut engine = TestEngine::new(inputs, vec![spec("y", Datatype::Int64, &["n", "2"])], move |inputs| {
        if inputs[0].data.chunks(8).any(|id| id[0] > 1 || id[1..] != [0; 7]) {
            return Err(EngineError::Run("index out of range".into()));
        }
        told.send(inputs[0].data.chunks(8).map(|id| id[0]).collect::<Vec<_>>())
            .unwrap();
        Ok(vec![inputs[0].clone()])
    });

    assert_eq!(relation(&mut engine), Independent);

    // The first row of 0, 1 and 2 has no 2.
    let seen = heard.try_iter().filter(|run| run.len() == 2).skip(1).take(ROWS);
    assert_eq!(seen.collect::<Vec<_>>(), [[1, 0], [0, 1], [1, 1]]);
}

#[test]
fn row_outputs_are_told_whatever_else_is_found() {
    let outputs = vec![
        spec("mixed", Datatype::Fp32, &["n", "3"]),
        spec("table", Datatype::Fp32, &["2", "2"]),
    ];
    let mut engine = TestEngine::new(
        vec![spec("x", Datatype::Fp32, &["n", "3"])],
        outputs.clone(),
        |inputs| {
            let rows = minus_mean(inputs[0].rows());
            let mixed = Array::f32(&inputs[0].shape, rows.concat());
            Ok(vec![mixed, Array::f32(&[2, 2], [0.5; 4])])
        },
    );
    let mut apart = TestEngine::new(vec![spec("x", Datatype::Fp32, &["n", "3"])], outputs, |inputs| {
        Ok(vec![inputs[0].clone(), Array::f32(&[2, 2], [0.5; 4])])
    });

    let (coupled, unknown) = (trial(&mut engine, None).unwrap(), trial(&mut apart, None).unwrap());

    assert_eq!((coupled.relation, coupled.row_outputs), (Coupled, vec![true, false]));
    assert_eq!((unknown.relation, unknown.row_outputs), (Unknown, vec![true, false]));
    let expected = "output table does not have one row for each row of input";
    assert_eq!(unknown.reason.as_deref(), Some(expected));
}

//! The proof on small graphs, one question each.

use super::testing::{graph, model, model_of};
use super::*;
use crate::model::onnx::{FunctionProto, OperatorSetIdProto};

fn verdict(text: &str) -> RowsVerdict {
    prove_model(&model(text)).verdict
}

#[track_caller]
fn independent(text: &str) {
    assert_eq!(verdict(text), RowsVerdict::Independent, "{text}");
}

#[track_caller]
fn coupled(text: &str, reason: &str) {
    match verdict(text) {
        RowsVerdict::Coupled { reason: said } => assert!(said.contains(reason), "{said}"),
        other => panic!("{other:?} of {text}"),
    }
}

#[track_caller]
fn unknown(text: &str, reason: &str) {
    match verdict(text) {
        RowsVerdict::Unknown { reason: said } => assert!(said.contains(reason), "{said}"),
        other => panic!("{other:?} of {text}"),
    }
}

#[test]
fn a_dense_network_keeps_rows_apart() {
    independent(
        "input x [n,3]
         weights w [3,2]
         weights b [2]
         h = Gemm(x, w, b)
         r = Relu(h)
         y = Softmax(r) axis:-1
         output y",
    );
}

#[test]
fn a_maximum_over_all_couples_rows() {
    coupled(
        "input x [n,3]
         scalar one 1
         weights dim [1]
         weights bright [1]
         m = ReduceMax(x) keepdims:0
         c = Greater(m, one)
         f = Where(c, bright, dim)
         y = Div(x, f)
         output y",
        "node `m_ReduceMax` (ReduceMax) reduces over the rows (axis 0)",
    );
    independent(
        "input x [n,3]
         m = ReduceMax(x) axes:1
         y = Div(x, m)
         output y",
    );
}

#[test]
fn a_branch_on_all_rows_couples_them() {
    let then = graph("a = Neg(x)\noutput a", &[]);
    let otherwise = graph("b = Relu(x)\noutput b", &[]);
    let branch = |condition: &str| {
        let text = format!(
            "input x [n,3]\nscalar c 1\n{condition}\ny = If(k) then_branch:{{then}} else_branch:{{else}}\noutput y"
        );
        let bodies = [("then", then.clone()), ("else", otherwise.clone())];
        prove_model(&model_of(graph(&text, &bodies), 17)).verdict
    };

    let any = branch("n = IsNaN(x)\ni = Cast(n) to:7\nm = ReduceMax(i) keepdims:0\nk = Cast(m) to:9");
    let count = branch("s = Shape(x)\nz = Constant() value_int:0\ng = Gather(s, z)\nk = Greater(g, c)");
    let of_values = branch("k = Cast(x) to:9");

    let RowsVerdict::Coupled { reason } = any else {
        panic!("{any:?}")
    };
    assert!(reason.contains("m_ReduceMax"), "{reason}");
    let RowsVerdict::Coupled { reason } = count else {
        panic!("{count:?}")
    };
    assert!(reason.contains("chooses a branch by the number of rows"), "{reason}");
    let RowsVerdict::Coupled { reason } = of_values else {
        panic!("{of_values:?}")
    };
    assert!(
        reason.contains("chooses one branch for all rows by their values"),
        "{reason}"
    );
    assert_eq!(branch("k = Identity(c)"), RowsVerdict::Independent);
}

#[test]
fn a_scale_taken_from_the_batch_couples_rows() {
    coupled(
        "input x [n,3]
         q, s, z = DynamicQuantizeLinear(x)
         y = DequantizeLinear(q, s, z)
         output y",
        "node `q_DynamicQuantizeLinear` (DynamicQuantizeLinear) takes its scale from all rows together",
    );
    independent(
        "input x [n,3]
         weights s []
         q = QuantizeLinear(x, s)
         y = DequantizeLinear(q, s)
         output y",
    );
    coupled(
        "input x [n,3]
         weights s [4]
         y = QuantizeLinear(x, s) axis:0
         output y",
        "has a scale for each place among the rows",
    );
}

#[test]
fn broadcasting_lays_fixed_places_upon_rows() {
    independent("input x [n,3]\nweights c [3]\ny = Add(x, c)\noutput y");
    independent("input x [n,3]\nweights c [1,3]\ny = Add(x, c)\noutput y");
    coupled(
        "input x [n,3]\nweights c [4,3]\ny = Add(x, c)\noutput y",
        "lays 4 fixed places upon the rows",
    );
    coupled(
        "input x [n]\nweights c [4]\ny = Add(x, c)\noutput y",
        "lays 4 fixed places upon the rows",
    );
    coupled(
        "input x [n,3]\ninput z [n,5,3]\ny = Add(x, z)\noutput y",
        "lays rows upon other rows (axes 1 and 0)",
    );
    independent("input x [n,3]\ninput z [n,1]\ny = Add(x, z)\noutput y");
}

#[test]
fn products_keep_rows_or_sum_over_them() {
    independent("input x [n,t,3]\nweights w [3,2]\ny = MatMul(x, w)\noutput y");
    independent("input x [n,3]\nweights w [3]\ny = MatMul(x, w)\noutput y");
    independent("input x [n,2,3]\ninput z [n,3,2]\ny = MatMul(x, z)\noutput y");
    coupled(
        "input x [n,3]\nt = Transpose(x)\ny = MatMul(x, t)\noutput y",
        "multiplies rows with other rows",
    );
    coupled(
        "input x [n,3]\nweights w [2,4]\ny = MatMul(w, x)\noutput y",
        "sums over the rows (axis 0)",
    );
    coupled(
        "input x [n,3]\nweights w [4,2]\ny = Gemm(x, w) transA:1\noutput y",
        "sums over the rows (axis 0)",
    );
    coupled(
        "input x [n,3]\nweights w [3,2]\nweights b [4,2]\ny = Gemm(x, w, b)\noutput y",
        "4 fixed places",
    );
    coupled(
        "input x [n,2,3]\nweights w [4,3,2]\ny = MatMul(x, w)\noutput y",
        "lays 4 fixed matrices upon the rows",
    );
    unknown(
        "input x [n,3]\nweights w [4,3]\ny = Gemm(w, x) transB:1\noutput y",
        "has its rows along axis 1",
    );
    independent("input x [n,3]\nweights w [3,4]\ny = Einsum(x, w) equation:nk,km->nm\noutput y");
    coupled(
        "input x [n,3]\ny = Einsum(x) equation:nk->k\noutput y",
        "sums over the rows",
    );
}

#[test]
fn convolutions_keep_images_apart() {
    independent(
        "input x [n,3,8,8]
         weights w [4,3,3,3]
         c = Conv(x, w) pads:1,1,1,1
         b = MaxPool(c) kernel_shape:2,2 strides:2,2
         f = Flatten(b)
         weights d [64,10]
         y = MatMul(f, d)
         output y",
    );
    coupled(
        "input x [n,3,8]\nweights w [4,8,3]\nt = Transpose(x) perm:1,2,0\ny = Conv(t, w)\noutput y",
        "works along the rows",
    );
    coupled(
        "input x [n,3]\nweights s [3]\ny, m, v = BatchNormalization(x, s, s, s, s) training_mode:1\noutput y",
        "in training mode",
    );
    independent("input x [n,3]\nweights s [3]\ny = BatchNormalization(x, s, s, s, s)\noutput y");
}

#[test]
fn a_constant_shape_finds_the_rows_again() {
    independent(
        "input x [n,3,4,4]
         ints flat -1 48
         weights w [48,2]
         f = Reshape(x, flat)
         y = MatMul(f, w)
         output y",
    );
    independent("input x [n,t,4]\nints flat 0 -1\ny = Reshape(x, flat)\noutput y");
    coupled(
        "input x [n,4]\nints fixed 2 2\ny = Reshape(x, fixed)\noutput y",
        "has a fixed shape [2,2]",
    );
    unknown(
        "input x [n,6]\nints four -1 4\ny = Reshape(x, four)\noutput y",
        "rows cannot be found again",
    );
}

#[test]
fn a_shape_that_is_computed_finds_the_rows_again() {
    // As PyTorch writes `x.view(x.size(0) * x.size(1), -1)` and back.
    independent(
        "input x [n,t,8]
         scalar zero 0
         scalar first 1
         ints front 0
         ints open -1
         weights w [8,8]
         s = Shape(x)
         a = Gather(s, zero)
         b = Gather(s, first)
         ab = Mul(a, b)
         u = Unsqueeze(ab, front)
         ua = Unsqueeze(a, front)
         ub = Unsqueeze(b, front)
         flat = Concat(u, open) axis:0
         f = Reshape(x, flat)
         h = MatMul(f, w)
         back = Concat(ua, ub, open) axis:0
         y = Reshape(h, back)
         output y",
    );
}

#[test]
fn a_strided_slice_of_a_shape_finds_the_rows_again() {
    // As tf2onnx writes a flattening.
    independent(
        "input x [n,2,3]
         ints zero 0
         ints first 1
         ints open -1
         s = Shape(x)
         c = Cast(s) to:6
         a = Slice(c, zero, first, zero)
         t = Concat(a, open) axis:0
         l = Cast(t) to:7
         y = Reshape(x, l)
         output y",
    );
}

#[test]
fn attention_heads_are_folded_into_rows_and_back() {
    // [t,n,e] to [t,n*h,d], turned to [n*h,t,d], as PyTorch's own attention does it.
    independent(
        "input x [n,5,8]
         ints fold 5 -1 4
         ints back 5 -1 8
         q = Transpose(x) perm:1,0,2
         f = Reshape(q, fold)
         h = Transpose(f) perm:1,0,2
         k = Transpose(f) perm:1,2,0
         s = MatMul(h, k)
         p = Softmax(s) axis:-1
         v = MatMul(p, h)
         t = Transpose(v) perm:1,0,2
         m = Reshape(t, back)
         y = Transpose(m) perm:1,0,2
         output y",
    );
}

#[test]
fn tables_are_looked_up_by_each_row_alone() {
    independent("input ids [n,t]\nweights table [9,4]\ny = Gather(table, ids)\noutput y");
    coupled(
        "input x [n,4]\nints first 0\ny = Gather(x, first)\noutput y",
        "takes rows by their place (axis 0)",
    );
    coupled(
        "input x [n,4]\ninput i [n]\ny = Gather(x, i) axis:1\noutput y",
        "by the values of other rows",
    );
    independent("input x [n,4]\nints first 0\ny = Gather(x, first) axis:1\noutput y");
}

#[test]
fn the_last_token_is_taken_by_the_place_of_each_row() {
    // As PyTorch writes `x[torch.arange(n), lengths]`.
    independent(
        "input x [n,t,4]
         input lengths [n]
         scalar zero 0
         scalar one 1
         ints last -1
         s = Shape(x)
         a = Gather(s, zero)
         r = Range(zero, a, one)
         u = Unsqueeze(r, last)
         v = Unsqueeze(lengths, last)
         i = Concat(u, v) axis:-1
         y = GatherND(x, i)
         output y",
    );
    unknown(
        "input x [n,4]
         scalar zero 0
         scalar one 1
         ints last -1
         s = Shape(x)
         a = Gather(s, zero)
         r = Range(zero, a, one)
         f = Cast(r) to:1
         u = Unsqueeze(f, last)
         y = Mul(x, u)
         output y",
        "uses the place of a row among the others",
    );
}

#[test]
fn an_index_made_of_places_takes_other_rows() {
    let index = |made: &str| {
        format!(
            "input x [n,4]
             scalar zero 0
             scalar one 1
             scalar two 2
             ints last -1
             ints both 1 2
             ints pads 0 1 0 0
             ints two_wide 1 2
             ints matrices 1 2 2
             ints swapped 1 0
             weights half [1,1]
             s = Shape(x)
             a = Gather(s, zero)
             r = Range(zero, a, one)
             u = Unsqueeze(r, last)
             {made}
             output y"
        )
    };
    for same in [
        "y = Gather(x, r)",
        "i = Cast(u) to:6\ny = Gather(x, i)",
        "e = Expand(u, two_wide)\ni = Flatten(e)\ny = Gather(x, i)",
        "e = Expand(u, two_wide)\ni = Slice(e, one, two, one)\ny = Gather(x, i)",
    ] {
        independent(&index(same));
    }

    // Each of them makes zeros of places, or ones: all rows take the first, or the second.
    for other in [
        "b = Cast(r) to:9\ni = Cast(b) to:7\ny = Gather(x, i)",
        "i = Cast(r) to:3\ny = Gather(x, i)",
        "b = CastLike(r, zero)\ny = Gather(x, b)",
        "i = Clip(r, zero, one)\ny = Gather(x, i)",
        "i = Pad(u, pads)\ny = Gather(x, i)",
        "f = Cast(u) to:1\nm = MatMul(f, half)\ni = Cast(m) to:7\ny = Gather(x, i)",
        "i = OneHot(r, two, both)\ny = Gather(x, i)",
        "e = Expand(u, two_wide)\nv, i = TopK(e, last) axis:1\ny = Gather(x, i)",
        "w = Unsqueeze(u, last)\ne = Expand(w, matrices)\ni = Trilu(e)\ny = Gather(x, i)",
        "i = ai.onnx.ml::LabelEncoder(r)\ny = Gather(x, i)",
        "i = Gather(both, r)\ny = Gather(x, i)",
    ] {
        unknown(&index(other), "uses the place of a row among the others");
    }
    // The place of a row is no longer what leads.
    for other in [
        "c = Concat(u, x) axis:-1\nd = Gather(c, swapped) axis:1\ny = GatherND(x, d)",
        "c = Concat(u, x) axis:-1\nd = Unsqueeze(c, last)\ny = GatherND(x, d)",
    ] {
        unknown(&index(other), "uses the place of a row among the others");
    }
}

#[test]
fn a_row_alone_is_laid_where_several_cannot_be() {
    unknown(
        "input c [n,3]
         weights a [1,2]
         weights b [2,3]
         y = Gemm(a, b, c)
         output y",
        "adds rows to a product that no row reaches",
    );
    unknown(
        "input x [n,3]
         input zero_point [n]
         scalar scale 1
         y = QuantizeLinear(x, scale, zero_point)
         output y",
        "takes zero points of the rows beside one scale",
    );
}

#[test]
fn slices_of_rows_couple_them() {
    independent("input x [n,4]\nints one 1\nints three 3\ny = Slice(x, one, three, one)\noutput y");
    coupled(
        "input x [n,4]\nints zero 0\nints two 2\ny = Slice(x, zero, two, zero)\noutput y",
        "takes some of the rows (axis 0)",
    );
    coupled(
        "input x [n,4]\na, b = Split(x) axis:0\ny = Add(a, b)\noutput y",
        "splits the rows",
    );
    independent("input x [n,4]\ny = Concat(x) axis:0\noutput y");
    coupled(
        "input x [n,4]\ny = Concat(x, x) axis:0\noutput y",
        "joins other places to the rows",
    );
    coupled(
        "input x [n,4]\nints pads 1 0 0 0\ny = Pad(x, pads)\noutput y",
        "adds places to the rows",
    );
    coupled(
        "input x [n,4]\nscalar zero 0\ny = CumSum(x, zero)\noutput y",
        "adds up the rows one after the other",
    );
    coupled(
        "input x [n,4]\ny = Softmax(x) axis:0\noutput y",
        "normalises over the rows",
    );
    coupled(
        "input x [n,4]\nints k 2\ny, i = TopK(x, k) axis:0\noutput y",
        "sorts the rows",
    );
}

#[test]
fn a_size_that_follows_the_rows_couples_them() {
    coupled(
        "input x [n,4]
         scalar zero 0
         s = Shape(x)
         a = Gather(s, zero)
         f = Cast(a) to:1
         y = Div(x, f)
         output y",
        "node `y_Div` (Div) depends on how many rows there are",
    );
    independent(
        "input x [n,4]
         scalar one 1
         s = Shape(x)
         a = Gather(s, one)
         f = Cast(a) to:1
         y = Div(x, f)
         output y",
    );
}

#[test]
fn zeros_made_for_each_row_are_its_own() {
    independent(
        "input x [n,t,3]
         scalar zero 0
         ints front 0
         ints one 1
         ints hidden 4
         weights w [1,16,3]
         weights r [1,16,4]
         s = Shape(x)
         a = Gather(s, zero)
         u = Unsqueeze(a, front)
         d = Concat(one, u, hidden) axis:0
         h = ConstantOfShape(d)
         t = Transpose(x) perm:1,0,2
         all, last, c = LSTM(t, w, r, , , h, h) hidden_size:4
         y = Squeeze(last, front)
         output y",
    );
}

#[test]
fn a_recurrent_layer_runs_over_time_or_over_rows() {
    let layer = |layout: &str| {
        format!(
            "input x [n,t,3]\nweights w [1,12,3]\nweights r [1,12,4]\nall, y = GRU(x, w, r) hidden_size:4 {layout}\noutput all"
        )
    };
    independent(&layer("layout:1"));
    coupled(
        &layer(""),
        "node `all_GRU` (GRU) takes the rows for the steps of its sequence (axis 0)",
    );
}

#[test]
fn trees_take_a_table_of_rows() {
    independent("input x [n,4]\nlabel, p = ai.onnx.ml::TreeEnsembleClassifier(x)\noutput label p");
    unknown(
        "input x [n]\ny = ai.onnx.ml::TreeEnsembleRegressor(x)\noutput y",
        "no table",
    );
    independent("input x [n,4]\nints i 1\ny = ai.onnx.ml::ArrayFeatureExtractor(x, i)\noutput y");
    coupled(
        "input x [n]\nints i 1\ny = ai.onnx.ml::ArrayFeatureExtractor(x, i)\noutput y",
        "takes rows by their place",
    );
}

#[test]
fn hits_of_several_rows_are_no_rows() {
    coupled(
        "input boxes [n,6,4]\ninput scores [n,1,6]\ny = NonMaxSuppression(boxes, scores)\noutput y",
        "node `y_NonMaxSuppression` (NonMaxSuppression) lists the hits of all rows one behind the other",
    );
    coupled(
        "input x [n,4]\ny = NonZero(x)\noutput y",
        "lists what it finds in all rows",
    );
}

#[test]
fn an_output_without_rows_leaves_it_open() {
    unknown(
        "input x [n,4]\nweights c [4,2]\ny = Relu(x)\nz = Identity(c)\noutput y z",
        "output `z` is the same for all rows",
    );
    let proof = prove_model(&model(
        "input x [n,4]\nweights c [4,2]\ny = Relu(x)\nz = Identity(c)\noutput y z",
    ));
    assert!(proof.is_row_output("y") && !proof.is_row_output("z"));
}

#[test]
fn what_is_not_known_is_named() {
    unknown(
        "input x [n,4]\ny = my.domain::Magic(x)\noutput y",
        "node `y_Magic` (my.domain::Magic) is not known",
    );
    unknown(
        "input x [n,4]\nr = RandomNormalLike(x)\ny = Add(x, r)\noutput y",
        "node `r_RandomNormalLike` (RandomNormalLike) draws at random",
    );
    coupled(
        "input x [n,4]\nm = ReduceSum(x)\nz = my.domain::Magic(m)\ny = Add(x, z)\noutput y",
        "m_ReduceSum",
    );
    independent("input x [n,4]\nscalar k 1\nz = Relu(k)\ny = Add(x, z)\noutput y");
}

#[test]
fn a_function_is_followed_into_its_body() {
    let text = "input x [n,4]\ny = my.domain::Scale(x) over:AXIS\noutput y";
    let function = |nodes: &str| FunctionProto {
        name: Some("Scale".to_owned()),
        domain: Some("my.domain".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["c".to_owned()],
        attribute: vec!["over".to_owned()],
        node: graph(nodes, &[]).node,
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        ..FunctionProto::default()
    };
    let verdict = |axis: &str, nodes: &str| {
        let mut model = model(&text.replace("AXIS", axis));
        model.functions.push(function(nodes));
        prove_model(&model).verdict
    };
    let body = "m = ReduceMax(a) axes:@over\nc = Div(a, m)";

    assert_eq!(verdict("1", body), RowsVerdict::Independent);
    assert!(matches!(verdict("0", body), RowsVerdict::Coupled { reason } if reason.contains("m_ReduceMax")));
    assert!(matches!(verdict("1", ""), RowsVerdict::Unknown { reason } if reason.contains("without a body")));
    let endless = "c = my.domain::Scale(a) over:@over";
    assert!(matches!(verdict("1", endless), RowsVerdict::Unknown { reason } if reason.contains("without end")));
}

#[test]
fn a_loop_carries_rows_through_its_turns() {
    let body = |inner: &str| {
        graph(
            &format!("input i []\ninput go []\ninput h [n,4]\ngo_on = Identity(go)\n{inner}\noutput go_on next"),
            &[],
        )
    };
    let verdict = |inner: &str, trips: &str| {
        let text =
            format!("input x [n,4]\nscalar five 5\nscalar zero 0\n{trips}\ny = Loop(k, , x) body:{{body}}\noutput y");
        prove_model(&model_of(graph(&text, &[("body", body(inner))]), 17)).verdict
    };

    assert_eq!(
        verdict("next = Relu(h)", "k = Identity(five)"),
        RowsVerdict::Independent
    );
    let over = verdict("m = ReduceMax(h)\nnext = Sub(h, m)", "k = Identity(five)");
    assert!(matches!(over, RowsVerdict::Coupled { reason } if reason.contains("m_ReduceMax")));
    let longest = verdict("next = Relu(h)", "m = ReduceMax(x) keepdims:0\nk = Cast(m) to:7");
    assert!(matches!(longest, RowsVerdict::Coupled { reason } if reason.contains("m_ReduceMax")));
    let shorter = verdict(
        "one = Constant() value_ints:1\nmax = Constant() value_ints:2147483647\nnext = Slice(h, one, max, one)",
        "k = Identity(five)",
    );
    assert_eq!(shorter, RowsVerdict::Independent);
}

#[test]
fn scales_that_a_loop_changes_are_not_those_it_begins_with() {
    let body = graph(
        "input i []\ninput go []\ninput h [n,4]\ninput s [2]\nfloats doubled 2 1\ngo_on = Identity(go)
         next = Resize(h, , s)\nt = Identity(doubled)\noutput go_on next t",
        &[],
    );
    let text = "input x [n,4]\nscalar two 2\nfloats ones 1 1\ny, t = Loop(two, , x, ones) body:{body}\noutput y";

    let verdict = prove_model(&model_of(graph(text, &[("body", body)]), 17)).verdict;

    assert_ne!(verdict, RowsVerdict::Independent);
}

#[test]
fn a_scan_over_rows_runs_once_for_each() {
    let verdict =
        |text: &str, body: &str| prove_model(&model_of(graph(text, &[("body", graph(body, &[]))]), 17)).verdict;
    let alone = "input x [n,4]\ny = Scan(x) num_scan_inputs:1 body:{body}\noutput y";
    let carrying = "input x [n,4]\nweights s [4]\nt, y = Scan(s, x) num_scan_inputs:1 body:{body}\noutput y";

    // Whatever it does to the row, and even if that decides how much memory it takes.
    assert_eq!(
        verdict(alone, "input row [4]\nm = ReduceMax(row)\nz = Sub(row, m)\noutput z"),
        RowsVerdict::Independent
    );
    // All turns must give the same shape, or the run fails.
    let ragged = verdict(alone, "input row [4]\nz = NonZero(row)\noutput z");
    assert!(matches!(ragged, RowsVerdict::Unknown { reason } if reason.contains("a shape that may be its own")));
    let carried = verdict(
        carrying,
        "input s [4]\ninput row [4]\nz = Add(s, row)\nw = Identity(z)\noutput z w",
    );
    assert!(matches!(carried, RowsVerdict::Coupled { reason } if reason.contains("carries a state from row to row")));
    let crossing = verdict(alone, "input row [4]\nz = Sub(x, row)\noutput z");
    assert!(matches!(crossing, RowsVerdict::Coupled { reason } if reason.contains("other rows")));
}

#[test]
fn a_scan_over_time_keeps_rows_apart() {
    let body = graph(
        "input s [n,4]\ninput step [n,4]\nz = Add(s, step)\nw = Identity(z)\noutput z w",
        &[],
    );
    let text = "input x [n,t,4]\nints front 1\nf = ReduceSum(x, front) keepdims:0\nh = Mul(f, f)
                last, all = Scan(h, x) num_scan_inputs:1 scan_input_axes:1 scan_output_axes:1 body:{body}\noutput last all";

    assert_eq!(
        prove_model(&model_of(graph(text, &[("body", body)]), 17)).verdict,
        RowsVerdict::Independent
    );
}

#[test]
fn softmax_before_version_13_takes_all_axes_behind() {
    let text = "input x [n,3,4]\ny = Softmax(x) axis:0\noutput y";
    let at = |opset, text: &str| prove_model(&model_of(graph(text, &[]), opset)).verdict.relation();

    assert_eq!(at(11, text), RowRelation::Coupled);
    assert_eq!(at(11, &text.replace(" axis:0", "")), RowRelation::Independent);
    assert_eq!(at(13, &text.replace("axis:0", "axis:1")), RowRelation::Independent);
}

#[test]
fn masks_of_attention_lie_along_the_batch() {
    let attention = |mask: &str| {
        format!("input q [n,5,8]\n{mask}\ny = com.microsoft::MultiHeadAttention(q, q, q, , , m) num_heads:2\noutput y")
    };
    independent(&attention("input m [n,1,5,5]"));
    independent(&attention("weights m [1,1,5,5]"));
    unknown(&attention("input m [n,5,5]"), "lays a mask of rows upon another axis");
    unknown(&attention("weights m [4,1,5,5]"), "no row reaches");
}

#[test]
fn inputs_of_a_fixed_number_hold_no_rows() {
    independent("input x [4,3]\nweights w [3,2]\ny = MatMul(x, w)\noutput y");
    unknown(
        "input x [n,3]\ninput state [2,3]\nm = ReduceMax(state) axes:0\ny = Add(x, m)\noutput y",
        "input `state` has no axis for the rows",
    );
    unknown(
        "input x [n,3]\ninput k []\ny = Add(x, k)\noutput y",
        "input `k` has no axis for the rows",
    );
}

#[test]
fn shapes_that_only_a_run_knows_are_followed_as_far_as_can_be() {
    independent("input x ?\ny = Relu(x)\noutput y");
    independent("input x ?\ny = Softmax(x) axis:1\noutput y");
    unknown("input x ?\ny = Softmax(x)\noutput y", "an axis that cannot be told");
    unknown(
        "input x ?\nweights c [4]\ny = Add(x, c)\noutput y",
        "number of axes only a run knows",
    );
}

#[test]
fn a_graph_of_loops_in_loops_is_given_up_in_time() {
    // What is carried on gets shorter from turn to turn, so that each body is looked at twice.
    let start = "input i []\ninput go []\ninput h [n,4]\ngo_on = Identity(go)\nk = Constant() value_ints:1";
    let end = "max = Constant() value_ints:2147483647\nnext = Slice(c, k, max, k)\noutput go_on next";
    let mut body = graph(&format!("{start}\nc = Relu(h)\n{end}"), &[]);
    for _ in 0..7 {
        let text = format!(
            "{start}\na = Loop(k, , h) body:{{body}}\nb = Loop(k, , a) body:{{body}}\nc = Loop(k, , b) body:{{body}}\n{end}"
        );
        body = graph(&text, &[("body", body)]);
    }
    let text = "input x [n,4]\nscalar k 3\ny = Loop(k, , x) body:{body}\noutput y";

    let verdict = prove_model(&model_of(graph(text, &[("body", body)]), 17)).verdict;

    assert!(matches!(verdict, RowsVerdict::Unknown { reason } if reason.contains("more nodes than are looked at")));
}

#[test]
fn the_models_of_the_tests_are_what_they_are_said_to_be() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut apart = Vec::new();
    let mut proven = 0;
    for folder in ["models", "tests/models/repository"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let onnx = path.join("1/model.onnx");
            if !onnx.exists() {
                continue;
            }
            match prove(&onnx).verdict.relation() {
                RowRelation::Independent => proven += 1,
                relation => apart.push(format!("{} {relation}", path.file_name().unwrap().to_string_lossy())),
            }
        }
    }
    apart.sort();

    let expected = [
        "bright coupled",
        "constant-output unknown",
        "coupled coupled",
        "crowded unknown",
        "hits coupled",
        "time-major coupled",
        "transposed unknown",
    ];
    assert_eq!(apart, expected);
    assert!(proven >= 29, "{proven}");
}

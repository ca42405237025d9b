//! Operators on images and signals: axis 0 holds them, axis 1 their channels, the others places.

use super::super::op::{Op, Ruled};
use super::super::size::Size;
use super::super::value::{Content, RowAxis, Value};
use super::one;

pub(super) fn apply(op: &Op<'_>) -> Option<Ruled> {
    Some(match op.kind() {
        "Conv" | "ConvInteger" | "FusedConv" => conv(op, 0, 1),
        "QLinearConv" => conv(op, 0, 3),
        "ConvTranspose" | "ConvTransposeWithDynamicPads" => transposed(op),
        "DeformConv" => deformed(op),
        "MaxPool" | "AveragePool" | "LpPool" | "QLinearAveragePool" => pool(op),
        "GlobalMaxPool" | "GlobalAveragePool" | "GlobalLpPool" | "QLinearGlobalAveragePool" => global_pool(op),
        "MaxUnpool" => unpool(op),
        "Col2Im" => images(op),
        "Resize" | "Upsample" => resize(op),
        "GridSample" | "AffineGrid" => sampled(op),
        "RoiAlign" | "MaxRoiPool" | "CropAndResize" => regions(op),
        "STFT" => signal(op),
        _ => return None,
    })
}

/// Takes the rows along axis 0 of one input; whatever the others are must be shared by all rows.
fn image<'v>(op: &'v Op<'_>, index: usize) -> Result<&'v Value, Content> {
    let value = op.required(index)?;
    if let Some(axis) = value.row_axis().filter(|axis| *axis != 0) {
        return Err(op.coupled_at("works along the rows", axis));
    }
    for other in (0..op.inputs.len()).filter(|other| *other != index) {
        op.shared(other, "its parameters")?;
    }
    Ok(value)
}

fn kept(value: &Value, shape: Option<Vec<Size>>) -> Vec<Value> {
    one(Value::of(shape, value.rows.clone(), value.content.clone()))
}

fn conv(op: &Op<'_>, x: usize, w: usize) -> Ruled {
    let value = image(op, x)?;
    let kernel = op.required(w)?;
    let shape = value
        .shape
        .as_deref()
        .zip(kernel.shape.as_deref())
        .map(|(shape, kernel)| {
            let sizes: Option<Vec<i64>> = kernel.iter().skip(2).map(Size::to_constant).collect();
            let mut sizes = windows(op, shape, op.ints("kernel_shape").or(sizes));
            if let Some(channels) = sizes.get_mut(1) {
                *channels = kernel.first().cloned().unwrap_or_else(|| op.free());
            }
            sizes
        });
    Ok(kept(value, shape))
}

/// The shape after windows of such sizes were moved over all places.
///
/// # Source
/// Conv and the pools: `floor((size + pads - dilation·(kernel - 1) - 1) / stride) + 1`, or `ceil` where `ceil_mode` says so.
fn windows(op: &Op<'_>, shape: &[Size], kernel: Option<Vec<i64>>) -> Vec<Size> {
    let places = shape.len().saturating_sub(2);
    let or_ones = |name: &str| {
        op.ints(name)
            .filter(|values| values.len() == places)
            .unwrap_or_else(|| vec![1; places])
    };
    let (strides, dilations) = (or_ones("strides"), or_ones("dilations"));
    let pads = op.ints("pads").filter(|pads| pads.len() == 2 * places);
    let pads = pads.unwrap_or_else(|| vec![0; 2 * places]);
    let same = matches!(op.text("auto_pad"), Some("SAME_UPPER" | "SAME_LOWER"));
    let size = |at: usize| -> Option<i64> {
        let size = shape.get(at + 2)?.to_constant()?;
        let stride = strides[at];
        if stride <= 0 {
            return None;
        }
        if same {
            return Some((size + stride - 1) / stride);
        }
        let kernel = *kernel.as_ref()?.get(at)?;
        let free = size + pads[at] + pads[at + places] - dilations[at] * (kernel - 1) - 1;
        let is_exact = free % stride == 0;
        // Rounding up may drop a last window; the formula for that is the operator's business.
        (free >= 0 && (is_exact || op.int("ceil_mode", 0) == 0)).then_some(free / stride + 1)
    };
    let sizes = (0..places).map(|at| size(at).map_or_else(|| op.free(), Size::constant));
    shape.iter().take(2).cloned().chain(sizes).collect()
}

fn transposed(op: &Op<'_>) -> Ruled {
    let value = image(op, 0)?;
    let kernel = op.required(1)?.shape.as_deref();
    let channels = kernel.and_then(|kernel| kernel.get(1)?.times(&Size::constant(op.int("group", 1))));
    let shape = value.shape.as_deref().map(|shape| {
        let places = shape.len().saturating_sub(2);
        let first = shape.first().cloned().unwrap_or_else(|| op.free());
        let mut sizes = vec![first, op.size_or_fresh(channels.clone(), &[])];
        sizes.extend((0..places).map(|at| upsampled(op, shape, kernel, at).map_or_else(|| op.free(), Size::constant)));
        sizes
    });
    Ok(kept(value, shape))
}

/// # Source
/// ConvTranspose: `stride·(size - 1) + output_padding + (kernel - 1)·dilation + 1 - pads`.
fn upsampled(op: &Op<'_>, shape: &[Size], kernel: Option<&[Size]>, at: usize) -> Option<i64> {
    let places = shape.len() - 2;
    if op.has("auto_pad") && op.text("auto_pad") != Some("NOTSET") || op.has("output_shape") {
        return None;
    }
    let value = |name: &str, default: i64| op.ints(name).map_or(Some(default), |values| values.get(at).copied());
    let size = shape.get(at + 2)?.to_constant()?;
    let kernel = match op.ints("kernel_shape") {
        Some(sizes) => *sizes.get(at)?,
        None => kernel?.get(at + 2)?.to_constant()?,
    };
    let pads = op
        .ints("pads")
        .map_or(Some(0), |pads| Some(pads.get(at)? + pads.get(at + places)?))?;
    let stride = value("strides", 1)?;
    Some(stride * (size - 1) + value("output_padding", 0)? + (kernel - 1) * value("dilations", 1)? + 1 - pads)
}

/// X, W, offset, B, mask: offset and mask are of each image.
fn deformed(op: &Op<'_>) -> Ruled {
    let of_images = [op.input(0), op.input(2), op.input(4)];
    let plain = of_images
        .iter()
        .flatten()
        .all(|value| value.rows == Some(RowAxis::plain(0)));
    for index in [1, 3] {
        op.shared(index, "its weights")?;
    }
    match plain {
        true => {
            let content = op.content(of_images.into_iter().flatten());
            let shape = vec![Size::rows(), op.free(), op.free(), op.free()];
            Ok(one(Value::of(Some(shape), Some(RowAxis::plain(0)), content)))
        }
        false => Err(op.unknown("shifts places by offsets that are not laid out like the images")),
    }
}

/// Channels are pooled each by itself, so rows may lie there as well.
fn pool(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    for index in 1..op.inputs.len() {
        op.shared(index, "its parameters")?;
    }
    if let Some(axis) = value.row_axis().filter(|axis| *axis > 1) {
        return Err(op.coupled_at("works along the rows", axis));
    }
    let nhwc = op.int("channels_last", 0) != 0;
    let shape = value.shape.as_deref().filter(|_| !nhwc);
    let shape = shape.map(|shape| windows(op, shape, op.ints("kernel_shape")));
    let mut outputs = kept(value, shape.clone());
    if op.node.output.len() > 1 {
        let content = match value.content {
            Content::Shared => Content::Shared,
            _ => op.unknown("gives places in the tensor of all rows"),
        };
        outputs.push(Value::of(shape, value.rows.clone(), content));
    }
    Ok(outputs)
}

fn global_pool(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    for index in 1..op.inputs.len() {
        op.shared(index, "its parameters")?;
    }
    if let Some(axis) = value.row_axis().filter(|axis| *axis > 1) {
        return Err(op.coupled_at("reduces over the rows", axis));
    }
    let nhwc = op.int("channels_last", 0) != 0;
    let shape = value.shape.as_deref().filter(|_| !nhwc).map(|shape| {
        let mut shape = shape.to_vec();
        shape.iter_mut().skip(2).for_each(|size| *size = Size::one());
        shape
    });
    Ok(kept(value, shape))
}

/// # Source
/// MaxUnpool: the indices are places in the tensor of all images.
fn unpool(op: &Op<'_>) -> Ruled {
    match op.all().find_map(Value::row_axis) {
        Some(_) => Err(op.unknown("puts elements at places in the tensor of all rows")),
        None => images(op),
    }
}

/// Images of which only the first axis is followed.
fn images(op: &Op<'_>) -> Ruled {
    let value = image(op, 0)?;
    let first = value.size(0).cloned().unwrap_or_else(|| op.free());
    let shape = value.rank().filter(|_| op.kind() != "Col2Im").map(|rank| {
        let mut shape = vec![first];
        shape.extend((1..rank).map(|_| op.free()));
        shape
    });
    Ok(kept(value, shape))
}

/// # Source
/// Resize: `scales` or `sizes` for all axes, or for those in `axes` (version 18).
fn resize(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    let Some(shape) = value.shape.as_deref() else {
        return Err(op.unknown("works along axes of which only a run knows how many there are"));
    };
    let is_old = op.kind() == "Upsample" || op.opset < 11;
    let (scales_at, sizes_at) = if is_old { (1, usize::MAX) } else { (2, 3) };
    if !is_old {
        op.parameter(1, "regions")?;
    }
    let axes = op.ints("axes").unwrap_or_else(|| (0..shape.len() as i64).collect());
    let axes: Vec<usize> = axes.iter().filter_map(|axis| value.axis(*axis)).collect();
    let sizes = op.sizes(sizes_at, "sizes")?;
    let scales = op.parameter(scales_at, "scales")?;
    let scales = op
        .floats("scales")
        .or_else(|| scales.and_then(|scales| scales.floats.as_deref()));
    let mut resized = shape.to_vec();
    for (at, axis) in axes.iter().enumerate() {
        let given = sizes.and_then(|sizes| sizes.elements.as_deref()?.get(at));
        let scale = scales.and_then(|scales| scales.get(at).copied());
        let is_kept = scale == Some(1.0) || given.is_some_and(|given| *given == shape[*axis]);
        let stretches = matches!(op.text("keep_aspect_ratio_policy"), None | Some("stretch"));
        if value.row_axis() == Some(*axis) && !(is_kept && stretches) {
            return Err(match (scale, given.and_then(Size::to_constant)) {
                (None, None) => op.unknown("may stretch the rows"),
                _ => op.coupled_at("stretches the rows", *axis),
            });
        }
        if !is_kept {
            resized[*axis] = given.cloned().filter(|_| stretches).unwrap_or_else(|| op.free());
        }
    }
    Ok(kept(value, Some(resized)))
}

/// # Source
/// GridSample: X and grid have as many images; AffineGrid: theta has, and `size` says so.
fn sampled(op: &Op<'_>) -> Ruled {
    let values: Vec<&Value> = match op.kind() {
        "AffineGrid" => {
            let size = op.sizes(1, "size")?.and_then(|size| size.elements.as_deref()?.first());
            if size != Some(&Size::rows()) && op.required(0)?.rows.is_some() {
                return Err(op.unknown("makes a grid for a number of images that cannot be told"));
            }
            vec![op.required(0)?]
        }
        _ => vec![op.required(0)?, op.required(1)?],
    };
    let content = op.content(values.iter().copied());
    if values.iter().all(|value| value.rows.is_none()) {
        return Ok(one(Value::of(None, None, content)));
    }
    match values.iter().all(|value| value.rows == Some(RowAxis::plain(0))) {
        true => Ok(one(Value::of(None, Some(RowAxis::plain(0)), content))),
        false => Err(op.unknown("takes places from images that are not laid out like the rows")),
    }
}

/// Regions name their image by its place in the batch.
fn regions(op: &Op<'_>) -> Ruled {
    let value = op.required(0)?;
    match &value.content {
        Content::Shared => Err(op.unknown("takes regions of images")),
        spoilt @ (Content::Coupled(_) | Content::Unknown(_)) => Err(spoilt.clone()),
        _ => Err(op.coupled("takes regions of images by their place among the rows")),
    }
}

/// # Source
/// STFT: signal `[batch, length, 1 or 2]` to `[batch, frames, bins, 2]`.
fn signal(op: &Op<'_>) -> Ruled {
    let value = image(op, 0)?;
    let first = value.size(0).cloned().unwrap_or_else(|| op.free());
    Ok(kept(value, Some(vec![first, op.free(), op.free(), Size::constant(2)])))
}

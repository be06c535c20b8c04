//! Linear maps of feature maps with asymmetric padding: what the linear part of any network
//! composes to.
//!
//! A form maps x (N, C_in, H, W) to y with y[o, i] = bias[o] + Σ weight[o, c, a] x[c, stride·i −
//! before + dilation·a], where x is read as zero outside its map. The rules here compose, add and
//! stack forms exactly, borders included, or refuse with a [`FoldError`]. Each rule works on shapes
//! ([`FormShape`]) and on numbers ([`Form`]), so that a plan can be made without touching a weight.

use super::{FoldError, convolve, count, gcd, respond};
use tch::{Kind, Tensor};

/// Shape of a form: channels, kernel and how its window moves. Pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FormShape {
    /// Number of input channels.
    pub in_channels: i64,
    /// Number of output channels.
    pub out_channels: i64,
    /// Kernel size.
    pub kernel: [i64; 2],
    /// Step of the window.
    pub stride: [i64; 2],
    /// Distance between taps.
    pub dilation: [i64; 2],
    /// Rows and columns of zeros before the map. A negative number takes rows or columns away.
    pub before: [i64; 2],
    /// Rows and columns of zeros after the map. A negative number takes rows or columns away.
    pub after: [i64; 2],
    /// Number of channel groups.
    pub groups: i64,
    /// Whether there is a bias.
    pub bias: bool,
}

/// A linear map of feature maps with its numbers.
#[derive(Debug)]
pub struct Form {
    /// Shape and geometry.
    pub shape: FormShape,
    /// Kernel (C_out, C_in/groups, kh, kw).
    pub weight: Tensor,
    /// Bias (C_out), where the shape has one.
    pub bias: Option<Tensor>,
}

/// Largest stride, dilation and window that are composed, so that no product of them overflows.
const LARGEST_STEP: i64 = 1 << 20;

impl FormShape {
    /// Returns the shape of a 1x1 kernel with `groups` groups and no bias.
    pub fn pointwise(in_channels: i64, out_channels: i64, groups: i64) -> FormShape {
        FormShape {
            in_channels,
            out_channels,
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            before: [0; 2],
            after: [0; 2],
            groups,
            bias: false,
        }
    }

    /// Returns the shape of the identity: one tap for each channel.
    pub fn identity(channels: i64) -> FormShape {
        FormShape::pointwise(channels, channels, channels)
    }

    /// Returns the shape with a bias if `bias` is true, else the shape as it is.
    pub fn with_bias(self, bias: bool) -> FormShape {
        FormShape { bias: self.bias || bias, ..self }
    }

    /// Returns the shape of the kernel: (C_out, C_in/groups, kh, kw).
    pub fn weight_size(&self) -> [i64; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Returns the multiply-accumulates for one output position, over all output channels.
    pub fn macs(&self) -> i64 {
        count(&self.weight_size())
    }

    /// Returns the size (H', W') of the output for an input of that size. Not positive where the
    /// window does not fit.
    pub fn output_size(&self, input: [i64; 2]) -> [i64; 2] {
        [0, 1].map(|axis| (input[axis] + self.slack(axis)).div_euclid(self.stride[axis]) + 1)
    }

    /// Returns whether the form reads each position by itself: 1x1, without stride or padding.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2] && self.stride == [1; 2] && self.before == [0; 2] && self.after == [0; 2]
    }

    /// Returns whether there are as many zeros after the map as before it, and none is taken away:
    /// a convolution pads so by itself.
    pub fn symmetric(&self) -> bool {
        self.before == self.after && self.before.iter().all(|p| *p >= 0)
    }

    /// Returns the length of the window along an axis.
    fn window(&self, axis: usize) -> i64 {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Returns the padding less the window along an axis: with the size of the map it decides the
    /// size of the output.
    fn slack(&self, axis: usize) -> i64 {
        self.before[axis] + self.after[axis] - self.window(axis)
    }

    /// Returns the shape of `second` after this form.
    ///
    /// Along each axis the second form may pad with zeros only if this one would compute zeros
    /// there: one tap, no padding and no bias. Exact for all strides and dilations.
    ///
    /// # Errors
    /// [`FoldError::BorderInexact`] or [`FoldError::Shape`].
    pub fn then(&self, second: &FormShape) -> Result<FormShape, FoldError> {
        if self.out_channels != second.in_channels {
            return Err(FoldError::Shape(format!("{} channels go into {}", self.out_channels, second.in_channels)));
        }
        let mut composed = FormShape {
            out_channels: second.out_channels,
            groups: gcd(self.groups, second.groups),
            bias: self.bias || second.bias,
            ..*self
        };
        for axis in 0..2 {
            let stride = self.stride[axis];
            if [stride, second.stride[axis], second.dilation[axis], second.window(axis)]
                .iter()
                .any(|n| *n > LARGEST_STEP)
            {
                return Err(FoldError::Shape("a window or stride of more than a map has".into()));
            }
            if second.before[axis] > 0 || second.after[axis] > 0 {
                let reads_zeros = self.kernel[axis] == 1 && self.before[axis] == 0 && self.after[axis] == 0;
                if !reads_zeros || self.bias {
                    return Err(FoldError::BorderInexact("zero padding between two convolutions"));
                }
            }
            let (first, step) = (self.dilation[axis], stride * second.dilation[axis]);
            let spacing = match (self.kernel[axis], second.kernel[axis]) {
                (_, 1) => first,
                (1, _) => step,
                _ => gcd(first, step),
            };
            let length = self.window(axis) + (second.kernel[axis] - 1) * step;
            composed.dilation[axis] = spacing;
            composed.kernel[axis] = (length - 1) / spacing + 1;
            composed.before[axis] += stride * second.before[axis];
            composed.after[axis] += stride * second.after[axis];
            composed.stride[axis] = stride * second.stride[axis];
        }
        Ok(composed)
    }

    /// Returns the shape of the sum of this form and another on the same input. The windows are
    /// joined: taps that only one of them has are zeros of the other.
    ///
    /// # Errors
    /// [`FoldError::Shape`] if channels or strides differ, or the outputs have different sizes.
    pub fn plus(&self, other: &FormShape) -> Result<FormShape, FoldError> {
        if self.out_channels != other.out_channels {
            return Err(FoldError::Shape(format!("{} and {} channels", self.out_channels, other.out_channels)));
        }
        let joined = self.joined(other)?;
        Ok(FormShape { groups: gcd(self.groups, other.groups), bias: self.bias || other.bias, ..joined })
    }

    /// Returns the shape of this form with the outputs of another on the same input behind its own.
    ///
    /// # Errors
    /// Those of [`FormShape::plus`].
    pub fn beside(&self, other: &FormShape) -> Result<FormShape, FoldError> {
        let joined = self.joined(other)?;
        let out_channels = self.out_channels + other.out_channels;
        Ok(FormShape { out_channels, groups: 1, bias: self.bias || other.bias, ..joined })
    }

    /// Returns this shape with a window that has the taps of both forms.
    fn joined(&self, other: &FormShape) -> Result<FormShape, FoldError> {
        if self.in_channels != other.in_channels || self.stride != other.stride {
            return Err(FoldError::Shape(format!(
                "{} and {} input channels, strides {:?} and {:?}",
                self.in_channels, other.in_channels, self.stride, other.stride
            )));
        }
        let mut joined = *self;
        for axis in 0..2 {
            let (slack, theirs) = (self.slack(axis), other.slack(axis));
            // With a stride, two slacks give equal sizes for some maps. The graph has only those.
            if (slack - theirs).abs() >= self.stride[axis] {
                return Err(FoldError::Shape("the outputs have different sizes".into()));
            }
            let start = (-self.before[axis]).min(-other.before[axis]);
            let end = (self.window(axis) - self.before[axis]).max(other.window(axis) - other.before[axis]);
            let spacing_of = |form: &FormShape| if form.kernel[axis] > 1 { form.dilation[axis] } else { 0 };
            let apart = (self.before[axis] - other.before[axis]).abs();
            let spacing = gcd(gcd(spacing_of(self), spacing_of(other)), apart).max(1);
            joined.dilation[axis] = spacing;
            joined.kernel[axis] = (end - start - 1) / spacing + 1;
            joined.before[axis] = -start;
            joined.after[axis] = slack + start + (end - start);
        }
        Ok(joined)
    }
}

impl Form {
    /// Returns the identity on `channels` channels.
    pub fn identity(channels: i64, kind: Kind) -> Form {
        let shape = FormShape::identity(channels);
        Form { weight: Tensor::ones(shape.weight_size(), (kind, tch::Device::Cpu)), bias: None, shape }
    }

    /// Returns the same numbers in another precision.
    pub fn to_kind(&self, kind: Kind) -> Form {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        Form { shape: self.shape, weight: self.weight.to_kind(kind), bias }
    }

    /// Returns y (N, C_out, H', W') of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let FormShape { before: [top, left], after: [bottom, right], stride, dilation, groups, .. } = self.shape;
        let x = x.constant_pad_nd([left, right, top, bottom]);
        x.conv2d(&self.weight, self.bias.as_ref(), stride, [0, 0], dilation, groups)
    }

    /// Returns the form of `second` after this one. See [`FormShape::then`].
    ///
    /// # Errors
    /// Those of [`FormShape::then`].
    pub fn then(&self, second: &Form) -> Result<Form, FoldError> {
        let shape = self.shape.then(&second.shape)?;
        let (w1, w2) = (self.regrouped(shape.groups), second.regrouped(shape.groups));
        let weight = if second.shape.kernel == [1; 2] {
            convolve(&w1, &w2, shape.groups)
        } else {
            let spacing = |form: &FormShape, scale: [i64; 2]| {
                [0, 1].map(|axis| {
                    if form.kernel[axis] == 1 { 1 } else { form.dilation[axis] * scale[axis] / shape.dilation[axis] }
                })
            };
            let w1 = spread(&w1, spacing(&self.shape, [1; 2]));
            convolve(&w1, &spread(&w2, spacing(&second.shape, self.shape.stride)), shape.groups)
        };
        let bias = match (&self.bias, &second.bias) {
            (None, bias) => bias.as_ref().map(Tensor::shallow_clone),
            (Some(first), None) => Some(respond(&w2, first, shape.groups)),
            (Some(first), Some(bias)) => Some(bias + respond(&w2, first, shape.groups)),
        };
        Ok(Form { weight: weight.reshape(shape.weight_size()), bias, shape })
    }

    /// Returns the sum of this form and another on the same input. See [`FormShape::plus`].
    ///
    /// # Errors
    /// Those of [`FormShape::plus`].
    pub fn plus(&self, other: &Form) -> Result<Form, FoldError> {
        let shape = self.shape.plus(&other.shape)?;
        // A large kernel is copied once, and the smaller one is added to the taps that it has.
        let fills = |form: &Form| form.shape.kernel == shape.kernel;
        let (whole, rest) = if fills(other) { (other, self) } else { (self, other) };
        let whole = whole.embedded(&shape, shape.groups);
        let mut weight = whole.empty_like();
        weight.copy_(&whole);
        let _ = rest.taps(&weight, &shape).g_add_(&rest.regrouped(shape.groups));
        let bias = match (&self.bias, &other.bias) {
            (Some(a), Some(b)) => Some(a + b),
            (one, other) => one.as_ref().or(other.as_ref()).map(Tensor::shallow_clone),
        };
        Ok(Form { shape, weight, bias })
    }

    /// Returns this form with the outputs of another on the same input behind its own. See
    /// [`FormShape::beside`].
    ///
    /// # Errors
    /// Those of [`FormShape::beside`].
    pub fn beside(&self, other: &Form) -> Result<Form, FoldError> {
        let shape = self.shape.beside(&other.shape)?;
        let weight = Tensor::cat(&[self.embedded(&shape, 1), other.embedded(&shape, 1)], 0);
        let bias = shape.bias.then(|| Tensor::cat(&[self.bias_or_zeros(), other.bias_or_zeros()], 0));
        Ok(Form { shape, weight, bias })
    }

    /// Returns the form whose output channel `j` is the output channel `rows[j]` of this one.
    pub fn select(&self, rows: &[i64]) -> Form {
        let whole = rows.iter().copied().eq(0..self.shape.out_channels);
        if whole {
            return Form {
                weight: self.weight.shallow_clone(),
                bias: self.bias.as_ref().map(Tensor::shallow_clone),
                ..*self
            };
        }
        let at = Tensor::from_slice(rows).to_device(self.weight.device());
        let shape = FormShape { out_channels: rows.len() as i64, groups: 1, ..self.shape };
        let bias = self.bias.as_ref().map(|bias| bias.index_select(0, &at));
        Form { weight: self.regrouped(1).index_select(0, &at), bias, shape }
    }

    /// Returns scale · y + shift of the form's output y; each is (C_out), or (1) for all
    /// channels, or absent for 1 and 0.
    pub fn scaled(&self, scale: Option<&Tensor>, shift: Option<&Tensor>) -> Form {
        let weight = match scale {
            Some(scale) => super::scale_rows(&self.weight, scale),
            None => self.weight.shallow_clone(),
        };
        let moved = match (&self.bias, scale) {
            (Some(bias), Some(scale)) => Some(bias * scale),
            (bias, _) => bias.as_ref().map(Tensor::shallow_clone),
        };
        let bias = match (moved, shift) {
            (Some(bias), Some(shift)) => Some(bias + shift),
            // One number stands for all channels.
            (bias, shift) => bias.or(shift.map(|shift| shift.expand([self.shape.out_channels], false).contiguous())),
        };
        Form { shape: FormShape { bias: bias.is_some(), ..self.shape }, weight, bias }
    }

    fn bias_or_zeros(&self) -> Tensor {
        match &self.bias {
            Some(bias) => bias.shallow_clone(),
            None => Tensor::zeros([self.shape.out_channels], (self.weight.kind(), self.weight.device())),
        }
    }

    /// Returns the kernel with `groups` groups, a divisor of the present number: zeros outside the
    /// diagonal blocks.
    fn regrouped(&self, groups: i64) -> Tensor {
        super::regroup(&self.weight, self.shape.groups, groups)
    }

    /// Returns the kernel with the taps of `into`, which has all of this form's, and `groups`
    /// groups.
    fn embedded(&self, into: &FormShape, groups: i64) -> Tensor {
        let weight = self.regrouped(groups);
        let mut size = weight.size();
        (size[2], size[3]) = (into.kernel[0], into.kernel[1]);
        if weight.size() == size {
            return weight;
        }
        let whole = Tensor::zeros(&size, (weight.kind(), weight.device()));
        self.taps(&whole, into).copy_(&weight);
        whole
    }

    /// Returns the taps of this form in a kernel of the shape `into`, which has all of them.
    fn taps(&self, kernel: &Tensor, into: &FormShape) -> Tensor {
        let mut taps = kernel.shallow_clone();
        for axis in 0..2 {
            let first = (into.before[axis] - self.shape.before[axis]) / into.dilation[axis];
            let step = if self.shape.kernel[axis] == 1 { 1 } else { self.shape.dilation[axis] / into.dilation[axis] };
            let end = first + (self.shape.kernel[axis] - 1) * step + 1;
            taps = taps.slice(2 + axis as i64, first, end, step);
        }
        taps
    }
}

/// Returns the kernel with its taps `spacing` apart and zeros between them.
fn spread(weight: &Tensor, spacing: [i64; 2]) -> Tensor {
    if spacing == [1; 2] {
        return weight.shallow_clone();
    }
    let mut size = weight.size();
    for axis in 0..2 {
        size[2 + axis] = (size[2 + axis] - 1) * spacing[axis] + 1;
    }
    let whole = Tensor::zeros(&size, (weight.kind(), weight.device()));
    whole.slice(2, None, None, spacing[0]).slice(3, None, None, spacing[1]).copy_(weight);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// A generator of shapes; the numbers of a form are libtorch's.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: i64) -> i64 {
            // Constants of Knuth's MMIX generator; the low bits are poor.
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as i64 % n
        }

        fn one_of(&mut self, values: &[i64]) -> i64 {
            values[self.below(values.len() as i64) as usize]
        }

        fn pair(&mut self, values: &[i64]) -> [i64; 2] {
            [self.one_of(values), self.one_of(values)]
        }

        fn form(&mut self, in_channels: i64, out_channels: i64, padding: &[i64]) -> Form {
            let shape = FormShape {
                in_channels,
                out_channels,
                kernel: self.pair(&[1, 1, 2, 3, 5]),
                stride: self.pair(&[1, 1, 2, 3]),
                dilation: self.pair(&[1, 1, 2, 3]),
                before: self.pair(padding),
                after: self.pair(padding),
                groups: self.one_of(&[1, 2, 4]),
                bias: self.below(2) == 0,
            };
            numbers(shape)
        }
    }

    impl Dice {
        /// Returns a form whose outputs mostly have the size of another's, for some maps at least.
        fn beside(&mut self, first: &Form, out_channels: i64, padding: &[i64]) -> Form {
            let mut shape = self.form(first.shape.in_channels, out_channels, padding).shape;
            if self.below(4) > 0 {
                shape.stride = first.shape.stride;
                for axis in 0..2 {
                    let apart = self.below(shape.stride[axis]);
                    shape.after[axis] += first.shape.slack(axis) - shape.slack(axis) + apart;
                }
            }
            numbers(shape)
        }
    }

    fn numbers(shape: FormShape) -> Form {
        let bias = shape.bias.then(|| Tensor::randn([shape.out_channels], DOUBLE));
        Form { weight: Tensor::randn(shape.weight_size(), DOUBLE), bias, shape }
    }

    /// Relative to the largest output. 1e-12 is for sums of a few thousand products in float64.
    fn assert_equal(found: &Tensor, expected: &Tensor, about: &str) {
        assert_eq!(found.size(), expected.size(), "{about}");
        let error = (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]).max(1.);
        assert!(error < 1e-12, "{error:e}: {about}");
    }

    /// Maps of odd, even and unequal sides, large enough for two windows.
    const SIZES: [[i64; 2]; 3] = [[61, 67], [64, 72], [77, 63]];

    fn map(size: [i64; 2]) -> Tensor {
        Tensor::randn([2, 4, size[0], size[1]], DOUBLE)
    }

    #[test]
    fn one_form_after_another_is_one_form_or_refused() {
        let (mut dice, mut exact, mut refused) = (Dice(1), 0, 0);
        for _ in 0..400 {
            let first = dice.form(4, 8, &[-1, 0, 0, 1, 2]);
            let second = dice.form(8, 4, &[-1, 0, 0, 0, 2]);
            let about = format!("{:?} then {:?}", first.shape, second.shape);
            let Ok(composed) = first.then(&second) else {
                let pads = second.shape.before.iter().chain(&second.shape.after).any(|p| *p > 0);
                assert!(pads, "{about}");
                refused += 1;
                continue;
            };
            exact += 1;
            for size in SIZES {
                let x = map(size);
                assert_equal(&composed.apply(&x), &second.apply(&first.apply(&x)), &about);
                let expected = composed.shape.output_size(size);
                assert_eq!(composed.apply(&x).size()[2..], expected, "{about}");
            }
        }
        assert!(exact > 100 && refused > 100, "{exact} {refused}");
    }

    /// A refusal has a reason: the composed kernel would be wrong on the border, and right inside.
    #[test]
    fn padding_between_two_forms_is_refused_where_the_border_would_be_wrong() {
        let same = |bias| {
            numbers(FormShape { kernel: [3; 2], before: [1; 2], after: [1; 2], bias, ..FormShape::pointwise(4, 4, 1) })
        };
        let (first, second) = (same(false), same(false));
        assert!(matches!(first.shape.then(&second.shape), Err(FoldError::BorderInexact(_))));
        let biased = numbers(FormShape::pointwise(4, 4, 1).with_bias(true));
        assert!(matches!(biased.shape.then(&second.shape), Err(FoldError::BorderInexact(_))));
        assert!(numbers(FormShape::pointwise(4, 4, 1)).then(&second).is_ok());
        // Along rows the first form has one tap, and along columns the second one pads nothing.
        let row = numbers(FormShape { kernel: [1, 7], before: [0, 3], after: [0, 3], ..FormShape::pointwise(4, 4, 1) });
        let column =
            numbers(FormShape { kernel: [7, 1], before: [3, 0], after: [3, 0], ..FormShape::pointwise(4, 4, 1) });
        let x = map([15, 17]);
        assert_equal(&row.then(&column).unwrap().apply(&x), &column.apply(&row.apply(&x)), "1x7, then 7x1");
    }

    #[test]
    fn a_sum_of_two_forms_is_one_form_or_refused() {
        let (mut dice, mut exact) = (Dice(2), 0);
        for _ in 0..300 {
            let first = dice.form(4, 8, &[-1, 0, 1, 2]);
            let second = dice.beside(&first, 8, &[-1, 0, 1, 2]);
            let about = format!("{:?} plus {:?}", first.shape, second.shape);
            let sum = first.plus(&second);
            for size in SIZES {
                let x = map(size);
                let (a, b) = (first.apply(&x), second.apply(&x));
                match &sum {
                    Ok(sum) if a.size() == b.size() => assert_equal(&sum.apply(&x), &(&a + &b), &about),
                    Ok(_) => assert_ne!(first.shape.stride, [1, 1], "{about}"),
                    Err(_) => assert!(a.size() != b.size() || first.shape.stride != second.shape.stride, "{about}"),
                }
            }
            exact += i32::from(sum.is_ok());
        }
        assert!((150..290).contains(&exact), "{exact}");
    }

    #[test]
    fn outputs_of_two_forms_stand_side_by_side() {
        let (mut dice, mut exact) = (Dice(3), 0);
        for _ in 0..300 {
            let first = dice.form(4, 8, &[0, 1, 2]);
            let second = dice.beside(&first, 4, &[0, 1, 2]);
            let Ok(both) = first.beside(&second) else { continue };
            let x = map(SIZES[0]);
            let (a, b) = (first.apply(&x), second.apply(&x));
            if a.size()[2..] == b.size()[2..] {
                exact += 1;
                assert_equal(
                    &both.apply(&x),
                    &Tensor::cat(&[a, b], 1),
                    &format!("{:?} {:?}", first.shape, second.shape),
                );
            }
        }
        assert!(exact > 50, "{exact}");
    }

    #[test]
    fn channels_are_selected_and_scaled() {
        let mut dice = Dice(4);
        for _ in 0..50 {
            let form = dice.form(4, 8, &[0, 1, 2]);
            let (x, about) = (map(SIZES[1]), format!("{:?}", form.shape));
            let y = form.apply(&x);
            let rows = [5, 0, 3, 3, 7];
            assert_equal(&form.select(&rows).apply(&x), &y.index_select(1, &Tensor::from_slice(&rows)), &about);
            assert_equal(&form.select(&[0, 1, 2, 3, 4, 5, 6, 7]).apply(&x), &y, &about);
            let (scale, shift) = (Tensor::randn([8], DOUBLE), Tensor::randn([8], DOUBLE));
            let [s, t] = [&scale, &shift].map(|of| of.view([1, 8, 1, 1]));
            assert_equal(&form.scaled(Some(&scale), Some(&shift)).apply(&x), &(&y * &s + &t), &about);
            assert_equal(&form.scaled(Some(&scale), None).apply(&x), &(&y * s), &about);
            assert_equal(&form.scaled(None, Some(&shift)).apply(&x), &(&y + t), &about);
        }
    }

    #[test]
    fn the_identity_is_one_tap_for_each_channel() {
        let x = map([5, 7]);
        assert_equal(&Form::identity(4, Kind::Double).apply(&x), &x, "identity");
        let (form, x) = (Dice(5).form(4, 4, &[0]), map(SIZES[0]));
        let composed = Form::identity(4, Kind::Double).then(&form).unwrap();
        assert_equal(&composed.apply(&x), &form.apply(&x), "the identity, then a form");
    }
}

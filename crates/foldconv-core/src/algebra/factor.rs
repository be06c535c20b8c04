//! Exact factorisations of kernels into chains, in float64.

use tch::{Kind, Tensor};

/// Factors matrices (G, o, i) into left (G, o, m) and right (G, m, i), whose product is the nearest
/// matrix of rank m, by the singular value decomposition. If m is above the rank that a matrix can
/// have, the further columns of `left` are 0 and the further rows of `right` are drawn at the size
/// of the others, so that both can learn.
pub fn low_rank(matrices: &Tensor, m: i64) -> (Tensor, Tensor) {
    let (u, s, v) = matrices.svd(true, true);
    let (groups, rank) = (s.size()[0], s.size()[1].min(m));
    let root = s.narrow(1, 0, rank).sqrt();
    let left = u.narrow(2, 0, rank) * root.unsqueeze(1);
    let right = v.narrow(2, 0, rank).transpose(1, 2) * root.unsqueeze(2);
    let more = m - rank;
    if more == 0 {
        return (left, right);
    }
    let options = (Kind::Double, matrices.device());
    let drawn = Tensor::randn([groups, more, right.size()[2]], options) * right.square().mean(Kind::Double).sqrt();
    let zeros = Tensor::zeros([groups, left.size()[1], more], options);
    (Tensor::cat(&[left, zeros], 2), Tensor::cat(&[right, drawn], 1))
}

/// Draws matrices Q (G, rows, columns) with orthonormal columns, Qᵀ Q = I. There must be at least
/// as many rows as columns.
pub fn isometry(like: &Tensor, [groups, rows, columns]: [i64; 3]) -> Tensor {
    Tensor::linalg_qr(&Tensor::randn([groups, rows, columns], (Kind::Double, like.device())), "reduced").0
}

/// Splits kernels (..., k, k) into four of (4, ..., k - 2, k - 2), one for each corner of the
/// window, whose sum in their corners is the kernel. Shared taps are divided evenly.
pub fn corners(kernels: &Tensor) -> Tensor {
    let k = kernels.size().last().copied().unwrap_or(0);
    let part = |tensor: &Tensor, [row, column]: [i64; 2]| tensor.narrow(-2, row, k - 2).narrow(-1, column, k - 2);
    let covers = Tensor::zeros([k, k], (kernels.kind(), kernels.device()));
    CORNERS.iter().for_each(|corner| drop(part(&covers, *corner).g_add_scalar_(1.)));
    let divided = kernels / covers;
    Tensor::stack(&CORNERS.map(|corner| part(&divided, corner)), 0)
}

/// Places of the corners of [`corners`] in the window: row and column of the first tap.
pub const CORNERS: [[i64; 2]; 4] = [[0, 0], [0, 2], [2, 0], [2, 2]];

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn error(found: &Tensor, wanted: &Tensor) -> f64 {
        ((found - wanted).norm() / wanted.norm()).double_value(&[])
    }

    #[test]
    fn factors_of_full_rank_multiply_to_the_matrix() {
        for (o, i, m) in [(3, 5, 3), (5, 3, 4), (4, 4, 9)] {
            let matrices = Tensor::randn([2, o, i], DOUBLE);
            let (left, right) = low_rank(&matrices, m);
            assert_eq!((left.size(), right.size()), (vec![2, o, m], vec![2, m, i]));
            assert!(error(&left.matmul(&right), &matrices) < 1e-14);
        }
    }

    /// Eckart and Young: the distance is the norm of the singular values left out.
    #[test]
    fn factors_of_lower_rank_are_the_nearest() {
        let matrix = Tensor::randn([1, 5, 6], DOUBLE);
        let (left, right) = low_rank(&matrix, 2);
        let (_, s, _) = matrix.svd(true, true);
        let rest = s.narrow(1, 2, 3).norm().double_value(&[]);
        assert!(((left.matmul(&right) - matrix).norm().double_value(&[]) - rest).abs() < 1e-13);
    }

    #[test]
    fn an_isometry_has_orthonormal_columns() {
        let q = isometry(&Tensor::zeros([0], DOUBLE), [3, 7, 4]);
        assert!(error(&q.transpose(1, 2).matmul(&q), &Tensor::eye(4, DOUBLE).expand([3, 4, 4], false)) < 1e-14);
    }

    #[test]
    fn corners_add_up_to_the_kernel() {
        for k in [5, 7] {
            let kernel = Tensor::randn([2, k, k], DOUBLE);
            let sum = Tensor::zeros([2, k, k], DOUBLE);
            for (part, [row, column]) in corners(&kernel).unbind(0).iter().zip(CORNERS) {
                let mut place = sum.narrow(1, row, k - 2).narrow(2, column, k - 2);
                place += part;
            }
            assert!(error(&sum, &kernel) < 1e-15, "{k}");
        }
    }
}

//! Convolutions, parameters and multiply-accumulates of graphs.

use super::{Arg, Graph, Id, Node};
use crate::algebra::count;
use serde::Serialize;
use std::collections::BTreeMap;

/// Totals of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Number of convolutions.
    pub convolutions: i64,
    /// Number of parameters and other constants that are no integers, of nodes that are left.
    pub parameters: i64,
    /// Multiply-accumulates at the shapes of the graph, as [`Node::macs`] counts them.
    pub macs: i64,
}

impl Graph {
    /// Counts convolutions, parameters and multiply-accumulates.
    pub fn totals(&self) -> Totals {
        let convolution = |at: &usize| self.nodes[*at].operator().contains("conv");
        let numbers = self.constants().filter_map(|id| self.values[id].tensor.as_ref());
        Totals {
            convolutions: (0..self.nodes.len()).filter(convolution).count() as i64,
            parameters: numbers.filter(|tensor| tensor.is_floating_point()).map(|tensor| tensor.numel() as i64).sum(),
            macs: (0..self.nodes.len()).map(|at| self.macs(at)).fold(0, i64::saturating_add),
        }
    }

    /// Returns the multiply-accumulates of a node at the shapes of the graph.
    pub fn macs(&self, at: usize) -> i64 {
        let node = &self.nodes[at];
        let size = |id: Id| self.values[id].size.clone();
        let result = node.outputs.first().and_then(|id| size(*id));
        result.map_or(0, |result| node.macs(size, &result))
    }
}

impl Node {
    /// Returns the multiply-accumulates of a convolution, a fully connected layer, a matrix product
    /// or an attention whose result has the shape `result`, and 0 for any other node. `size`
    /// returns the shape of a value.
    pub fn macs(&self, size: impl Fn(Id) -> Option<Vec<i64>>, result: &[i64]) -> i64 {
        let of = |argument: &str| size(self.value(argument)?);
        let from_the_end = |argument: &str, at: usize| of(argument)?.iter().rev().nth(at).copied();
        let products = count(result);
        match self.operator() {
            "matmul" | "bmm" | "mm" => products.saturating_mul(from_the_end("self", 0).unwrap_or(0)),
            "addmm" => products.saturating_mul(from_the_end("mat1", 0).unwrap_or(0)),
            "baddbmm" => products.saturating_mul(from_the_end("batch1", 0).unwrap_or(0)),
            "einsum" => {
                let factors = self.arg("tensors").map(Arg::values).unwrap_or_default();
                let sizes = factors.into_iter().map(&size).collect::<Option<Vec<Vec<i64>>>>();
                match (self.arg("equation"), sizes) {
                    (Some(Arg::Text(equation)), Some(sizes)) => einsum(equation, &sizes),
                    _ => 0,
                }
            }
            // The products of the queries with the keys, and of the weights with the values.
            "scaled_dot_product_attention" => {
                let queries = of("query").map_or(0, |size| count(&size));
                queries.saturating_add(products).saturating_mul(from_the_end("key", 1).unwrap_or(0))
            }
            // Projections to queries, keys and values (3 E, E), the products of an attention, and a
            // projection (E, E), which PyTorch calls as one where it runs in evaluation.
            "_native_multi_head_attention" => {
                let projections = ["qkv_weight", "proj_weight"].into_iter().filter_map(of);
                let of_weights: i64 = projections.map(|size| count(&size)).sum();
                let (queries, keys) = (of("query").map_or(0, |size| count(&size)), from_the_end("key", 1).unwrap_or(0));
                let channels = from_the_end("query", 0).unwrap_or(1).max(1);
                (queries / channels).saturating_mul(of_weights).saturating_add(queries.saturating_mul(2 * keys))
            }
            _ => self.layer_macs(of, result),
        }
    }

    fn layer_macs(&self, size: impl Fn(&str) -> Option<Vec<i64>>, result: &[i64]) -> i64 {
        let name = self.operator();
        let transposed = name.starts_with("conv_transpose") || self.arg("transposed") == Some(&Arg::Bool(true));
        let layer = name.contains("conv") || name == "linear";
        // The kernel of a transposed convolution is (C_in, C_out/groups, …), and each number of the
        // input goes into its products.
        let map = if transposed { size("input") } else { layer.then(|| result.to_vec()) };
        let (Some(map), Some(weight)) = (map, size("weight")) else { return 0 };
        count(&map).saturating_mul(weight.get(1..).map_or(0, count))
    }
}

/// Returns the multiply-accumulates of two or more factors: one for each combination of indices. An
/// equation with an ellipsis is not counted.
fn einsum(equation: &str, sizes: &[Vec<i64>]) -> i64 {
    let factors: Vec<String> = equation.split("->").take(1).flat_map(|left| left.split(',')).map(letters).collect();
    let fits = |(factor, size): (&String, &Vec<i64>)| factor.len() == size.len() && !factor.contains('.');
    if factors.len() != sizes.len() || sizes.len() < 2 || !factors.iter().zip(sizes).all(fits) {
        return 0;
    }
    let mut indices: BTreeMap<char, i64> = BTreeMap::new();
    for (letter, n) in factors.iter().zip(sizes).flat_map(|(factor, size)| factor.chars().zip(size)) {
        let largest = indices.entry(letter).or_insert(*n);
        *largest = (*largest).max(*n);
    }
    count(&indices.into_values().collect::<Vec<i64>>())
}

fn letters(factor: &str) -> String {
    factor.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::einsum;

    #[test]
    fn an_einsum_has_a_product_for_each_combination_of_its_indices() {
        let sizes = |sizes: &[&[i64]]| sizes.iter().map(|size| size.to_vec()).collect::<Vec<_>>();
        let [query, key] = [[2, 3, 5, 7], [2, 3, 11, 7]];
        assert_eq!(einsum("b h i d, b h j d -> b h i j", &sizes(&[&query, &key])), 2 * 3 * 5 * 11 * 7);
        assert_eq!(einsum("ij,jk", &sizes(&[&[2, 3], &[3, 5]])), 30);
        assert_eq!(
            einsum("ij,jk,kl->il", &sizes(&[&[2, 3], &[1, 5], &[5, 7]])),
            2 * 3 * 5 * 7,
            "an axis of 1 is repeated"
        );
        // A transposition has none, and what does not fit is not counted.
        for (equation, of) in
            [("ij->ji", vec![vec![2, 3]]), ("...i,ij", sizes(&[&[2, 3], &[3, 5]])), ("ij,jk", sizes(&[&[2], &[3, 5]]))]
        {
            assert_eq!(einsum(equation, &of), 0, "{equation}");
        }
    }
}

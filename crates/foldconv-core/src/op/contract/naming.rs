//! Names of an operator's variables in public implementations, if they differ from the names here.
//!
//! A variable here has the reference's name wherever there is a reference, below the operator's
//! site or, for the tensor that the operators of a block share, below the block. The remaining
//! differences are in a table beside the operator.

/// An alternative naming of an operator's variables.
#[derive(Debug)]
pub struct Naming {
    /// Pairs (alternative name, name here), both below the site or block. A name that ends with a
    /// dot, or is empty, stands for all names that begin with it.
    pub names: &'static [(&'static str, &'static str)],
    /// Whether the alternative tensors may have other shapes, with the same values in the same
    /// order.
    pub reshaped: bool,
}

/// Names of an attention module in public implementations, below the block. The name here is
/// `attention`.
pub const ATTENTION: [Naming; 2] = [
    Naming { names: &[("se.", "attention.")], reshaped: false },
    Naming { names: &[("context_block.", "attention.")], reshaped: false },
];

impl Naming {
    /// Returns the alternative name of the variable called `ours` here, if the naming has one.
    pub fn name(&self, ours: &str) -> Option<String> {
        self.names.iter().find_map(|(theirs, own)| {
            let rest = ours.strip_prefix(own)?;
            let all = own.is_empty() || own.ends_with('.');
            (all || rest.is_empty()).then(|| format!("{theirs}{rest}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_whole_or_all_that_begin_with_it() {
        let naming = Naming { names: &[("w", "conv.weight"), ("se.", "attention."), ("rest.", "")], reshaped: false };
        let names =
            ["conv.weight", "conv.weights", "attention.fc.0.weight", "bias"].map(|name| naming.name(name).unwrap());
        assert_eq!(names, ["w", "rest.conv.weights", "se.fc.0.weight", "rest.bias"]);
        assert_eq!(Naming { names: &[("w", "weight")], reshaped: false }.name("weights"), None);
    }
}

//! How public implementations call an operator's variables, where they don't call them as we do.
//!
//! Ours have the reference's names wherever there is one, below the operator's site or, for what the operators of a block share,
//! below the block. What is left is a table beside the operator.

/// Another way to call an operator's variables.
#[derive(Debug)]
pub struct Naming {
    /// (its name, ours), both below the site or block. A name that ends with a dot, or is empty, stands for all names that begin
    /// with it.
    pub names: &'static [(&'static str, &'static str)],
    /// Whether its tensors may have other shapes, with the same numbers in the same order.
    pub reshaped: bool,
}

/// Where the public implementations of the attention modules have them, below the block: ours is `attention`.
pub const ATTENTION: [Naming; 2] = [
    Naming { names: &[("se.", "attention.")], reshaped: false },
    Naming { names: &[("context_block.", "attention.")], reshaped: false },
];

impl Naming {
    /// Its name of the variable that we call `ours`.
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

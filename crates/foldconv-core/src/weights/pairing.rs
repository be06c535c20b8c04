//! Matching of the tensors in a file, under the names of public implementations, to the variables
//! of a network.

use crate::error::nearest;
use crate::op::contract::naming::Naming;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of pairs of names whose edit distance is computed, so that two networks with
/// thousands of variables don't take minutes.
const MOST_COMPARED: usize = 1_000_000;

/// Names that public implementations give to the variables of a network.
#[derive(Debug, Default)]
pub struct Aliases {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    namings: &'static [Naming],
    /// Paths below which the namings hold; none for all paths.
    places: Option<BTreeSet<String>>,
    /// The members of `places` that are sites and not enclosing blocks. Only at sites may a naming
    /// rename all variables.
    sites: BTreeSet<String>,
}

/// A name that a variable may have in a file.
struct Alias {
    name: String,
    reshaped: bool,
}

impl Aliases {
    /// Collects the namings of operators, from the names of their sites and the operators' namings.
    pub fn of_sites<'a>(sites: impl IntoIterator<Item = (&'a str, &'static [Naming])>) -> Aliases {
        let mut aliases = Aliases::default();
        for (site, namings) in sites.into_iter().filter(|(_, namings)| !namings.is_empty()) {
            let known = aliases.rules.iter().position(|rule| std::ptr::eq(rule.namings, namings));
            let at = known.unwrap_or_else(|| {
                aliases.rules.push(Rule { namings, places: Some(BTreeSet::new()), sites: BTreeSet::new() });
                aliases.rules.len() - 1
            });
            let rule = &mut aliases.rules[at];
            let blocks = site.match_indices('.').map(|(at, _)| site[..at].to_string());
            rule.places.get_or_insert_default().extend(blocks.chain([site.to_string()]));
            rule.sites.insert(site.to_string());
        }
        aliases
    }

    /// Adds namings that hold below every path.
    pub fn and_everywhere(mut self, namings: &'static [Naming]) -> Aliases {
        self.rules.push(Rule { namings, places: None, sites: BTreeSet::new() });
        self
    }

    /// Returns the names that a variable may have, its own name first.
    fn of(&self, name: &str) -> Vec<Alias> {
        let mut aliases = vec![Alias { name: name.to_string(), reshaped: false }];
        for (at, _) in name.match_indices('.') {
            let (place, ours) = (&name[..at], &name[at + 1..]);
            for Rule { namings, places, sites } in &self.rules {
                if places.as_ref().is_some_and(|places| !places.contains(place)) {
                    continue;
                }
                for naming in *namings {
                    let everything = naming.names.iter().any(|(_, own)| own.is_empty());
                    if everything && !sites.contains(place) {
                        continue;
                    }
                    let alias = naming.name(ours).map(|theirs| format!("{place}.{theirs}"));
                    aliases.extend(alias.map(|name| Alias { name, reshaped: naming.reshaped }));
                }
            }
        }
        aliases
    }
}

/// A variable or tensor without a match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// Name of the network's variable, or of the file's tensor for [`Wrong::Unused`].
    pub name: String,
    /// Kind of problem.
    pub wrong: Wrong,
    /// Most similar unmatched name on the other side, if there is one.
    pub nearest: Option<String>,
}

/// Kinds of problems of a name.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// The network has a variable of this name, the file has no tensor.
    Missing,
    /// The file has a tensor of this name, the network has no variable.
    Unused,
    /// Both have the name, but the shapes don't fit.
    Shape {
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape in the network.
        expected: Vec<i64>,
    },
    /// The tensor has a type that can't be read; its description.
    Kind(String),
}

impl Wrong {
    /// Describes the fault in words.
    pub fn text(&self) -> String {
        match self {
            Wrong::Missing => "not in the file".into(),
            Wrong::Unused => "not in the network".into(),
            Wrong::Shape { found, expected } => format!("is {found:?}, expected {expected:?}"),
            Wrong::Kind(kind) => format!("is {kind}; float32, float64, float16 and bfloat16 are read"),
        }
    }
}

/// A tensor of a file, as far as matching needs it.
#[derive(Clone, Debug)]
pub struct Theirs {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub size: Vec<i64>,
    /// Description of its type if it can't be a weight.
    pub unfit: Option<String>,
}

/// Assignment of the tensors of a file to the variables of a network.
#[derive(Debug, Default)]
pub struct Pairing {
    /// Name of the variable and index of the file's tensor.
    pub pairs: Vec<(String, usize)>,
    /// Variables that may be missing in a file, and are.
    pub optional: Vec<String>,
    /// Tensors of the file that have no meaning for the network, such as counters.
    pub ignored: Vec<String>,
    /// All other variables and tensors without a match.
    pub problems: Vec<Problem>,
}

/// Returns whether a name is that of a counter, which PyTorch keeps in state dicts beside the
/// weights.
fn is_counter(name: &str) -> bool {
    ["num_batches_tracked", "n_averaged"].contains(&last(name))
}

/// Returns whether a variable may be missing in a file. Temperatures are variables here, and
/// options in the references.
fn is_optional(name: &str) -> bool {
    last(name) == "temperature"
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Pairing {
    /// Finds each variable among the tensors of a file by name and shape. Shapes must be equal,
    /// unless a naming says that the reference stores the same numbers in another shape.
    pub fn new(ours: &BTreeMap<String, Vec<i64>>, theirs: &[Theirs], aliases: &Aliases) -> Pairing {
        let by_name: BTreeMap<&str, usize> = theirs.iter().enumerate().map(|(at, t)| (t.name.as_str(), at)).collect();
        let mut used = vec![false; theirs.len()];
        let mut pairing = Pairing::default();
        for (name, expected) in ours {
            let wrong = |wrong| Problem { name: name.clone(), wrong, nearest: None };
            let found: Vec<(usize, bool)> = (aliases.of(name).into_iter())
                .filter_map(|alias| Some((*by_name.get(alias.name.as_str())?, alias.reshaped)))
                .collect();
            let fits = |(at, reshaped): &&(usize, bool)| {
                let size = &theirs[*at].size;
                size == expected || *reshaped && numel(size).is_some() && numel(size) == numel(expected)
            };
            match (found.iter().find(fits), found.first()) {
                (Some((at, _)), _) | (None, Some((at, _))) if theirs[*at].unfit.is_some() => {
                    used[*at] = true;
                    pairing.problems.push(wrong(Wrong::Kind(theirs[*at].unfit.clone().unwrap_or_default())));
                }
                (Some((at, _)), _) => {
                    used[*at] = true;
                    pairing.pairs.push((name.clone(), *at));
                }
                (None, Some((at, _))) => {
                    used[*at] = true;
                    let (found, expected) = (theirs[*at].size.clone(), expected.clone());
                    pairing.problems.push(wrong(Wrong::Shape { found, expected }));
                }
                (None, None) if is_optional(name) => pairing.optional.push(name.clone()),
                (None, None) => pairing.problems.push(wrong(Wrong::Missing)),
            }
        }
        for (_, Theirs { name, .. }) in theirs.iter().enumerate().filter(|(at, _)| !used[*at]) {
            match is_counter(name) {
                true => pairing.ignored.push(name.clone()),
                false => pairing.problems.push(Problem { name: name.clone(), wrong: Wrong::Unused, nearest: None }),
            }
        }
        pairing.find_nearest(ours, theirs);
        pairing
    }

    /// Sets the nearest name of each missing variable among the unused tensors, and the reverse: by
    /// spelling, or else the only one with the same last component and the same shape.
    fn find_nearest(&mut self, ours: &BTreeMap<String, Vec<i64>>, theirs: &[Theirs]) {
        let names = |wrong: Wrong| -> Vec<&str> {
            self.problems.iter().filter(|problem| problem.wrong == wrong).map(|problem| problem.name.as_str()).collect()
        };
        let (missing, unused) = (names(Wrong::Missing), names(Wrong::Unused));
        if missing.len() * unused.len() > MOST_COMPARED {
            return;
        }
        let sizes: BTreeMap<&str, &[i64]> = theirs.iter().map(|tensor| (tensor.name.as_str(), &*tensor.size)).collect();
        let size = |name: &str| ours.get(name).map(Vec::as_slice).or_else(|| sizes.get(name).copied());
        let alike = |name: &str, others: &[&str]| {
            let alike = |other: &&&str| last(other) == last(name) && size(other) == size(name);
            let mut found = others.iter().filter(alike);
            found.next().filter(|_| found.next().is_none()).map(|other| other.to_string())
        };
        let nearest: Vec<Option<String>> = (self.problems.iter())
            .map(|problem| {
                let others = match problem.wrong {
                    Wrong::Missing => &unused,
                    Wrong::Unused => &missing,
                    _ => return None,
                };
                let spelt = nearest(&problem.name, others.iter().copied()).map(String::from);
                spelt.or_else(|| alike(&problem.name, others))
            })
            .collect();
        self.problems.iter_mut().zip(nearest).for_each(|(problem, nearest)| problem.nearest = nearest);
    }

    /// Returns the counts of problems, as in `3 missing, 2 unused, 1 misshapen`.
    pub fn counts(&self) -> String {
        let count = |is: fn(&Wrong) -> bool| self.problems.iter().filter(|problem| is(&problem.wrong)).count();
        let counts = [
            (count(|wrong| matches!(wrong, Wrong::Missing)), "missing"),
            (count(|wrong| matches!(wrong, Wrong::Unused)), "unused"),
            (count(|wrong| matches!(wrong, Wrong::Shape { .. })), "misshapen"),
            (count(|wrong| matches!(wrong, Wrong::Kind(_))), "of no fitting type"),
        ];
        let some = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        some.collect::<Vec<_>>().join(", ")
    }
}

fn numel(size: &[i64]) -> Option<i64> {
    size.iter().try_fold(1i64, |product, n| product.checked_mul(*n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::contract::naming::ATTENTION;

    static NAMINGS: [Naming; 2] = [
        Naming { names: &[("weight", "conv.weight"), ("routing.", "route.")], reshaped: true },
        Naming { names: &[("deploy.", "")], reshaped: false },
    ];

    type Named<'a> = (&'a str, &'a [i64]);

    fn pair(ours: &[Named], theirs: &[Named]) -> Pairing {
        let ours = ours.iter().map(|(name, size)| (name.to_string(), size.to_vec())).collect();
        let tensor = |(name, size): &Named| Theirs { name: name.to_string(), size: size.to_vec(), unfit: None };
        let theirs: Vec<Theirs> = theirs.iter().map(tensor).collect();
        Pairing::new(
            &ours,
            &theirs,
            &Aliases::of_sites([("block.site", NAMINGS.as_slice())]).and_everywhere(&ATTENTION),
        )
    }

    fn wrong(pairing: &Pairing) -> Vec<(&str, &Wrong, Option<&str>)> {
        pairing.problems.iter().map(|p| (p.name.as_str(), &p.wrong, p.nearest.as_deref())).collect()
    }

    #[test]
    fn a_layout_holds_at_its_sites_and_their_blocks_alone() {
        let found = |ours: Named, theirs: Named| pair(&[ours], &[theirs]).problems.is_empty();
        // The variable's own name, only in its own shape.
        assert!(found(("other.conv.weight", &[2, 3]), ("other.conv.weight", &[2, 3])));
        assert!(!found(("other.conv.weight", &[2, 3]), ("other.conv.weight", &[6])));
        assert!(!found(("other.conv.weight", &[2, 3]), ("other.conv.weight", &[1, 3])));
        // The name of a naming, in any shape with the same number of elements.
        assert!(found(("block.site.conv.weight", &[2, 3]), ("block.site.weight", &[6])));
        assert!(!found(("block.site.conv.weight", &[2, 3]), ("block.site.weight", &[3])));
        assert!(!found(("other.conv.weight", &[2, 3]), ("other.weight", &[2, 3])));
        assert!(found(("block.route.fc.weight", &[2, 3]), ("block.routing.fc.weight", &[2, 3])));
        // A naming that renames all variables holds at the site, but not in the block.
        assert!(found(("block.site.bias", &[2]), ("block.site.deploy.bias", &[2])));
        assert!(!found(("block.site.bias", &[2, 1]), ("block.site.deploy.bias", &[2])));
        assert!(!found(("block.bias", &[2]), ("block.deploy.bias", &[2])));
        // Namings of attention hold anywhere.
        assert!(found(("far.away.attention.fc.0.weight", &[2]), ("far.away.se.fc.0.weight", &[2])));
    }

    #[test]
    fn all_that_is_wrong_is_listed_with_the_nearest_names() {
        let ours: &[Named] =
            &[("a.weight", &[2]), ("b.running_mean", &[4]), ("c", &[1]), ("head.bias", &[5]), ("x.temperature", &[])];
        let theirs: &[Named] = &[
            ("a.weight", &[2, 1]),
            ("b.runing_mean", &[4]),
            ("fc.bias", &[5]),
            ("gamma.bias", &[6]),
            ("x.num_batches_tracked", &[]),
        ];
        let pairing = pair(ours, theirs);
        let shape = Wrong::Shape { found: vec![2, 1], expected: vec![2] };
        let expected = [
            ("a.weight", &shape, None),
            ("b.running_mean", &Wrong::Missing, Some("b.runing_mean")),
            ("c", &Wrong::Missing, None),
            ("head.bias", &Wrong::Missing, Some("fc.bias")),
            ("b.runing_mean", &Wrong::Unused, Some("b.running_mean")),
            ("fc.bias", &Wrong::Unused, Some("head.bias")),
            ("gamma.bias", &Wrong::Unused, None),
        ];
        assert_eq!(wrong(&pairing), expected);
        assert_eq!(pairing.counts(), "3 missing, 3 unused, 1 misshapen");
        assert_eq!(
            (pairing.optional, pairing.ignored),
            (vec!["x.temperature".into()], vec!["x.num_batches_tracked".into()])
        );
    }

    #[test]
    fn a_tensor_that_holds_no_numbers_fits_nothing() {
        let ours = BTreeMap::from([("a".to_string(), vec![2])]);
        let theirs = [Theirs { name: "a".into(), size: vec![2], unfit: Some("int64".into()) }];
        let pairing = Pairing::new(&ours, &theirs, &Aliases::default());
        assert_eq!(wrong(&pairing), [("a", &Wrong::Kind("int64".into()), None)]);
    }
}

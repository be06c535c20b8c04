//! The key `paper` of a sweep file: figures that a paper gives for the points, shown beside the
//! measured ones. The key is not part of a trial.

use crate::bad_request;
use crate::config::{Document, Value, schema};
use crate::error::suggest;
use crate::sweep::plan::Point;
use crate::sweep::plan::axes::label;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Published figures. Points are named by their titles, as `--dry-run` lists them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Paper {
    /// Publication that gives the figures. Default: none.
    pub source: Option<String>,
    /// Number or name of the table in the publication. Default: none.
    #[schemars(with = "Option<serde_json::Value>")]
    pub table: Option<Value>,
    /// Top-1 of points, in percent. Default: none.
    pub top1: BTreeMap<String, f64>,
    /// Top-1 of points minus that of their baseline, in percentage points, for papers that give
    /// only the difference. Default: none.
    pub difference: BTreeMap<String, f64>,
}

impl Paper {
    /// Reads the key `paper`. Returns `None` if the file does not have it.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`]: an unknown key or point, with the nearest known name; a
    /// figure out of its range; or no figure at all.
    pub fn read(document: &Document, points: &[Point]) -> Result<Option<Paper>> {
        let Some(value) = document.sweep.get("paper") else { return Ok(None) };
        let place = format!("{}: paper", document.place("paper"));
        let root = crate::options::schema::<Paper>();
        if let Err(wrong) = schema::check(&root, &root, value, "paper", &[]) {
            bad_request!("{}: {wrong}", document.place(&wrong.path));
        }
        let paper: Paper = match serde_yaml::from_value(value.clone()) {
            Ok(paper) => paper,
            Err(error) => bad_request!("{place}: {error}"),
        };
        if paper.top1.is_empty() && paper.difference.is_empty() {
            bad_request!("{place}: gives no figure; add `top1: {{POINT: PERCENT}}` or `difference: {{POINT: POINTS}}`");
        }
        for (key, figures, least) in [("top1", &paper.top1, 0.), ("difference", &paper.difference, -100.)] {
            for (title, figure) in figures {
                let titles = points.iter().map(|point| point.title.as_str());
                if !titles.clone().any(|known| known == title) {
                    bad_request!("{place}.{key}: no point `{title}`{}", suggest(title, titles));
                }
                if !(least..=100.).contains(figure) {
                    bad_request!("{place}.{key}.{title}: {figure}; give a number from {least} to 100");
                }
            }
        }
        Ok(Some(paper))
    }

    /// Returns the source of the figures, such as `Luo & Zhan 2022, table 6`.
    pub fn citation(&self) -> String {
        let table = self.table.as_ref().map(|table| format!("table {}", label(table)));
        let parts: Vec<String> = self.source.clone().into_iter().chain(table).collect();
        if parts.is_empty() { "published".into() } else { parts.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mapping;
    use crate::sweep::plan::Plan;

    fn plan(paper: &str) -> Result<Plan> {
        let read = |yaml: &str| serde_yaml::from_str::<Mapping>(yaml).unwrap();
        let trial = read("{data: {name: cifar10}, net: {name: smallnet}, operator: {name: mdconv}}");
        let sweep =
            format!("{{axes: {{operator.bypass: [true, false]}}, baseline: {{operator: {{name: plain}}}}{paper}}}");
        Plan::new(&Document { trial, sweep: read(&sweep), origin: "a.yaml".into(), ..Document::default() })
    }

    #[test]
    fn figures_are_read_cited_and_no_part_of_a_trial() {
        let with = plan(
            ", paper: {source: Luo & Zhan 2022, table: 6, top1: {plain: 70, bypass=true: 71.5}, difference: {bypass=false: -2}}",
        )
        .unwrap();
        let paper = with.paper.clone().unwrap();
        assert_eq!(
            (paper.top1["plain"], paper.top1["bypass=true"], paper.difference["bypass=false"]),
            (70., 71.5, -2.)
        );
        assert_eq!(paper.citation(), "Luo & Zhan 2022, table 6");
        assert_eq!(Paper::default().citation(), "published");
        let without = plan("").unwrap();
        assert_eq!((&without.paper, &without.points), (&None, &with.points));
    }

    #[test]
    fn what_is_wrong_is_named_on_one_line() {
        for (paper, expected) in [
            ("{top1: {plane: 70}}", "a.yaml: paper.top1: no point `plane`, did you mean `plain`?"),
            (
                "{difference: {x: 1}}",
                "a.yaml: paper.difference: no point `x`, known are plain, bypass=true, bypass=false",
            ),
            ("{topl: {plain: 70}}", "a.yaml: paper: unknown key `topl`, did you mean `top1`?"),
            ("{top1: {plain: high}}", "a.yaml: paper.top1.plain: high; give a number"),
            ("{top1: {plain: 170}}", "a.yaml: paper.top1.plain: 170; give a number from 0 to 100"),
            ("{top1: {plain: .nan}}", "a.yaml: paper.top1.plain: .nan; give a number"),
            ("{table: 6}", "a.yaml: paper: gives no figure"),
            ("6", "a.yaml: paper: 6; give {source, table, top1, difference}"),
        ] {
            let error = plan(&format!(", paper: {paper}")).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{paper}: {error}");
            assert_eq!((crate::error::exit_status(&error), error.to_string().lines().count()), (2, 1));
        }
    }
}

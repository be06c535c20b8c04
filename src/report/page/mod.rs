//! `report.html`: the whole report as one file that needs no network access. maud escapes all shown
//! text, and the page's content security policy allows only the page's own script.

use crate::finite;
use crate::report::comparison::Comparison;
use crate::report::plot::{Figure, Section};
use crate::report::summary::{PointSummary, Summary};
use crate::report::table::{self, Table};
use crate::report::{COSTS, DETAIL, LEGEND, PIVOT};
use crate::text::{rounded_down, scientific};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Contents of the page.
#[derive(Debug)]
pub struct Page<'a> {
    /// Summary of the sweep.
    pub summary: &'a Summary,
    /// Top-1 table in the layout of a paper.
    pub pivot: Option<&'a Table>,
    /// Table of all points.
    pub detail: &'a Table,
    /// Comparisons of points.
    pub comparisons: &'a [Comparison],
    /// Sections of plots.
    pub sections: &'a [Section],
}

impl Page<'_> {
    /// Returns the HTML of the page.
    pub fn render(&self) -> String {
        let Summary { title, base, .. } = self.summary;
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'",
            base64(&Sha256::digest(SCRIPT))
        );
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    link rel="icon" href="data:,";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { (title) }
                        p.progress { (self.summary.progress()) }
                        (self.contents())
                        (self.facts())
                    }
                    main {
                        @if let Some(pivot) = self.pivot { (chapter("pivot", PIVOT, &sortable(pivot))) }
                        (self.comparisons())
                        @for (at, section) in self.sections.iter().enumerate() {
                            (chapter(&format!("plots-{at}"), section.title, &figures(&section.figures)))
                        }
                        (chapter("points", DETAIL, &html! { (sortable(self.detail)) p.note { (LEGEND) } }))
                        @if let Some(costs) = table::costs(self.summary) { (chapter("costs", COSTS, &sortable(&costs))) }
                        (self.ended())
                        (chapter("base", "The base", &html! { pre { (base.trim_end()) } }))
                    }
                    footer {
                        p { "Beside this page: report.md, report.csv and report.json, and the plots in plots/." }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    fn contents(&self) -> Markup {
        html! {
            nav aria-label="Contents" {
                ul {
                    @if self.pivot.is_some() { li { a href="#pivot" { "Top-1" } } }
                    @if !self.comparisons.is_empty() { li { a href="#differences" { "Differences" } } }
                    @for (at, section) in self.sections.iter().enumerate() {
                        li { a href={ "#plots-" (at) } { (section.title) } }
                    }
                    li { a href="#points" { (DETAIL) } }
                    @if self.summary.finished > 0 { li { a href="#costs" { (COSTS) } } }
                    @if !self.summary.ended.is_empty() { li { a href="#ended" { "Without a result" } } }
                    li { a href="#base" { "The base" } }
                }
            }
        }
    }

    /// Renders the key facts.
    fn facts(&self) -> Markup {
        let points = &self.summary.points;
        let best = self.summary.best().and_then(|(best, chosen_on)| Some((best, best.expanded_top1()?, chosen_on)));
        let folds: Vec<(f64, f64)> = points.iter().filter_map(PointSummary::worst_fold).collect();
        let worst = folds.iter().copied().reduce(|a, b| (finite::smaller(a.0, b.0), finite::larger(a.1, b.1)));
        html! {
            dl.facts {
                div { dt { "Trials finished" } dd { (self.summary.finished) " of " (self.summary.trials) } }
                @if let Some((best, top1, chosen_on)) = best {
                    div {
                        dt { "Top-1 of the best point" }
                        dd { (top1) " %" small { (best.title) ", n = " (top1.n) ", chosen on the " (chosen_on.name()) " split" } }
                    }
                }
                @if let Some((agreement, error)) = worst {
                    div {
                        dt { "Expanded and compact agree on" }
                        dd { (rounded_down(agreement)) " %" small { "of the images or more, in every folded trial" } }
                    }
                    div { dt { "Largest fold error" } dd { (scientific(error)) small { "of the largest logit" } } }
                }
            }
        }
    }

    fn comparisons(&self) -> Markup {
        if self.comparisons.is_empty() {
            return html! {};
        }
        chapter(
            "differences",
            "Differences",
            &html! {
                p.note { (table::COMPARISON_LEGEND) }
                @for comparison in self.comparisons {
                    h3 { (comparison.title()) }
                    (sortable(&table::comparison(comparison)))
                }
            },
        )
    }

    /// Renders the trials that ended without a result.
    fn ended(&self) -> Markup {
        let header = ["point", "seed", "state", "folder"].map(String::from).to_vec();
        let mut rows = Vec::new();
        for point in &self.summary.points {
            for trial in &point.trials {
                if let Some(state) = trial.ended {
                    let folder = format!("trials/{}", trial.hash);
                    rows.push(vec![point.title.clone(), trial.seed.to_string(), state.to_string(), folder]);
                }
            }
        }
        if rows.is_empty() {
            return html! {};
        }
        let table = Table { header, rows, footnotes: vec!["They are in no mean and in no plot; nor are the other seeds of a point of which some were pruned, which are the better ones.".into()] };
        chapter("ended", "Without a result", &sortable(&table))
    }
}

fn chapter(id: &str, title: &str, content: &Markup) -> Markup {
    html! {
        section aria-labelledby=(id) {
            h2 id=(id) { (title) }
            (content)
        }
    }
}

fn figures(figures: &[Figure]) -> Markup {
    html! {
        div.figures {
            @for figure in figures {
                figure {
                    (PreEscaped(figure.inline()))
                    figcaption {
                        (figure.note) " "
                        span.links {
                            a href={ "plots/" (figure.name) ".svg" } { "SVG" } " "
                            a href={ "plots/" (figure.name) ".png" } { "PNG" }
                        }
                    }
                }
            }
        }
    }
}

/// Renders a table that the page's script can sort. A table that is too wide scrolls by itself,
/// also by keyboard.
fn sortable(table: &Table) -> Markup {
    let numeric: Vec<bool> = (0..table.header.len()).map(|column| table.is_numeric(column)).collect();
    let class = |column: usize| numeric[column].then_some("number");
    html! {
        div.scroll tabindex="0" role="region" aria-label="Table" {
            table.sortable {
                thead {
                    tr {
                        @for (column, head) in table.header.iter().enumerate() {
                            th scope="col" aria-sort="none" class=[class(column)] { button type="button" { (head) } }
                        }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr { @for (column, cell) in row.iter().enumerate() { td class=[class(column)] { (cell) } } }
                    }
                }
            }
        }
        @for note in &table.footnotes { p.note { (note) } }
    }
}

/// Encodes bytes in base64, as required for a hash in a content security policy.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| {
            if at > three.len() { '=' } else { char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]) }
        };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_the_script_is_written_as_a_policy_wants_it() {
        // RFC 4648, section 10.
        let of = |text: &str| base64(text.as_bytes());
        assert_eq!(["", "f", "fo", "foo", "foob"].map(of), ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn what_is_in_a_table_is_text() {
        let cell = "<script>alert(1)</script>".to_string();
        let table = Table { header: vec![cell.clone()], rows: vec![vec![cell.clone()]], footnotes: vec![cell] };
        let page = sortable(&table).into_string();
        assert_eq!(page.matches("&lt;script&gt;").count(), 3, "{page}");
        assert!(!page.contains("<script"), "{page}");
    }
}

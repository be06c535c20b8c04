//! Tables of a report as LaTeX with booktabs, for a paper.

use crate::report::table::Table;

/// Comment above the tables of a document.
pub const HEADER: &str = "% Needs \\usepackage{booktabs}; UTF-8, as LaTeX reads it since 2018.\n";

/// Formats a table with its caption as LaTeX.
pub fn table(table: &Table, caption: &str) -> String {
    let columns: String =
        (0..table.header.len()).map(|column| if table.is_numeric(column) { 'r' } else { 'l' }).collect();
    let row = |cells: &[String]| {
        format!("    {} \\\\\n", cells.iter().map(|cell| escape(cell)).collect::<Vec<_>>().join(" & "))
    };
    let rows: String = table.rows.iter().map(|cells| row(cells)).collect();
    let notes: String =
        table.footnotes.iter().map(|note| format!("  \\par\\footnotesize {}\n", escape(note))).collect();
    format!(
        "\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\begin{{tabular}}{{{columns}}}\n    \\toprule\n{}    \\midrule\n{rows}    \
         \\bottomrule\n  \\end{{tabular}}\n{notes}\\end{{table}}\n",
        escape(caption),
        row(&table.header),
    )
}

/// Escapes text for LaTeX.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '|' => escaped.push_str("\\textbar{}"),
            '"' => escaped.push_str("\\textquotedbl{}"),
            // A bracket after `\\` would be read as its optional argument.
            '[' => escaped.push_str("{[}"),
            ']' => escaped.push_str("{]}"),
            '±' => escaped.push_str("$\\pm$"),
            '→' => escaped.push_str("$\\to$"),
            '−' => escaped.push_str("$-$"),
            '×' => escaped.push_str("$\\times$"),
            '–' => escaped.push_str("--"),
            '…' => escaped.push_str("\\ldots{}"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_booktabs_with_numbers_at_the_right() {
        let rows = vec![vec!["mobilenet_v2".into(), "81.23 ± 0.45".into()], vec!["[1] 50 %".into(), "–".into()]];
        let of = Table { header: vec!["net".into(), "top-1, %".into()], rows, footnotes: vec!["[1] a & b".into()] };
        let expected = "\\begin{table}\n  \\centering\n  \\caption{R\\&D}\n  \\begin{tabular}{lr}\n    \\toprule\n    \
            net & top-1, \\% \\\\\n    \\midrule\n    mobilenet\\_v2 & 81.23 $\\pm$ 0.45 \\\\\n    {[}1{]} 50 \\% & -- \\\\\n    \
            \\bottomrule\n  \\end{tabular}\n  \\par\\footnotesize {[}1{]} a \\& b\n\\end{table}\n";
        assert_eq!(table(&of, "R&D"), expected);
    }

    #[test]
    fn every_sign_that_latex_takes_for_its_own_is_escaped() {
        assert_eq!(
            escape("\\ ~ ^ $ # { } < > | \" − → × …"),
            "\\textbackslash{} \\textasciitilde{} \\textasciicircum{} \\$ \\# \\{ \\} \\textless{} \\textgreater{} \\textbar{} \
             \\textquotedbl{} $-$ $\\to$ $\\times$ \\ldots{}"
        );
    }
}

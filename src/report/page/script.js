// A click on a column's head sorts by it, a second one the other way round; Enter and the space bar click.
"use strict";
const number = text => {
  const found = /^[+\u2212-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text);
  return found ? Number(found[0].replace(/,/g, "").replace("\u2212", "-")) : NaN;
};
const missing = text => text === "" || text === "\u2013" || text.startsWith("(");
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map(row => ({ row, text: row.cells[column].textContent.trim() }));
    const there = rows.filter(({ text }) => !missing(text));
    const numeric = there.every(({ text }) => !Number.isNaN(number(text)));
    const compare = numeric ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b, "en", { numeric: true });
    there.sort((a, b) => (down ? -1 : 1) * compare(a.text, b.text));
    // What is not known stays at the end.
    body.append(...there.map(({ row }) => row), ...rows.filter(({ text }) => missing(text)).map(({ row }) => row));
  }));
}

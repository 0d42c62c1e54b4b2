// How the candidate browser draws: elements, colours, and all of one candidate. Data enter the page as text only.
"use strict";
const minosView = (() => {
  const { INDEX } = minosData;
  const MARKS = { "+": ["✓", "yes", "correct"], "-": ["✗", "no", "wrong"], ".": ["·", "unknown", "unlabelled"] };
  const TWINS = 12; // candidates that are the same, by number
  const IN_LIST = 2, IN_DETAIL = 3; // places of scores

  const fixed = (score, places) => (score === null ? "–" : score.toFixed(places));

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function mark(sign, what) {
    const [symbol, style, word] = MARKS[sign];
    const label = `${word} ${what}`.trim();
    return el("span", { class: `mark ${style}`, role: "img", "aria-label": label, title: word }, symbol);
  }

  function heat(share, alpha) {
    const [low, middle, high] = INDEX.heat;
    const [start, end, way] = share < 0.5 ? [low, middle, share * 2] : [middle, high, share * 2 - 1];
    return `rgba(${start.map((a, k) => Math.round(a + (end[k] - a) * way)).join(",")},${alpha})`;
  }

  // A score in the list, coloured by where it lies between the lowest and the highest of its verifier in this problem.
  function scoreCell(score, range) {
    const cell = el("td", { class: "r" }, fixed(score, IN_LIST));
    if (score === null || range[0] === range[1]) return cell;
    cell.style.background = heat((score - range[0]) / (range[1] - range[0]), INDEX.tint);
    return cell;
  }

  function stepItem(c, k, score, lowest) {
    const value = el("span", { class: lowest ? "score lowest" : "score" }, score === undefined ? "" : fixed(score, IN_DETAIL));
    if (lowest) value.title = "the lowest";
    const step = el("div", { class: "step" }, el("span", { class: "text" }, c.steps[k]), value,
      el("span", { class: "type" }, c.errors[k] || ""));
    if (score !== undefined && score !== null) {
      step.style.borderColor = heat(score, 1);
      step.style.background = heat(score, INDEX.tint);
    }
    return el("li", {}, mark(c.labels[k] || ".", "step"), step);
  }

  function steps(c, colour) {
    const given = c.byStep[INDEX.steps_by.indexOf(colour)] || [];
    const fits = given.length === c.steps.length;
    const lowest = fits ? given.indexOf(Math.min(...given.filter((score) => score !== null))) : -1;
    const items = c.steps.map((_, k) => stepItem(c, k, fits ? given[k] : undefined, k === lowest));
    const list = el("ol", { class: "steps" }, ...items);
    if (fits || !colour) return [list];
    const why = given.length ? `scored ${given.length} of ${c.steps.length} steps` : "has no step scores here";
    return [list, el("p", { class: "soft" }, `Without colours: ${colour} ${why}.`)];
  }

  function critique(c) {
    const verdicts = c.agrees ? "agree with the labels" : "disagree with the labels, so it was set aside";
    const status = ["ok", ""].includes(c.status) ? "" : ` (status: ${c.status})`;
    return el("details", {}, el("summary", {}, `by ${c.critic}; its verdicts ${verdicts}${status}`),
      el("div", { class: "inside critique" }, c.text));
  }

  // Everything about one candidate.
  function detail(c, gold, colour) {
    const status = ["correct", "wrong"].includes(c.status) ? "" : ` (${c.status.replaceAll("_", " ")})`;
    const others = c.indices.filter((index) => index !== c.index);
    const named = others.slice(0, TWINS).map((index) => `#${index}`).join(", ");
    const twins = others.length > TWINS ? `${named} and ${others.length - TWINS} more` : named;
    const values = INDEX.verifiers.map((name, k) => (
      el("div", {}, el("dt", {}, name), el("dd", {}, fixed(c.scores[k], IN_DETAIL)))));
    const said = c.critiques.length ? [el("h4", {}, c.critiques.length > 1 ? "Critiques" : "Critique")] : [];
    return [
      el("h3", {}, mark(c.correct ? "+" : "-", "answer"), ` Candidate #${c.index}`),
      el("p", {}, "answer ", el("strong", {}, c.answer ?? "none"), ", gold ", el("strong", {}, gold), status),
      ...(twins ? [el("p", { class: "soft" }, `the same as ${twins}`)] : []),
      ...steps(c, colour), el("dl", { class: "values" }, ...values), ...said, ...c.critiques.map(critique)];
  }

  return { el, mark, scoreCell, detail };
})();

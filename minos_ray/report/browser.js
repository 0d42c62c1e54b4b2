// The candidate browser: what is shown, and what the reader does.
(() => {
  const { INDEX, load, grouped, compare, weighed, ranges } = minosData;
  const { el, mark, scoreCell, detail } = minosView;
  const PAGE = 300; // rows of the list in the page at once
  const FIXED = [["index", "no."], ["right", "correct"], ["agreement", "answer"]];
  const ORDERS = { index: "number", right: "correct first", agreement: "agreement of answers" };
  const state = {
    problem: -1, matches: [], all: [], ranges: [], clusters: [], cluster: null, side: "all",
    shown: [], open: null, page: 0, by: INDEX.sort, reversed: false, weight: 0, colour: "",
  };

  const section = document.getElementById("browser");
  const part = (name) => document.getElementById(`browser-${name}`);
  const held = (event) => event.altKey || event.ctrlKey || event.metaKey;
  const say = (text) => { part("status").textContent = text; };

  function arrange() {
    state.all.sort(compare(state.by, state.clusters));
    state.all.forEach((c, place) => { c.rank = place + 1; });
    state.shown = state.all.filter((c) => (state.side === "all" || c.correct === (state.side === "right"))
      && (state.cluster === null || c.cluster === state.cluster));
    if (state.reversed) state.shown.reverse();
    if (!state.shown.includes(state.open)) state.open = state.shown[0] || null;
    state.page = Math.floor(Math.max(0, state.shown.indexOf(state.open)) / PAGE);
  }

  // Problems and answers

  function showProblems() {
    const words = part("search").value.trim().toLowerCase();
    state.matches = INDEX.problems.map((p, place) => ({ ...p, place }))
      .filter((p) => [p.id, p.question, p.gold].some((text) => text.toLowerCase().includes(words)));
    part("problem").replaceChildren(...state.matches.map((p) => {
      const label = `${p.id} · ${p.right} of ${p.candidates} correct · ${p.question.slice(0, 140)}`;
      return el("option", { value: p.place }, label);
    }));
    showPlace();
    part("matches").textContent = words ? `${state.matches.length} of ${INDEX.problems.length} match` : "";
  }

  // A button that can do no more hands the focus to the other one.
  function showPlace() {
    const at = state.matches.findIndex((p) => p.place === state.problem);
    part("problem").value = String(state.problem);
    const [previous, next, focused] = [part("previous"), part("next"), document.activeElement];
    previous.disabled = at <= 0;
    next.disabled = at < 0 || at + 1 >= state.matches.length;
    if (focused === previous && previous.disabled) next.focus();
    if (focused === next && next.disabled) previous.focus();
  }

  function showClusters() {
    part("clusters").replaceChildren(...weighed(state.clusters, state.all, state.weight).map(clusterRow));
  }

  function clusterRow(group) {
    const on = group.number === state.cluster;
    const others = group.written.length > 1 ? `also written ${group.written.slice(1, 6).join(", ")}` : null;
    const act = { type: "button", "data-cluster": group.number, "aria-pressed": on, title: others };
    const bar = el("span", { class: "bar" });
    bar.style.width = `${(4 * group.share).toFixed(2)}rem`;
    return el("tr", { class: on ? "on" : "" },
      el("td", {}, mark(group.right ? "+" : "-", "answer")),
      el("td", { class: "answer" }, el("button", act, group.answer)),
      el("td", { class: "r" }, String(group.count)),
      el("td", { class: "share" }, ...(group.share === null ? ["–"] : [bar, ` ${(100 * group.share).toFixed(1)} %`])),
      ...(INDEX.verifiers.length ? [el("td", { class: "r" }, group.weight.toFixed(2))] : []),
      el("td", { class: "soft" }, group.wins));
  }

  // The list

  function showHead() {
    const heads = [...FIXED, ...INDEX.verifiers.map((name) => [name, name])].map(([by, label]) => {
      const falls = (by !== "index") !== state.reversed;
      const [sort, arrow] = by !== state.by ? [null, ""] : falls ? ["descending", " ▾"] : ["ascending", " ▴"];
      const style = INDEX.verifiers.includes(by) ? "r" : "";
      const button = el("button", { type: "button", "data-by": by }, label + arrow);
      return el("th", { scope: "col", class: style, "aria-sort": sort }, button);
    });
    part("head").replaceChildren(el("th", { class: "r", scope: "col" }, "rank"), ...heads);
  }

  function listRow(c) {
    const open = el("button", { type: "button", "aria-label": `candidate ${c.index}` }, `#${c.index}`);
    const row = el("tr", {},
      el("td", { class: "r soft" }, String(c.rank)),
      el("td", {}, open),
      el("td", {}, mark(c.correct ? "+" : "-", "")),
      el("td", { class: "answer", title: c.answer }, c.answer ?? "no answer"),
      ...c.scores.map((score, k) => scoreCell(score, state.ranges[k])));
    return highlight(row, c === state.open);
  }

  function highlight(row, on) {
    row.className = on ? "on" : "";
    row.querySelector("button").setAttribute("aria-current", on);
    return row;
  }

  function showRows() {
    const start = state.page * PAGE;
    part("rows").replaceChildren(...state.shown.slice(start, start + PAGE).map(listRow));
    part("pages").hidden = state.shown.length <= PAGE;
    part("range").textContent = `${start + 1}–${Math.min(start + PAGE, state.shown.length)} of ${state.shown.length}`;
    part("back").disabled = start === 0;
    part("forth").disabled = start + PAGE >= state.shown.length;
  }

  function showFilters() {
    for (const button of part("sides").children) button.setAttribute("aria-pressed", button.dataset.side === state.side);
    const group = state.clusters.find((g) => g.number === state.cluster);
    part("clear").hidden = !group;
    part("clear").textContent = group ? `answer: ${group.answer} ✕` : "";
    const how = `by ${ORDERS[state.by] || state.by}${state.reversed ? ", reversed" : ""}`;
    say(`${state.shown.length} of ${state.all.length} candidates, ${how}`);
  }

  // One candidate

  function showDetail() {
    const nothing = () => [el("p", { class: "soft" }, "No candidate passes the filters.")];
    const { gold } = INDEX.problems[state.problem];
    part("detail").replaceChildren(...(state.open ? detail(state.open, gold, state.colour) : nothing()));
    part("detail").scrollTop = 0;
  }

  // What the reader does

  function go(problem) {
    openProblem(problem).catch((error) => say(`The candidates could not be unpacked: ${error.message}`));
  }

  async function openProblem(problem) {
    state.problem = problem;
    showPlace();
    const all = await load(problem);
    if (state.problem !== problem) return; // another one was opened meanwhile
    const { question, gold, right, candidates: count } = INDEX.problems[problem];
    part("question").textContent = question;
    part("gold").replaceChildren("gold answer ", el("strong", {}, gold), `, ${right} of ${count} candidates correct`);
    change({ all, ranges: ranges(all), clusters: grouped(all), cluster: null, open: null });
  }

  function change(values) {
    Object.assign(state, values);
    arrange();
    for (const show of [showClusters, showHead, showRows, showFilters, showDetail]) show();
    part("list").scrollTop = 0;
  }

  function move(way) {
    const next = state.matches[state.matches.findIndex((p) => p.place === state.problem) + way];
    if (next) go(next.place);
  }

  function search() {
    showProblems();
    const { matches } = state;
    if (matches.length && !matches.some((p) => p.place === state.problem)) go(matches[0].place);
  }

  function sortBy(by) {
    const at = INDEX.verifiers.indexOf(by);
    if (at >= 0) part("weight").value = state.weight = at;
    if (INDEX.steps_by.includes(by)) part("colour").value = state.colour = by;
    change({ by, reversed: by === state.by && !state.reversed });
    part("head").querySelector(`[data-by="${by}"]`).focus({ preventScroll: true });
  }

  function pickCluster(number) {
    change({ cluster: number === state.cluster ? null : number });
    part("clusters").querySelector(`[data-cluster="${number}"]`).focus({ preventScroll: true });
  }

  function openCandidate(place) {
    if (!state.shown[place]) return;
    const before = state.shown.indexOf(state.open) - state.page * PAGE;
    const rows = part("rows").children;
    const page = Math.floor(place / PAGE);
    state.open = state.shown[place];
    if (page === state.page) {
      if (rows[before]) highlight(rows[before], false);
      highlight(rows[place - page * PAGE], true);
    } else {
      state.page = page;
      showRows();
    }
    showDetail();
    rows[place - page * PAGE].querySelector("button").focus();
  }

  function onListKey(event) {
    const at = state.shown.indexOf(state.open);
    const goals = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: state.shown.length - 1 };
    if (!(event.key in goals) || held(event)) return;
    event.preventDefault();
    openCandidate(goals[event.key]);
  }

  function inView() {
    const { top, bottom } = section.getBoundingClientRect();
    return top < window.innerHeight && bottom > 0;
  }

  function onKey(event) {
    const { target } = event;
    if (held(event) || ["INPUT", "SELECT"].includes(target.tagName) || !(section.contains(target) || inView())) return;
    if (event.key === "n" || event.key === "p") move(event.key === "n" ? 1 : -1);
  }

  function colourBy(name) {
    state.colour = name;
    part("scale").hidden = !name;
    showDetail();
  }

  function listen() {
    const on = (name, type, act) => part(name).addEventListener(type, act);
    const picked = (name, key, act) => on(name, "click", ({ target: { dataset } }) => key in dataset && act(dataset[key]));
    on("search", "input", search);
    on("problem", "change", ({ target }) => go(Number(target.value)));
    on("previous", "click", () => move(-1));
    on("next", "click", () => move(1));
    picked("sides", "side", (side) => change({ side }));
    picked("head", "by", sortBy);
    picked("clusters", "cluster", (number) => pickCluster(Number(number)));
    on("clear", "click", () => change({ cluster: null }));
    on("weight", "change", ({ target }) => { state.weight = Number(target.value); showClusters(); });
    on("colour", "change", ({ target }) => colourBy(target.value));
    on("rows", "click", ({ target }) => openCandidate(state.page * PAGE + target.closest("tr").sectionRowIndex));
    on("list", "keydown", onListKey);
    on("back", "click", () => openCandidate((state.page - 1) * PAGE));
    on("forth", "click", () => openCandidate((state.page + 1) * PAGE));
    document.addEventListener("keydown", onKey);
  }

  function choices() {
    part("weight").replaceChildren(...INDEX.verifiers.map((name, k) => el("option", { value: k }, name)));
    const names = [...INDEX.steps_by, ""];
    part("colour").replaceChildren(...names.map((name) => el("option", { value: name }, name || "nothing")));
    part("weight").value = state.weight = Math.max(0, INDEX.verifiers.indexOf(state.by));
    part("colour").value = state.colour = INDEX.steps_by.includes(state.by) ? state.by : INDEX.steps_by[0] || "";
    for (const node of section.querySelectorAll("[data-weights]")) node.hidden = !INDEX.verifiers.length;
    for (const node of section.querySelectorAll("[data-steps]")) node.hidden = !INDEX.steps_by.length;
  }

  // First a problem that has both correct and wrong candidates: there is something to see.
  function start() {
    for (const node of document.querySelectorAll("[data-needs-script]")) node.hidden = false;
    if (!("DecompressionStream" in window)) {
      section.replaceChildren(part("title"), el("p", {}, "This browser cannot unpack the candidates: "
        + "it lacks DecompressionStream, which Chrome has from version 80, Firefox from 113 and Safari from 16.4 on."));
      return;
    }
    choices();
    listen();
    showProblems();
    go(Math.max(0, INDEX.problems.findIndex((p) => p.right > 0 && p.right < p.candidates)));
  }

  start();
})();

// What the candidate browser knows: problems and their candidates, unpacked from script elements of this page.
"use strict";
const minosData = (() => {
  const INDEX = JSON.parse(document.getElementById("browser-index").textContent);
  const CHUNKS = document.querySelectorAll("script[data-chunk]");
  const KEPT = 4; // unpacked problems in memory
  const TIE = 1e-9; // as the evaluation has it: sums in another order differ by less than this share
  const natural = new Intl.Collator("en", { numeric: true });
  const unpacked = new Map();

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  async function load(problem) {
    if (!unpacked.has(problem)) {
      unpacked.set(problem, candidates(await unpack(CHUNKS[problem].textContent)));
      if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    }
    return unpacked.get(problem);
  }

  function candidates(chunk) {
    const text = (place) => (place < 0 ? null : chunk.texts[place]);
    return chunk.indices.flatMap((indices, row) => {
      const content = {
        indices,
        answer: text(chunk.answers[row]),
        cluster: chunk.clusters[row],
        correct: chunk.correct[row] === 1,
        status: text(chunk.statuses[row]),
        steps: chunk.steps[row].map(text),
        labels: chunk.labels[row],
        errors: chunk.errors[row].map(text),
        scores: chunk.scores.map((column) => (column[row] === null ? null : Math.fround(column[row]))),
        byStep: chunk.step_scores.map((column) => column[row].map((s) => (s === null ? null : s / 1000))),
        critiques: (chunk.critiques[row] || []).map(([critic, agrees, status, words]) => (
          { critic: text(critic), agrees: agrees === 1, status: text(status), text: text(words) })),
      };
      return indices.map((index) => ({ ...content, index, rank: 0 }));
    });
  }

  // Clusters of answers, the most frequent first; those without an answer do not vote and stand last.
  function grouped(all) {
    const found = new Map();
    for (const c of all) {
      const group = found.get(c.cluster) || { number: c.cluster, count: 0, right: c.correct, ways: new Map() };
      group.count += 1;
      if (c.answer !== null) group.ways.set(c.answer, (group.ways.get(c.answer) || 0) + 1);
      found.set(c.cluster, group);
    }
    for (const group of found.values()) {
      group.written = [...group.ways].sort((a, b) => b[1] - a[1]).map(([answer]) => answer);
      group.answer = group.written[0] ?? "no answer";
    }
    const silent = (group) => Number(group.number < 0);
    return [...found.values()].sort((a, b) => silent(a) - silent(b) || b.count - a.count || a.number - b.number);
  }

  // How to sort: best first; ties by the number of the candidate.
  function compare(by, clusters) {
    const places = new Map(clusters.map((group, place) => [group.number, place]));
    const at = INDEX.verifiers.indexOf(by);
    const rules = {
      index: () => 0,
      right: (a, b) => b.correct - a.correct,
      agreement: (a, b) => places.get(a.cluster) - places.get(b.cluster),
    };
    const rule = at < 0 ? rules[by] : (a, b) => (b.scores[at] ?? -1) - (a.scores[at] ?? -1);
    return (a, b) => rule(a, b) || natural.compare(a.index, b.index);
  }

  // Clusters with their summed scores by one verifier, their shares of the vote (null: does not vote), and what they win.
  // Where all weights are zero the counts decide, as in the evaluation. Without a verifier only the vote is there.
  function weighed(clusters, all, verifier) {
    const sum = (number) => all.reduce((s, c) => s + (c.cluster === number ? c.scores[verifier] ?? 0 : 0), 0);
    const rows = clusters.map((group) => ({ ...group, weight: sum(group.number) }));
    const voters = rows.filter((group) => group.number >= 0);
    const votes = voters.reduce((s, group) => s + group.count, 0);
    const won = { vote: best(voters, "count") };
    const silent = voters.every((group) => group.weight === 0);
    if (INDEX.verifiers.length) won["weighted vote"] = silent ? won.vote : best(voters, "weight");
    return rows.map((group) => {
      const names = Object.keys(won).filter((name) => won[name].includes(group.number));
      const wins = names.map((name) => (won[name].length > 1 ? `${name} (tie)` : name)).join(", ");
      return { ...group, share: group.number < 0 ? null : group.count / votes, wins };
    });
  }

  // The numbers of the clusters with the largest value.
  function best(clusters, key) {
    const most = Math.max(...clusters.map((group) => group[key]));
    return clusters.filter((group) => group[key] >= most - TIE * Math.abs(most)).map((group) => group.number);
  }

  // Each verifier's lowest and highest score among candidates, null without any.
  function ranges(all) {
    return INDEX.verifiers.map((_, k) => {
      const scores = all.map((c) => c.scores[k]).filter((score) => score !== null);
      return scores.length ? [Math.min(...scores), Math.max(...scores)] : null;
    });
  }

  return { INDEX, load, grouped, compare, weighed, ranges };
})();

"use strict";
// What each head does, how much of the budget it gets, and how well its scores are predicted.

const heads = (() => {
  /** Rows of a table that is stored as a list a column. */
  function rows(columns) {
    const names = Object.keys(columns);
    return (columns[names[0]] ?? []).map((_, i) =>
      Object.fromEntries(names.map((name) => [name, columns[name][i]])),
    );
  }

  /** Pixels of a heat map with so many to a head. */
  const height = (all, head, each) => each * unique(all.map((row) => row[head])).length;

  const chosen = () => data.heads[by("model").value];

  async function draw() {
    const { heads, scorer, allocations } = chosen();
    const all = rows(heads);
    by("empty-heads").hidden = all.length > 0;
    by("of-heads").hidden = !all.length;
    if (!all.length) return;
    const allocation = allocations[Number(by("allocation").value)];
    by("of-slots").hidden = !allocation;
    const shown = all.map((row) => ({ ...row, value: row[by("signal").value] }));
    await show("signals", { heads: shown }, { height: height(shown, "query_head", 18) });
    await show("scorer", { scorer: rows(scorer) });
    if (!allocation) return;
    const kept = slots(allocation);
    await show("slots", { slots: kept }, { height: height(kept, "kv_head", 24) });
  }

  function slots(allocation) {
    const all = rows(allocation.slots);
    const wide = unique(all.map((row) => row.layer)).length > 40;
    const high = unique(all.map((row) => row.kv_head)).length > 8;
    const narrow = by("chart-slots").clientWidth < 500;
    return all.map((row) => ({
      ...row,
      letter: wide || high || narrow ? "" : row.class.slice(0, 1),
      ink: row.share > 1.3 ? "#000" : "#fff",
      href: touch ? null : allocation.record,
    }));
  }

  function choices() {
    const { heads, allocations, signals } = chosen();
    fill(by("signal"), signals.map((signal) => [signal, signal]));
    fill(by("allocation"), allocations.map((each, i) => [i, each.title]));
    const layer = new Map(rows(heads).map((row) => [`${row.layer}/${row.kv_head}`, row.class]));
    const counts = unique(layer.values()).sort().map(
      (name) => `${[...layer.values()].filter((each) => each === name).length} ${name}`,
    );
    by("classes").textContent = counts.length ? `KV heads by class: ${counts.join(", ")}.` : "";
  }

  function update() {
    choices();
    return draw();
  }

  /** Draw, and draw again with every choice. */
  async function start() {
    for (const id of ["signal", "allocation"]) by(id).addEventListener("change", draw);
    curves.onModel(update);
    await update();
  }
  return { start };
})();

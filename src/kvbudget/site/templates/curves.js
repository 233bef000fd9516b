"use strict";
// Quality, memory and speed: the filters, and the curves that they choose.

const data = JSON.parse(document.getElementById("data").textContent);
const specs = JSON.parse(document.getElementById("charts").textContent);
const touch = matchMedia("(hover: none)").matches;
const by = (id) => document.getElementById(id);
const unique = (values) => [...new Set(values)];

/** Options of a select: [value, text] pairs; what was chosen stays where it can, or else it is `best`. */
function fill(select, options, best = options[0]?.[0]) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = options.some(([value]) => String(value) === before) ? before : best;
  select.disabled = options.length < 2;
}

/** An element with attributes and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Show data in the chart of a name: {name of the data: rows}, {name of a parameter: value}, one of
    which is its height. The chart is made when it is first shown, as one without data has no scales. */
const views = {};
async function show(name, sets, parameters = {}) {
  if (!(name in views)) {
    const spec = structuredClone(specs[name]);
    spec.datasets = sets;
    for (const each of spec.params ?? []) each.value = parameters[each.name];
    spec.height = parameters.height ?? spec.height;
    const options = { renderer: "svg", actions: false, loader: { target: "_blank" } };
    views[name] = vegaEmbed(by(`chart-${name}`), spec, options).then((result) => result.view);
    await views[name];
    return;
  }
  const view = await views[name];
  for (const [data, rows] of Object.entries(sets)) view.data(data, rows);
  for (const [parameter, value] of Object.entries(parameters)) view.signal(parameter, value);
  await view.runAsync();
}

const number = (value) => {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
};

const curves = (() => {
  const SECTIONS = ["quality", "memory", "speed"];
  const { cells, values, metrics, methods, budgets } = data.curves;
  const on = new Set(Object.keys(methods).filter((method) => methods[method].main));
  const measured = {}; // metric → number of the cell → its value, interval and seeds
  for (const [cell, metric, ...rest] of values) (measured[metric] ??= {})[cell] = rest;
  const isFull = (cell) => methods[cell.method].full;
  const overLength = () => by("over").value === "length";

  /** Cells of the model and task that are chosen, with their numbers. */
  function here() {
    return cells
      .map((cell, index) => ({ ...cell, index }))
      .filter((cell) => cell.model === by("model").value && cell.task === by("task").value);
  }

  /** Cells that stand in one chart. */
  function charted() {
    const at = by("at").value;
    const stands = overLength()
      ? (cell) => isFull(cell) || cell.budget === at
      : (cell) => cell.length === Number(at);
    return here().filter((cell) => on.has(cell.method) && stands(cell));
  }

  function point(cell, metric) {
    const [value, low, high, seedLow, seedHigh] = measured[metric][cell.index];
    const look = methods[cell.method];
    const seeds = seedLow === null ? "" : `; over seeds ${number(seedLow)} to ${number(seedHigh)}`;
    return {
      method: cell.method,
      x: overLength() ? cell.length : cell.mib,
      value,
      low: low ?? value,
      high: high ?? value,
      colour: look.colour,
      shape: look.shape,
      fill: cell.all_kept ? "white" : look.colour,
      dash: [6, 4],
      href: touch ? null : cell.records[0],
      title: look.title,
      budget: isFull(cell) ? "everything" : budgets[cell.budget] + (cell.all_kept ? ", all kept" : ""),
      said: number(value),
      interval: (low === null ? "–" : `${number(low)} to ${number(high)}`) + seeds,
      bytes: `${number(cell.mib)} MiB`,
      tokens: `${(100 * cell.kept).toFixed(0)}%`,
      bits: cell.bits,
      counts: `${cell.samples} samples, ${cell.contexts} contexts`,
      records: cell.records,
    };
  }

  /** What guessing among the needles reaches, as a level. */
  function chance(shown) {
    const known = shown.map((cell) => cell.chance).filter((each) => each !== null);
    if (!known.length) return [];
    const value = known.reduce((sum, each) => sum + each, 0) / known.length;
    const text = { budget: "–", interval: "–", bytes: "–", tokens: "–", bits: "–", counts: "–" };
    const level = { value, low: value, high: value, colour: "#767676", dash: [2, 3], href: null };
    return [{ ...text, ...level, title: "chance", said: number(value) }];
  }

  function bounds(rows, metric) {
    if (metrics[metric].share) return [0, 1];
    const most = Math.max(...rows.map((row) => row.high));
    const least = Math.min(...rows.map((row) => row.low));
    return metrics[metric].section === "quality"
      ? [least - 0.05 * (most - least), most + 0.05 * (most - least)]
      : [0, 1.05 * most];
  }

  function table(rows, metric) {
    const heads = ["method", overLength() ? "length" : "budget", metrics[metric].label];
    heads.push("95% interval", "planned", "tokens kept", "bits", "record");
    const body = rows.map((row) => {
      const links = row.records.flatMap((record, i) => {
        const link = element("a", { href: record, target: "_blank" }, i ? String(i + 1) : "record");
        return i ? [" ", link] : [link];
      });
      const place = overLength() ? row.x.toLocaleString("en") : row.budget;
      const texts = [row.title, place, row.said, row.interval, row.bytes, row.tokens, row.bits];
      const fields = texts.map((text) => element("td", {}, text));
      return element("tr", {}, ...fields, element("td", {}, ...links));
    });
    const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
    return [element("thead", {}, head), element("tbody", {}, ...body)];
  }

  async function draw(section) {
    const metric = by(`metric-${section}`).value;
    const shown = metric ? charted().filter((cell) => cell.index in measured[metric]) : [];
    const order = Object.keys(methods);
    const rank = (row) => order.indexOf(row.method);
    const rows = shown.map((cell) => point(cell, metric)).sort((a, b) => rank(a) - rank(b) || a.x - b.x);
    by(`empty-${section}`).hidden = rows.length > 0;
    for (const part of [by(`chart-${section}`).parentElement, by(`table-${section}`).closest("details")])
      part.hidden = !rows.length;
    if (!rows.length) return;
    const level = (row) => !overLength() && methods[row.method].full;
    const guessed = ["score", "choice"].includes(metric) ? chance(shown) : [];
    const points = rows.filter((row) => !level(row));
    const drawn = unique(points.map((row) => row.method));
    for (const row of points) row.aside = 4 * (drawn.indexOf(row.method) - (drawn.length - 1) / 2);
    const levels = rows.filter(level).concat(guessed);
    const [low, high] = bounds(rows.concat(guessed), metric);
    const title = metrics[metric].label;
    await show(section, { points, levels }, { title, low, high });
    by(`x-${section}`).textContent = overLength() ? "prompt (tokens)" : "budget (MiB)";
    by(`table-${section}`).replaceChildren(...table(rows, metric));
  }

  /** What can be chosen follows from what has been. */
  function choices() {
    const { models, tasks } = data.curves;
    fill(by("model"), Object.entries(models));
    const ofModel = cells.filter((cell) => cell.model === by("model").value);
    fill(by("task"), Object.entries(tasks).filter(([key]) => ofModel.some((cell) => cell.task === key)));
    const evicting = here().filter((cell) => !isFull(cell));
    const lengths = unique(here().map((cell) => cell.length)).sort((a, b) => a - b);
    const named = Object.entries(budgets).filter(([key]) => evicting.some((cell) => cell.budget === key));
    by("at-label").textContent = overLength() ? "at a budget of" : "at a length of";
    const places = overLength()
      ? named
      : lengths.map((each) => [each, `${each.toLocaleString("en")} tokens`]);
    const axis = overLength() ? "budget" : "length";
    const measurements = ([key]) => evicting.filter((cell) => cell[axis] === key).length;
    fill(by("at"), places, [...places].sort((a, b) => measurements(b) - measurements(a))[0]?.[0]);
    for (const section of SECTIONS) {
      const known = Object.entries(metrics).filter(
        ([name, each]) => each.section === section && here().some((cell) => cell.index in measured[name]),
      );
      fill(by(`metric-${section}`), known.map(([name, each]) => [name, each.label]));
    }
  }

  function chips() {
    const made = Object.entries(methods).map(([method, look]) => {
      const mark = `<svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">
        <path d="${vegaSymbol(look.shape)}" fill="${look.colour}"></path></svg>`;
      const chip = element("button", { type: "button", "aria-pressed": on.has(method) });
      chip.innerHTML = mark;
      chip.append(look.title);
      chip.addEventListener("click", () => {
        if (!on.delete(method)) on.add(method);
        chip.setAttribute("aria-pressed", on.has(method));
        update();
      });
      return chip;
    });
    by("chips").replaceChildren(...made);
  }

  const changed = []; // what else follows from the model
  async function update() {
    choices();
    await Promise.all(SECTIONS.map(draw));
  }

  /** Draw, and draw again with every choice. */
  async function start() {
    chips();
    choices();
    for (const select of document.querySelectorAll("#filters select, select[id^=metric]"))
      select.addEventListener("change", update);
    by("model").addEventListener("change", () => changed.forEach((each) => each()));
    await update();
  }
  return { start, onModel: (each) => changed.push(each) };
})();

/** The outline of a mark of the charts, in a field of 16. */
function vegaSymbol(shape) {
  const outlines = {
    circle: "M-5,0A5,5 0 1 1 5,0A5,5 0 1 1 -5,0Z",
    square: "M-5,-5H5V5H-5Z",
    diamond: "M0,-6L5,0L0,6L-5,0Z",
    cross: "M-6,-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
    "triangle-up": "M0,-6L6,5H-6Z",
    "triangle-down": "M0,6L6,-5H-6Z",
    "triangle-left": "M-6,0L5,-6V6Z",
    "triangle-right": "M6,0L-5,-6V6Z",
  };
  const scaled = (path) => path.replace(/-?[\d.]+/g, (each) => String(6 * Number(each)));
  return outlines[shape] ?? scaled(shape);
}

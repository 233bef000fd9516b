"use strict";
// One context as text: the tokens that a method keeps are shaded, by the heads that are chosen.

const text = (() => {
  const shade = data.shade;
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--kept");
  let method = shade?.first;
  let spans = [];
  let shares = [];
  let strips = [];
  let decoded = []; // by method, layer and head, of each token whether it is kept

  /** Which tokens a head keeps, from one bit a token. */
  function bits(coded) {
    const bytes = Uint8Array.from(atob(coded), (each) => each.charCodeAt(0));
    return shade.tokens.map((_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
  }

  /** Of each token, the share of the chosen heads that keep it. */
  function kept(number) {
    const all = decoded[number];
    const layers = by("layer").value === "" ? all : [all[Number(by("layer").value)]];
    const head = by("head").value;
    const chosen = layers.flatMap((layer) => (head === "" ? layer : [layer[Number(head)]]));
    const sums = shade.tokens.map(() => 0);
    for (const each of chosen) each.forEach((bit, i) => (sums[i] += bit));
    return { shares: sums.map((sum) => sum / chosen.length), heads: chosen.length };
  }

  const marked = (i) => shade.marked.some(([first, end]) => first <= i && i < end);

  function paint(canvas, values) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    values.forEach((share, i) => {
      context.fillStyle = `rgba(${colour}, ${share})`;
      context.fillRect(i, 0, 1, canvas.height);
    });
    context.fillStyle = "#0072B2";
    for (const [first, end] of shade.marked) context.fillRect(first, 14, Math.max(end - first, 4), 4);
  }

  function draw() {
    const all = shade.methods.map((_, number) => kept(number));
    strips.forEach((strip, number) => {
      paint(strip.querySelector("canvas"), all[number].shares);
      strip.setAttribute("aria-pressed", number === method);
      const mean = all[number].shares.reduce((sum, each) => sum + each, 0) / spans.length;
      strip.querySelector("small").textContent = ` ${(100 * mean).toFixed(0)}%`;
    });
    shares = all[method];
    spans.forEach((span, i) => {
      const share = shares.shares[i];
      span.style.background = share ? `rgba(${colour}, ${0.12 + 0.78 * share})` : "";
      span.classList.toggle("evicted", !share);
    });
  }

  function say(span) {
    const i = spans.indexOf(span);
    if (i < 0) return;
    const count = Math.round(shares.shares[i] * shares.heads);
    const heads = shares.heads === 1 ? (count ? "kept" : "evicted") : `kept by ${count} of ${shares.heads} heads`;
    by("token").textContent = `Token ${i.toLocaleString("en")}, “${shade.tokens[i].trim()}”: ${heads}.`;
  }

  /** Write the text, and shade it again with every choice. */
  function start() {
    by("empty-text").hidden = Boolean(shade);
    by("of-text").hidden = !shade;
    if (!shade) return;
    decoded = shade.methods.map((each) => each.kept.map((layer) => layer.map(bits)));
    by("about-text").textContent = shade.about;
    by("question").textContent = shade.question;
    spans = shade.tokens.map((token, i) => element("span", marked(i) ? { class: "marked" } : {}, token));
    by("text").replaceChildren(...spans);
    strips = shade.methods.map((each, number) => {
      const canvas = element("canvas", { width: shade.tokens.length, height: 18, "aria-hidden": "true" });
      const strip = element("button", { type: "button" }, element("span", {}, each.title, element("small")), canvas);
      strip.addEventListener("click", () => {
        method = number;
        draw();
      });
      return strip;
    });
    by("strips").replaceChildren(...strips);
    fill(by("layer"), [["", "all"], ...shade.layers.map((layer, i) => [i, layer])]);
    fill(by("head"), [["", "all"], ...shade.methods[0].kept[0].map((_, i) => [i, i])]);
    for (const id of ["layer", "head"]) by(id).addEventListener("change", draw);
    for (const event of ["mouseover", "click"])
      by("text").addEventListener(event, (happened) => say(happened.target));
    draw();
  }
  return { start };
})();

(async () => {
  text.start();
  await curves.start();
  await heads.start();
  document.body.dataset.ready = "yes";
})();

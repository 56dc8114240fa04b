// The browser of latents. Text from corpora and models enters the page only as text nodes and
// attribute values, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("browser-data").textContent);
  const root = document.getElementById("browser");
  const names = data.variants.map((variant) => variant.name);
  const anyWindows = data.places.some((place) =>
    Object.values(place.cells).some((cell) => cell.latents.some((one) => one.windows)));
  for (const place of data.places) {
    for (const cell of Object.values(place.cells)) cell.latents.forEach((one, i) => { one.index = i; });
  }
  const state = {
    place: data.places[0], variants: [names[0], data.null], metric: data.metrics[0],
    column: "next_token_auroc", down: true, text: "", atMost: null, withWindows: anyWindows, chosen: [null, null],
  };

  /** An element; children that are no elements become text. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  function written(value, form) {
    if (value === null || value === undefined) return "\u2013";
    if (form === "percent") return `${(100 * value).toFixed(2)} %`;
    if (form === "q") return value < 0.001 ? "<0.001" : value.toFixed(3);
    const text = form === "count" ? String(value) : value.toFixed(3);
    return text.replace("-", "\u2212");
  }

  /** Whose latents q compares with: those of the variant at the other side, or of all nulls. */
  function against(side) {
    const other = state.variants[1 - side];
    return other in state.place.cells[state.variants[side]].q[state.metric.name] ? other : data.all;
  }

  /** Whether latents of a side have q: those of nulls have none. */
  function isRanked(side) {
    return state.metric !== undefined && state.metric.name in state.place.cells[state.variants[side]].q;
  }

  function columns(side) {
    if (!isRanked(side)) return data.columns;
    return [...data.columns, ["q", "q", `false-discovery rate among latents of ${against(side)}, by ${state.metric.title}`, "q"]];
  }

  function value(side, latent, key) {
    if (key !== "q") return latent.numbers[data.columns.findIndex((column) => column[0] === key)];
    if (!isRanked(side)) return null;
    return state.place.cells[state.variants[side]].q[state.metric.name][against(side)]?.[latent.index];
  }

  /** All text of a latent, to search in. */
  function textOf(latent) {
    latent.text ??= [
      latent.explanation, latent.peak?.[0],
      ...(latent.windows || []).map((w) => w.map((part) => (Array.isArray(part) ? part[0] : part)).join("")),
      ...[...(latent.promoted || []), ...(latent.suppressed || [])].map((pair) => pair[0]),
    ].filter(Boolean).join("\n").toLowerCase();
    return latent.text;
  }

  function shown(side) {
    const sign = state.down ? -1 : 1;
    return state.place.cells[state.variants[side]].latents
      .filter((one) => (one.windows || !state.withWindows) && textOf(one).includes(state.text))
      .filter((one) => state.atMost === null || !isRanked(side) || (value(side, one, "q") ?? Infinity) <= state.atMost)
      .map((one) => [value(side, one, state.column), one])
      // Missing numbers come last in either direction.
      .sort(([a, one], [b, other]) =>
        (a == null) - (b == null) || sign * ((a ?? 0) - (b ?? 0)) || one.numbers[0] - other.numbers[0])
      .map(([, one]) => one);
  }

  function head(key, title, hint) {
    const isSorted = state.column === key;
    const sort = isSorted ? (state.down ? "descending" : "ascending") : "none";
    const onClick = (event) => {
      // Large numbers first, except for names and errors.
      Object.assign(state, isSorted ? { down: !state.down } : { column: key, down: key !== "latent" && key !== "q" });
      draw(`[data-side="${event.currentTarget.closest("[data-side]").dataset.side}"] [data-key="${key}"]`);
    };
    const arrow = isSorted ? (state.down ? " \u25be" : " \u25b4") : "";
    return make("th", { scope: "col", class: "n", "aria-sort": sort },
      make("button", { type: "button", "data-key": key, title: hint, click: onClick }, title + arrow));
  }

  function row(side, latent) {
    const isChosen = state.chosen[side] === latent;
    const choose = () => {
      state.chosen[side] = latent;
      draw(`[data-side="${side}"] [data-latent="${latent.numbers[0]}"]`);
    };
    const [first, ...rest] = columns(side);
    const button = make("button", { type: "button", "data-latent": latent.numbers[0], "aria-pressed": String(isChosen) },
      written(value(side, latent, first[0]), first[3]));
    return make("tr", { class: isChosen ? "chosen" : "", click: choose },
      make("th", { scope: "row", class: "n" }, button),
      ...rest.map((column) => make("td", { class: "n" }, written(value(side, latent, column[0]), column[3]))));
  }

  function effects(verb, pairs) {
    const tokens = pairs.flatMap(([token, effect]) =>
      [" ", make("code", { title: `${effect > 0 ? "+" : "\u2212"}${Math.abs(effect).toFixed(1)} sd` }, token)]);
    return make("p", { class: "effects" }, verb, ...tokens);
  }

  function card(side, latent) {
    if (!latent) return make("p", { class: "note" }, "No latents: none passed the filter, or none match the search.");
    const found = make("article", { class: "latent" }, make("h4", {}, `Latent ${latent.numbers[0]}`));
    const facts = [];
    if (latent.peak) facts.push(`peak token \u201c${latent.peak[0]}\u201d ${(100 * latent.peak[1]).toFixed(0)} %`);
    if (latent.max) facts.push(`max ${latent.max}`);
    found.append(make("p", { class: "effects" }, facts.join(" \u00b7 ")));
    if (!latent.windows) {
      found.append(make("p", { class: "note" }, "Not sampled: no judge scored it, and no windows were kept."));
      return found;
    }
    const source = latent.source === undefined ? "" : ` (written for latent ${latent.source})`;
    found.append(make("p", { class: "explanation" }, latent.explanation === undefined ? "no explanation" : latent.explanation + source));
    if (latent.promoted.length) found.append(effects("promotes", latent.promoted), effects("suppresses", latent.suppressed));
    else {
      const why = state.place.cells[state.variants[side]].no_effects;
      if (why) found.append(make("p", { class: "effects" }, `no effect on the logits: ${why}`));
    }
    found.append(make("ol", { class: "windows" }, ...latent.windows.map((window) =>
      make("li", {}, ...window.map((part) => {
        if (!Array.isArray(part)) return part;
        const mark = make("mark", { title: String(part[1]) }, part[0]);
        mark.style.setProperty("--a", (part[1] / latent.max).toFixed(2));
        return mark;
      })))));
    return found;
  }

  function choice(label, options, current, onChange) {
    const select = make("select", { change: (event) => { onChange(event.target.selectedIndex); draw(); } },
      ...options.map((option) => make("option", { selected: option === current }, option)));
    return make("label", {}, label, select);
  }

  function side(index) {
    const latents = shown(index);
    if (!latents.includes(state.chosen[index])) state.chosen[index] = latents[0] || null;
    const name = state.variants[index];
    const swatch = make("span", { class: "swatch", "data-colour": data.variants[names.indexOf(name)].colour });
    const all = state.place.cells[name].latents.length;
    const table = make("table", { class: "wide tight" },
      make("thead", {}, make("tr", {}, ...columns(index).map((column) => head(...column)))),
      make("tbody", {}, ...latents.map((latent) => row(index, latent))));
    const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Latents of ${name}`, keydown: arrows }, table);
    return make("section", { class: "side", "data-side": index }, make("div", { class: "of" }, swatch,
      choice("Variant ", names, name, (i) => { state.variants[index] = names[i]; }),
      make("span", { class: "note", role: "status" }, `${latents.length} of ${all} latents`)), scroll, card(index, state.chosen[index]));
  }

  /** Arrow keys go from row to row. */
  function arrows(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("tbody tr")?.[step];
    if (!next) return;
    event.preventDefault();
    next.querySelector("button").click();
  }

  const places = data.places.map((place) => place.title);
  const metrics = data.metrics.map((metric) => metric.title);
  const pair = make("div", { class: "pair" });

  function draw(focused) {
    const tops = [...pair.querySelectorAll(".scroll")].map((scroll) => scroll.scrollTop);
    pair.replaceChildren(side(0), side(1));
    pair.querySelectorAll(".scroll").forEach((scroll, i) => { scroll.scrollTop = tops[i] || 0; });
    if (focused) pair.querySelector(focused)?.focus();
  }

  const asked = make("form", { class: "asked", submit: (event) => event.preventDefault() },
    choice("Site ", places, places[0], (i) => { state.place = data.places[i]; }),
    make("label", {}, "Search ", make("input", { type: "search", placeholder: "text, tokens, explanations",
      input: (event) => { state.text = event.target.value.toLowerCase(); draw(); } })),
    ...(metrics.length ? [
      choice("q by ", metrics, metrics[0], (i) => { state.metric = data.metrics[i]; }),
      make("label", {}, "q at most ", make("input", { type: "number", min: "0", max: "1", step: "0.05", name: "q",
        input: (event) => { state.atMost = event.target.value === "" ? null : Number(event.target.value); draw(); } })),
    ] : []),
    ...(anyWindows ? [make("label", {}, make("input", { type: "checkbox", name: "windows", checked: true,
      change: (event) => { state.withWindows = event.target.checked; draw(); } }), " with windows only")] : []));
  root.append(asked, pair);
  draw();
  root.hidden = false;
})();

// The page: what can be moved, and what is drawn. Nothing here computes; numbers.js does.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2f6fd0", "#d9660b", "#1f9254", "#8f52c9", "#cf3b56", "#0d8c99", "#b8409a", "#87653f"];
const RADIUS = 150, FEWEST = 2, MOST = COLOURS.length;
const MATRICES = {
  similarity: { name: "similarity s", label: "s", highest: 1 },
  softmax: { name: "softmax p, row by row", label: "p", highest: 1 },
  ds: { name: "gradient dL/ds  (2)", label: "dL/ds", highest: null },             // null: the largest there is
};

const state = { angles: [], tau: 0.2, lr: 0.2, loss: "nt_xent", anchor: 0, matrix: "similarity" };
let preset = null, running = null;
const held = new Map();                         // pointer (the mouse, a finger) -> the point that it holds

const byId = id => document.getElementById(id);
const name = i => "ABCDEFGH"[i % images()] + (i < images() ? "" : "\u2032");
const images = () => state.angles.length / 2;
const colour = i => COLOURS[i % images()];
const show = (x, digits = 3) => (Math.abs(x) < 0.5 * 10 ** -digits ? 0 : x).toFixed(digits).replace("-", "\u2212");
const significant = (x, digits = 3) => Math.abs(x) < 5e-4 ? show(0) : x.toPrecision(digits).replace("-", "\u2212");

/** An SVG or HTML element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const svg = ["g", "path", "circle", "text", "rect"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------- drawing

function draw() {
  const now = numbers(state);
  drawCircle(now);
  drawFigures(now);
  drawMatrix(now);
  drawAnchor(now);
  byId("numbers").textContent = JSON.stringify({ ...state, numbers: now });              // for tests, and the curious
}

const place = (angle, radius = RADIUS) => [radius * Math.cos(angle), -radius * Math.sin(angle)];   // y points up

function drawCircle({ row, lack, along }) {
  const { angles, anchor } = state, other = otherView(anchor, angles.length);
  byId("chords").replaceChildren(...row.flatMap((p, j) => {
    const weight = j === other ? lack[anchor] : p;                         // (2): they push with p, it pulls with l
    if (j === anchor || weight < 0.004) return [];
    const d = `M${place(angles[anchor])} L${place(angles[j])}`;
    return make("path", { d, class: j === other ? "pull" : "push", opacity: 0.4 + 0.6 * weight,
                          style: `--colour:${colour(j)};stroke-width:${1 + 6 * weight}` });
  }));

  const longest = Math.max(...along.map(Math.abs));
  const scale = 64 / Math.max(longest, 0.02);                              // the faintest forces stay short
  byId("arrows").replaceChildren(...along.flatMap((force, i) => {
    const length = Math.abs(force) * scale, turn = -angles[i] * 180 / Math.PI + (force > 0 ? -90 : 90);
    if (length < 1.5) return [];
    const d = `M0,0 H${length}`, head = `M${length - 1},-5 L${length + 9},0 L${length - 1},5 z`;
    const transform = `translate(${place(angles[i], RADIUS + 19)}) rotate(${turn})`;       // just outside its point
    return make("g", { transform, style: `--colour:${colour(i)}` }, make("path", { d: d + head, class: "casing" }),
                make("path", { d, class: "arrow" }), make("path", { d: head, class: "head" }));
  }));
  byId("longest").textContent = show(longest);

  // Where images lie on top of each other their letters do too: say beside them who is there.
  const crowds = [];
  for (const i of angles.keys()) {
    const near = crowds.find(crowd => dot(unit(angles[crowd[0]]), unit(angles[i])) > Math.cos(0.06));
    near ? near.push(i) : crowds.push([i]);
  }
  byId("names").replaceChildren(...crowds.flatMap(crowd => {
    const letters = [...new Set(crowd.map(i => name(i)[0]))];
    if (letters.length < 2) return [];
    const [x, y] = place(angles[crowd[0]], RADIUS - 28), anchor = x > 30 ? "end" : x < -30 ? "start" : "middle";
    return make("text", { x, y, "text-anchor": anchor }, letters.join(" "));
  }));

  const points = byId("points");
  if (points.children.length !== angles.length)
    points.replaceChildren(...[...angles.keys()].reverse().map(makePoint));
  for (const point of points.children) {
    const i = Number(point.dataset.point), degrees = Math.round(angles[i] * 180 / Math.PI);
    point.setAttribute("transform", `translate(${place(angles[i])})`);
    point.setAttribute("aria-valuenow", ((degrees % 360) + 360) % 360);
    point.classList.toggle("anchor", i === anchor);
  }
}

/** Point i, to be dragged, or focused and moved by arrow keys. View 2 is a larger ring, seen behind its view 1. */
function makePoint(i) {
  const view = i < images() ? 1 : 2;
  const point = make("g", {
    class: `point view${view}`, style: `--colour:${colour(i)}`, "data-point": i, tabindex: 0, role: "slider",
    "aria-label": `image ${name(i)[0]}, view ${view}, angle in degrees`, "aria-valuemin": 0, "aria-valuemax": 359,
    onpointerdown(event) {
      event.preventDefault();
      held.set(event.pointerId, i);
      point.focus({ preventScroll: true });
      choose(i);
    },
    ontouchstart: event => event.preventDefault(),                         // a finger moves the point, not the page
    onfocus: () => choose(i),
    onkeydown(event) {
      const turn = { ArrowLeft: 1, ArrowUp: 1, ArrowRight: -1, ArrowDown: -1 }[event.key];
      if (!turn) return;
      event.preventDefault();
      moveTo(i, state.angles[i] + turn * (event.shiftKey ? 10 : 2) * Math.PI / 180);
    },
  }, make("circle", { r: 21, class: "halo" }),
     make("circle", view === 1 ? { r: 11, class: "dot" } : { r: 13, class: "ring" }), make("text", {}, name(i)));
  return point;
}

function drawFigures({ loss, chance, dtau, alignment, uniformity }) {
  const few = DATA.evenUniformity[images()];
  gauge("loss-gauge", loss / (2 * chance), [0.5]);
  gauge("alignment-gauge", alignment / 4, [0.5]);
  gauge("uniformity-gauge", 1 - uniformity / few, [1 - DATA.floor / few]);
  const texts = {
    "loss-name": state.loss === "nt_xent" ? "loss, NT-Xent" : `loss, InfoNCE of ${name(state.anchor)}`,
    "loss-value": show(loss), "loss-again": show(loss), chance: show(chance), dtau: significant(dtau),
    alignment: show(alignment), uniformity: show(uniformity), floor: show(DATA.floor), "few-floor": show(few),
    images: images(), "images-again": images(), "tau-value": significant(state.tau, 2), "lr-value": significant(state.lr, 2),
  };
  for (const [id, text] of Object.entries(texts)) byId(id).textContent = text;
  byId("tau").value = Math.log(state.tau / 0.02) / Math.log(100);          // 0.02 ... 2, in equal ratios
  byId("lr").value = Math.log(state.lr / 0.01) / Math.log(1000);           // 0.01 ... 10
  byId("loss").value = state.loss;
  byId("fewer").disabled = images() === FEWEST;
  byId("more").disabled = images() === MOST;
}

function gauge(id, filled, ticks) {
  byId(id).replaceChildren(make("i", { style: `width:${100 * Math.min(1, Math.max(0, filled))}%` }),
                           ...ticks.map(at => make("b", { style: `left:${100 * at}%` })));
}

function drawMatrix(now) {
  const n = state.angles.length, cell = 24, at = j => 26 + j * cell, kind = MATRICES[state.matrix];
  const values = now[state.matrix], svg = byId("matrix");
  const top = kind.highest ?? Math.max(1e-9, ...values.flat().map(Math.abs));
  svg.setAttribute("viewBox", `0 0 ${at(n) + 3} ${at(n) + 3}`);
  svg.setAttribute("aria-label", `${kind.name} of all pairs of points, ${n} by ${n}`);
  const cells = values.flatMap((line, i) => line.map((value, j) => {
    if (i === j) return make("rect", { x: at(j), y: at(i), width: cell - 1, height: cell - 1, rx: 3, class: "self" });
    const shade = `rgb(var(${value < 0 ? "--cold" : "--warm"}) / ${Math.min(1, Math.abs(value) / top)})`;
    return make("rect", { x: at(j), y: at(i), width: cell - 1, height: cell - 1, rx: 3, style: `fill:${shade}`,
      onclick: () => choose(i), onpointerenter: () => tell(i, j) });
  }));
  const masks = values.map((_, i) => make("path", { class: "slash", d: `M${at(i) + 6},${at(i) + 17} l11,-11` }));
  const positives = values.map((_, i) => make("rect", { x: at(otherView(i, n)) + 0.5, y: at(i) + 0.5, width: cell - 2,
                                                        height: cell - 2, rx: 3, class: "positive" }));
  const labels = values.flatMap((_, i) => [[12, at(i) + 12], [at(i) + 12, 13]].map(
    ([x, y]) => make("text", { x, y, style: `--colour:${colour(i)}` }, name(i))));
  const row = make("rect", { x: at(0) - 2, y: at(state.anchor) - 2, width: n * cell + 3, height: cell + 3, rx: 5,
                             class: "row" });
  svg.replaceChildren(...cells, ...masks, ...positives, ...labels, row);

  byId("matrix-name").textContent = kind.name;
  tell(state.anchor, otherView(state.anchor, n));
  function tell(i, j) {
    byId("cell").replaceChildren(`${kind.label}(${name(i)}, ${name(j)}) = `, make("b", {}, show(values[i][j])),
      ". Rows: anchors; framed: positives; struck out: the anchor itself, no candidate.");
  }
}

function drawAnchor({ similarity, row, lack }) {
  const { angles, anchor, tau } = state, n = angles.length, other = otherView(anchor, n);
  const ids = [other, ...[...angles.keys()].filter(j => j !== anchor && j !== other)];
  byId("bars").replaceChildren(
    ...["", "softmax"].map(text => make("span", { class: "heading" }, text)),
    ...["s / \u03c4", "p"].map(text => make("span", { class: "heading number" }, text)),
    ...ids.flatMap(j => {
      const style = `--colour:${colour(j)}`, strong = j === other ? " is-positive" : "";
      return [make("span", { class: "who", style }, name(j) + (j === other ? " +" : "")),
        make("span", { class: "track", style }, make("i", { style: `width:${100 * row[j]}%` }),
             make("b", { style: `left:${100 / (n - 1)}%` })),
        make("span", { class: `number${strong}` }, show(similarity[anchor][j] / tau, 2)),
        make("span", { class: `number${strong}` }, show(row[j]))];
    }));
  byId("balance").replaceChildren(
    "The positive pulls with l = 1 \u2212 p\u208a = ", make("b", {}, show(lack[anchor])),
    "; the negatives push with p, together as much. The line: chance.");
  if (byId("anchor").length !== n)
    byId("anchor").replaceChildren(...[...angles.keys()].map(i => make("option", { value: i }, name(i))));
  byId("anchor").value = anchor;
}

// ---------------------------------------------------------------- moving

function change(part) {
  Object.assign(state, part);
  draw();
}

function choose(anchor) {
  if (anchor !== state.anchor) change({ anchor });
}

function moveTo(i, angle) {
  setPreset(null);
  change({ angles: state.angles.map((old, j) => j === i ? angle : old) });
}

function drag(event) {
  if (!held.has(event.pointerId)) return;
  const box = byId("circle").getBoundingClientRect();
  moveTo(held.get(event.pointerId),
         Math.atan2(box.top + box.height / 2 - event.clientY, event.clientX - box.left - box.width / 2));
}

function setPreset(next) {
  preset = next;
  for (const [k, button] of [...byId("presets").children].entries())
    button.setAttribute("aria-pressed", DATA.presets[k] === preset);
  if (preset) byId("look").textContent = preset.look;
}

function arrange(next) {
  held.clear();
  const anew = next === preset && next === DATA.presets[0];                // random once more: other points
  const angles = anew ? next.angles.map(() => 2 * Math.PI * Math.random()) : next.angles;
  setPreset(next);
  change({ angles: [...angles], anchor: 0 });
}

function addImage() {
  const N = images(), angle = 2 * Math.PI * Math.random(), { angles, anchor } = state;
  setPreset(null);
  change({ angles: [...angles.slice(0, N), angle, ...angles.slice(N), angle + 0.3], anchor: anchor + (anchor >= N) });
}

function removeImage() {
  const N = images(), { angles, anchor } = state;
  setPreset(null);
  change({ angles: angles.filter((_, i) => i % N !== N - 1),
           anchor: anchor % N === N - 1 ? 0 : anchor - (anchor >= N) });
}

function run(on) {
  clearInterval(running);
  running = on ? setInterval(() => change({ angles: descend(state, state.lr) }), 40) : null;
  byId("run").textContent = on ? "pause" : "run";
}

// ---------------------------------------------------------------- starting

byId("presets").append(...DATA.presets.map(next => make("button", { onclick: () => arrange(next) }, next.name)));
byId("matrices").append(...Object.entries(MATRICES).map(([key, { label }]) => make("button", {
  "aria-pressed": key === state.matrix,
  onclick(event) {
    for (const button of byId("matrices").children)
      button.setAttribute("aria-pressed", button === event.currentTarget);
    change({ matrix: key });
  } }, label)));
addEventListener("pointermove", drag);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, event => held.delete(event.pointerId));
byId("tau").addEventListener("input", event => change({ tau: 0.02 * 100 ** event.target.value }));
byId("lr").addEventListener("input", event => change({ lr: 0.01 * 1000 ** event.target.value }));
byId("loss").addEventListener("change", event => change({ loss: event.target.value }));
byId("anchor").addEventListener("change", event => change({ anchor: Number(event.target.value) }));
byId("fewer").addEventListener("click", removeImage);
byId("more").addEventListener("click", addImage);
byId("step").addEventListener("click", () => change({ angles: descend(state, state.lr) }));
byId("run").addEventListener("click", () => run(!running));

const worst = Math.max(...DATA.cases.map(({ state, minicl }) => largestDifference(numbers(state), minicl)));
byId("check").className = `check ${worst < 1e-9 ? "good" : "bad"}`;
byId("check").textContent = worst < 1e-9
  ? `\u2713 same numbers as minicl: ${DATA.cases.length} cases, all within ${worst < 1e-10 ? "1e-10" : "1e-9"}`
  : `\u2717 these numbers differ from minicl's, by up to ${worst.toPrecision(2)}`;

// A state to start from may stand in the address: play.html?angles=0,1,2,0.1,1.1,2.1&tau=0.1&loss=info_nce&anchor=2
const asked = new URLSearchParams(location.search);
arrange(DATA.presets.find(({ name }) => name === asked.get("preset")) ?? DATA.presets[0]);
if (asked.has("angles")) { setPreset(null); state.angles = asked.get("angles").split(",").map(Number); }
for (const key of ["tau", "lr", "anchor"]) if (asked.has(key)) state[key] = Number(asked.get(key));
if (asked.has("loss")) state.loss = asked.get("loss");
draw();

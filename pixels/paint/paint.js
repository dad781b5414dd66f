"use strict";
// A map is bytes as the method reads them, 255 = keep, 0 = change. A mask is the same while it is painted, and is turned
// round when it is saved: white = change.
const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const ui = Object.fromEntries(["stage", "photo", "exemplar", "view", "cursor", "coverage", "legend", "size", "soft", "grey",
  "grow", "ramp", "threshold", "placed", "scale", "save", "command", "copy", "undo", "redo", "clear"]
  .map(id => [id, find(id)]));
const [height, width] = data.map, [rows, columns] = data.grid, isMap = data.kind === "edit_map";
const chosen = name => document.querySelector(`input[name=${name}]:checked`).value;
const fround = Math.fround;

let painted = new Uint8Array(height * width).fill(255);
let stroke = null;                 // {before, weight}: of the stroke under way
const past = [], future = [], MOST = Math.max(4, Math.min(40, Math.floor(6e7 / painted.length)));
const place = { x: 0, y: 0 };      // of the exemplar's corner, parts of the frame
let at = [height / 2, width / 2];  // of the brush

// ------------------------------------------------------------------------------------------------- what was painted

function remember() {
  past.push(painted.slice());
  if (past.length > MOST) past.shift();
  future.length = 0;
}

function goBack(from, to) {
  if (!from.length) return;
  to.push(painted);
  painted = from.pop();
  draw();
}

function radius() { return Math.max(0.5, Number(ui.size.value) / 200 * Math.min(height, width)); }

/** One touch of the brush: full within the hard part of its radius, fading to its rim. */
function dab(y, x) {
  const r = radius(), soft = isMap ? Number(ui.soft.value) / 100 : 0;
  const to = chosen("tool") === "erase" ? 255 : isMap ? Number(ui.grey.value) : 0;
  for (let v = Math.max(0, Math.floor(y - r)); v <= Math.min(height - 1, Math.ceil(y + r)); v++)
    for (let u = Math.max(0, Math.floor(x - r)); u <= Math.min(width - 1, Math.ceil(x + r)); u++) {
      const d = Math.hypot(v + 0.5 - y, u + 0.5 - x) / r;
      if (d > 1) continue;
      const weight = soft ? Math.min(1, (1 - d) / soft) : 1, i = v * width + u;
      if (weight <= stroke.weight[i]) continue;
      stroke.weight[i] = weight;
      painted[i] = Math.round(stroke.before[i] * (1 - weight) + to * weight);
    }
}

function line(from, to) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, radius() / 4)));
  for (let k = 1; k <= steps; k++) dab(from[0] + (to[0] - from[0]) * k / steps, from[1] + (to[1] - from[1]) * k / steps);
}

function beginStroke() {
  remember();
  stroke = { before: painted.slice(), weight: new Float32Array(painted.length) };
}

/** Squared distances along one line of squared distances (Felzenszwalb and Huttenlocher 2012, Sec. 2). */
function distancesAlong(f, n, out, v, z) {
  let k = 0;
  v[0] = 0; z[0] = -Infinity; z[1] = Infinity;
  for (let q = 1; q < n; q++) {
    let s;
    while ((s = (f[q] + q * q - f[v[k]] - v[k] * v[k]) / (2 * q - 2 * v[k])) <= z[k]) k--;
    v[++k] = q; z[k] = s; z[k + 1] = Infinity;
  }
  for (let q = 0, j = 0; q < n; q++) {
    while (z[j + 1] < q) j++;
    out[q] = (q - v[j]) * (q - v[j]) + f[v[j]];
  }
}

/** Pixels from each pixel to the nearest that is darker than half, as scipy's exact transform. */
function distances(values) {
  const far = 1e12, n = Math.max(height, width), result = new Float64Array(values.length);
  const f = new Float64Array(n), out = new Float64Array(n), v = new Int32Array(n), z = new Float64Array(n + 1);
  for (let i = 0; i < values.length; i++) result[i] = values[i] < 128 ? 0 : far;
  function pass(length, index) {
    for (let k = 0; k < length; k++) f[k] = result[index(k)];
    distancesAlong(f, length, out, v, z);
    for (let k = 0; k < length; k++) result[index(k)] = out[k];
  }
  for (let x = 0; x < width; x++) pass(height, y => y * width + x);
  for (let y = 0; y < height; y++) pass(width, x => y * width + x);
  return result.map(Math.sqrt);
}

/** What is saved: the painted map, and its dark part grown and ramped as edit_map.from_mask does. */
function current() {
  const grow = Number(ui.grow.value), ramp = isMap ? Number(ui.ramp.value) : 0;
  if (!grow && !ramp || held !== null) return painted;  // under a stroke, which must not wait, as it is painted
  const away = distances(painted), result = painted.slice();
  for (let i = 0; i < result.length; i++) {
    const grey = ramp ? Math.min(Math.max((away[i] - grow) / ramp, 0), 1) : Number(away[i] > grow);
    result[i] = Math.min(result[i], Math.round(255 * grey));
  }
  return result;
}

// ------------------------------------------------------------------------------------------- when it is let go: counts

/** What the method reads of each grey, after the black point, in float32 as it reckons. */
const level = Float32Array.from({ length: 256 }, (_, grey) => {
  const black = data.black_point, value = fround(fround(grey / 255) - fround(black));
  return Math.min(Math.max(fround(value / fround(1 - black)), 0), 1);
});

/** The map on the latent grid: the middle of each block, bilinear without antialias. Blocks are whole pixels, so that the
 *  weights are 1, or halves. */
function onGrid(values) {
  const down = height / rows, across = width / columns, mu = new Float32Array(rows * columns);
  const middle = n => n % 2 ? [(n - 1) / 2, (n - 1) / 2] : [n / 2 - 1, n / 2];
  const [y0, y1] = middle(down), [x0, x1] = middle(across);
  const mix = (a, b) => fround(fround(a * 0.5) + fround(b * 0.5));
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++) {
      const value = (v, u) => level[values[(y * down + v) * width + x * across + u]];
      mu[y * columns + x] = mix(mix(value(y0, x0), value(y0, x1)), mix(value(y1, x0), value(y1, x1)));
    }
  return mu;
}

/** Steps in which a grey is put back: 0 is the exemplar's or the first to be let go, taus.length is kept to the end. */
function injections(value, taus) { return taus.reduce((count, tau) => count + (value > fround(tau)), 0); }

function counted(mu, taus) {
  const first = fround(taus[0]), last = fround(Math.max(...taus));
  const found = { exemplar: 0, released: 0, kept: 0 };
  for (const value of mu) found[value <= first ? "exemplar" : value > last ? "kept" : "released"]++;
  return found;
}

function taus() { return data.taus[isMap ? ui.threshold.value : "mask"]; }

/** Pink: the exemplar; orange, the stronger the earlier it is let go; clear: kept to the end. */
function colour(count, exemplar, steps) {
  const opacity = Math.round(190 * (1 - count / steps) + (exemplar ? 0 : 25) * (count < steps));
  return exemplar ? [255, 26, 153, 190] : [255, 140, 0, opacity];
}

// ------------------------------------------------------------------------------------------------------------ drawing

function box() {
  const scale = Number(ui.scale.value) / 100, [tall, wide] = data.exemplar ? data.exemplar[1] : [1, 1];
  const shape = (tall / wide) * (data.picture[1] / data.picture[0]);  // of the frame, in which the photograph is squashed
  const across = Math.min(scale, scale / shape), down = across * shape;
  place.x = Math.min(Math.max(place.x, 0), 1 - across);
  place.y = Math.min(Math.max(place.y, 0), 1 - down);
  return ui.placed.checked ? [place.x, place.y, place.x + across, place.y + down] : [0, 0, 1, 1];
}

let asked = false;
function draw() {
  if (!asked) requestAnimationFrame(drawNow);
  asked = true;
}

function drawNow() {
  asked = false;
  const values = current(), mu = onGrid(values), levels = taus(), found = counted(mu, levels);
  ui.shown = { values, found };
  const show = chosen("show"), canvas = ui.view, fine = show === "map" || show === "over";
  [canvas.width, canvas.height] = fine ? [width, height] : [columns, rows];
  const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer), first = fround(levels[0]);
  const packed = ([r, g, b, a]) => (a << 24 | b << 16 | g << 8 | r) >>> 0;
  if (show === "map") values.forEach((grey, i) => { pixels[i] = shade(grey) * 0x10101 + 0xff000000; });
  else if (show === "over") values.forEach((grey, i) => { pixels[i] = grey < 128 ? 0x96991aff : 0; });
  else if (show === "when") mu.forEach((value, i) => {
    pixels[i] = packed(colour(injections(value, levels), value <= first, levels.length));
  });
  else if (show === "enters") mu.forEach((value, i) => { pixels[i] = value <= first ? packed([255, 255, 255, 255]) : 0; });
  pen.putImageData(image, 0, 0);
  placeExemplar(show);
  say(found);
  ui.undo.disabled = !past.length;
  ui.redo.disabled = !future.length;
}

function shade(grey) { return isMap ? grey : grey < 128 ? 255 : 0; }

/** The exemplar as it will enter: cut to its cells, or lying over the photograph while it is moved. */
function placeExemplar(show) {
  const image = ui.exemplar, [left, top, right, bottom] = box(), moving = chosen("tool") === "move";
  image.hidden = !data.exemplar || !isMap || !(moving || show === "enters");
  Object.assign(image.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`,
    height: `${100 * (bottom - top)}%`, opacity: moving ? 0.7 : 0 });
  if (show !== "enters" || !data.exemplar || !isMap) return;
  const canvas = ui.view, mask = document.createElement("canvas"), side = 4;
  [mask.width, mask.height] = [canvas.width, canvas.height];
  mask.getContext("2d").drawImage(canvas, 0, 0);
  [canvas.width, canvas.height] = [columns * side, rows * side];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = "source-in";
  pen.fillRect(0, 0, canvas.width, canvas.height);  // black where the exemplar does not reach
  pen.globalCompositeOperation = "source-atop";
  pen.imageSmoothingEnabled = true;
  pen.drawImage(image, left * canvas.width, top * canvas.height, (right - left) * canvas.width,
    (bottom - top) * canvas.height);
}

function say(found) {
  const total = rows * columns, share = (100 * found.exemplar / total).toFixed(1);
  ui.coverage.textContent = isMap
    ? `${found.exemplar} of ${total} latent cells (${share} %) take the exemplar, ${found.released} are released on the ` +
      `way, ${found.kept} keep the source`
    : `${found.exemplar} of ${total} pixels (${share} %) may change`;
  ui.coverage.dataset.cells = JSON.stringify(found);
  ui.command.value = commandText();
  if (isMap) drawLegend();
}

function drawLegend() {
  const levels = taus(), steps = levels.length, first = fround(levels[0]);
  const darkest = Array(steps + 1).fill(null);
  for (let grey = 255; grey >= 0; grey--) {
    darkest[level[grey] <= first ? 0 : injections(level[grey], levels)] = grey;
  }
  const every = Math.ceil((steps + 1) / 12);
  ui.legend.replaceChildren(...darkest.map((grey, count) => {
    const band = document.createElement("span"), [r, g, b, a] = colour(count, count === 0, steps);
    const what = count === 0 ? "takes the exemplar" : count === steps ? "kept to the end" : `let go at step ${count + 1}`;
    band.title = `${what}${grey === null ? ": no grey of 8 bits" : `: grey ${grey} and lighter`}, of ${steps} steps`;
    band.style.background = `linear-gradient(rgba(${r},${g},${b},${a / 255}) 0 0), #fff`;
    if (count % every === 0 || count === steps) band.textContent = count === 0 ? "exemplar" : count === steps ? "kept" : count + 1;
    return band;
  }));
}

// ------------------------------------------------------------------------------------------------------- what is taken

function quoted(word) { return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`; }

function commandText() {
  if (data.kind === "pie_bench") return JSON.stringify({ mask: runs(ui.shown.values) });
  const words = data.command.map(quoted);
  if (!isMap) return [...words, "--mask_path", "mask.png"].join(" ");
  words.push("--edit_map_path", "map.png", "--threshold", ui.threshold.value);
  const placed = box();
  if (ui.placed.checked) words.push("--exemplar_box", ...placed.map(side => String(Math.round(side * 1e4) / 1e4)));
  return words.join(" ");
}

/** Start and length of each run of what may change, over the flattened rows, as PIE-Bench stores a mask. */
function runs(values) {
  const found = [];
  for (let i = 0; i < values.length; i++) {
    if (values[i] >= 128) continue;
    if (i && values[i - 1] < 128) found[found.length - 1]++;
    else found.push(i, 1);
  }
  return found;
}

function save() {
  drawNow();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  ui.shown.values.forEach((grey, i) => image.data.set([shade(grey), shade(grey), shade(grey), 255], 4 * i));
  pen.putImageData(image, 0, 0);
  canvas.toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = isMap ? "map.png" : "mask.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

"use strict";
// The page, whoever answers. The script after this one has load(): what `osr serve` says under /model, or an error
// with a sentence; and explain(blob, name): what it says under /explain, or {error: a sentence}.
const $ = (id) => document.getElementById(id);
const SIDE = 280, FIELD = 28, BOX = 20; // of the canvas; of MNIST's images and of the digit in them
let model = null; // what load() gave
let answer = null; // the last of explain()
let threshold = null; // where the slider stands; null where it was not moved
let asked = 0; // questions, so that an old answer never overwrites a newer one
let stopLive = () => {}; // ends what asks by itself, as a camera does

const number = (value) => Number(value.toPrecision(3)).toString();
const percent = (value) => (100 * value).toFixed(1) + "\u00a0%";

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text; // names are the recogniser's: never as HTML
  return made;
}

function show(id, text) {
  $(id).hidden = !text;
  $(id).textContent = text || "";
}

/** The answer once more, beside the drawing and the camera, where the answer itself is out of sight. */
function brief(text) {
  for (const place of document.querySelectorAll(".brief")) place.textContent = text;
}

// ---- asking

/** In place of an answer: a heading, and a sentence that may be empty. */
function showNone(state, text) {
  brief("");
  show("state", state);
  show("error", text);
  show("prediction", "");
  show("sentence", "");
  $("details").hidden = true;
}

function fail(text) {
  stopLive();
  asked += 1; // what is under way would overwrite the sentence
  showNone("No answer", text);
  $("result").removeAttribute("aria-busy");
}

/** Ask about an image, a Blob or a promise of one; reveal: whether to scroll to the answer. */
async function ask(image, name, reveal = true) {
  stopLive();
  const mine = (asked += 1);
  $("result").setAttribute("aria-busy", "true");
  const blob = await image;
  if (mine !== asked) return;
  const content = await explain(blob, name);
  if (mine !== asked) return;
  if (content.error) return fail(content.error);
  $("result").removeAttribute("aria-busy");
  showGiven(blob);
  answer = content;
  showAnswer();
  if (reveal) $("answer").scrollIntoView({ block: "nearest" }); // it is below on a phone
}

function showGiven(blob) {
  URL.revokeObjectURL($("given").src);
  $("given-figure").hidden = false;
  $("given").src = URL.createObjectURL(blob);
}
$("given").onload = () => { $("given").className = $("given").naturalWidth < 100 ? "small" : ""; };
$("given").onerror = () => { $("given-figure").hidden = true; }; // a server reads more formats than browsers

// ---- the answer

const likeliest = () => answer.probabilities.reduce((a, b) => (b.probability > a.probability ? b : a));

function showAnswer() {
  const row = answer.row, best = likeliest(), unknown = row.prediction === "unknown";
  const score = row.score === null ? "no finite number" : number(row.score);
  show("state", "The answer");
  show("error", "");
  show("prediction", row.prediction);
  brief(`The answer: ${row.prediction}`);
  $("prediction").className = unknown ? "unknown" : "known";
  show("sentence", `The score ${score} is ${unknown ? "above" : "not above"} the threshold ${number(row.threshold)}. ` +
    `Likeliest class: ${best.class}, ${percent(best.probability)}.`);
  $("details").hidden = false;
  $("seen").src = answer.pixels;
  $("seen").alt = `The image as the network saw it, ${model.image_size} by ${model.image_size} pixels`;
  $("bars").replaceChildren(...answer.probabilities.map(bar));
  showOdd(row.p_value);
  showWhy(answer.why);
  showMap(answer.why && answer.why.map);
  showSamples();
  showLine();
}

const inWords = (p) => {
  const [count, of] = p < 0.1 ? [1000 * p, "1,000"] : [100 * p, "100"];
  return `${count < 1 ? "fewer than 1" : Math.round(count)} in ${of}`;
};

function showOdd(p) {
  show("odd", p === null ? "" : `Of known images, ${inWords(p)} look as odd as this one (p-value ${number(p)}).`);
}

function showWhy(why) {
  $("why").hidden = !why; // of an exported graph there is none
  if (!why) return;
  $("parts").replaceChildren(...why.parts.map(({ says, p }) => {
    const item = element("li"), text = element("p");
    text.append(element("span", says), element("span", p === null ? "" : inWords(p)));
    item.append(text, filled(p === null ? 0 : Math.min(1, -Math.log10(Math.max(p, 1e-9)) / 4)));
    return item;
  }));
  $("near").hidden = !why.nearest.length;
  $("nearest").replaceChildren(...why.nearest.map((one) => {
    const item = element("li"), image = element("img");
    image.src = one.picture;
    image.alt = "";
    item.append(image, element("span", `${one.class} ${number(one.distance)}`));
    return item;
  }));
}

const thirds = (share, names) => names[Math.min(2, Math.floor(3 * share))];

/** Where the unusual is, over what the network saw: an exported graph, and some networks, do not tell it. */
function showMap(map) {
  $("mapping").hidden = !map;
  $("heat").hidden = !map || !$("mapped").checked;
  if (map) $("heat").src = map.picture;
  else $("heat").removeAttribute("src");
  show("place", map ? `It is most unusual ${thirds(map.y, ["at the top", "halfway down", "at the bottom"])}, ` +
    `${thirds(map.x, ["on the left", "in the middle", "on the right"])}.` : "");
}
$("mapped").onchange = () => showMap(answer.why.map);

function bar(share) {
  const item = element("li"), name = element("span", share.class);
  name.title = share.class;
  item.append(name, filled(share.probability), element("span", percent(share.probability)));
  return item;
}

/** A bar that is full up to a share; a number beside it says the same. */
function filled(share) {
  const outer = element("div"), inner = element("div");
  outer.className = "bar";
  outer.setAttribute("aria-hidden", "true");
  inner.style.width = 100 * share + "%";
  outer.append(inner);
  return outer;
}

function showSamples() {
  const samples = answer.samples;
  $("samples-part").hidden = !samples;
  if (!samples) return;
  const counts = new Map();
  for (const sample of samples) counts.set(sample.class, (counts.get(sample.class) || 0) + 1);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  $("samples-sum").textContent = sorted.map(([name, count]) => `${count} of ${samples.length} say ${name}`).join(", ");
  $("samples").replaceChildren(
    ...samples.map((sample) => element("li", `${sample.class} · ${percent(sample.probability)}`)));
}

let low = 0, high = 1; // the ends of the line
let steady = false; // whether they only move apart, so that a hand can follow one answer after the other

function showLine() {
  const { score, threshold: own } = answer.row;
  $("line").hidden = score === null;
  $("reset").hidden = threshold === null || score === null;
  if (score === null) {
    $("verdict").textContent = "The score is no finite number, which no threshold changes.";
    return;
  }
  const points = [score, own, threshold === null ? own : threshold];
  const margin = 0.25 * Math.max(Math.max(...points) - Math.min(...points), 0.2 * Math.abs(own), 1e-6);
  if (!steady || points.some((point) => point < low || point > high)) {
    low = Math.min(...points, steady ? low : Infinity) - margin;
    high = Math.max(...points, steady ? high : -Infinity) + margin;
  }
  $("low").textContent = `${number(low)} · more familiar`;
  $("high").textContent = `stranger · ${number(high)}`;
  $("threshold").value = Math.round((1000 * (points[2] - low)) / (high - low));
  const share = (score - low) / (high - low);
  $("dot").style.left = `calc(10px + ${share} * (100% - 20px))`; // as the slider's thumb, 20 px wide, goes
  showVerdict();
}

function showVerdict() {
  const { score, threshold: own } = answer.row;
  const at = threshold === null ? own : threshold;
  const share = Math.min(1, Math.max(0, (at - low) / (high - low)));
  $("scale").style.setProperty("--cut", `calc(10px + ${share} * (100% - 20px))`);
  const decided = score > at ? "unknown" : likeliest().class;
  $("verdict").textContent = `Score (${model.score}) ${number(score)}. ` + (threshold === null
    ? `The model's threshold is ${number(own)}; move it to see what another would decide.`
    : `With the threshold ${number(at)} instead of ${number(own)} it would be: ${decided}.`);
  $("threshold").setAttribute("aria-valuetext", `${number(at)}: ${decided}; the score is ${number(score)}`);
  $("reset").hidden = threshold === null;
}

$("threshold").oninput = () => {
  threshold = low + ((high - low) * $("threshold").value) / 1000;
  showVerdict();
};
$("reset").onclick = () => {
  threshold = null;
  showLine();
  $("threshold").focus();
};

// ---- drawing

const context = $("canvas").getContext("2d", { willReadFrequently: true });
let strokes = []; // each: width and points
let pointer = null; // of the pen, mouse or finger that draws
let timer = 0;

function paint() {
  context.fillStyle = "#000";
  context.fillRect(0, 0, SIDE, SIDE);
  context.strokeStyle = "#fff";
  context.lineCap = context.lineJoin = "round";
  for (const { width, points } of strokes) {
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point); // a single point becomes a dab
    context.stroke();
  }
}

function place(event) {
  const box = $("canvas").getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

const begin = (point) => {
  clearTimeout(timer);
  strokes.push({ width: Number($("pen").value), points: [point] });
  paint();
};
const goOn = (point) => {
  strokes[strokes.length - 1].points.push(point);
  paint();
};
const soon = () => {
  clearTimeout(timer);
  timer = setTimeout(() => recognise(false), 400);
};

$("canvas").onpointerdown = (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  $("canvas").setPointerCapture(pointer); // strokes may leave the canvas and come back
  liftPen();
  begin(place(event));
};
$("canvas").onpointermove = (event) => {
  if (event.pointerId !== pointer) return;
  const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of all.length ? all : [event]) goOn(place(one));
};
$("canvas").onpointerup = $("canvas").onpointercancel = (event) => {
  if (event.pointerId !== pointer) return;
  pointer = null;
  soon();
};

const MOVES = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
let pen = [SIDE / 2, 60], down = false; // the keyboard's

function showPen() {
  $("cursor").style.left = pen[0] + "px";
  $("cursor").style.top = pen[1] + "px";
  $("cursor").className = down ? "down" : "";
}
function liftPen() {
  down = false;
  showPen();
}
$("canvas").onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = MOVES[event.key];
  if (move) {
    pen = pen.map((at, axis) => Math.min(SIDE, Math.max(0, at + move[axis])));
    if (down) goOn(pen);
    if (down) soon();
  } else if (event.key === " ") {
    down = !down;
    if (down) begin(pen);
    soon();
    $("hint").textContent = down ? "The pen is down." : "The pen is up.";
  } else if (event.key === "Delete") clear();
  else if (event.key === "Enter") recognise(false);
  else return;
  event.preventDefault();
  $("cursor").hidden = false;
  showPen();
};
$("canvas").onblur = () => {
  liftPen();
  $("cursor").hidden = true;
};

function clear() {
  clearTimeout(timer);
  strokes = [];
  liftPen();
  paint();
  $("hint").textContent = "The canvas is empty.";
}
$("clear").onclick = clear;
$("undo").onclick = () => {
  strokes.pop();
  liftPen();
  paint();
  if (strokes.length) soon();
  else clear();
};
$("go").onclick = () => recognise();

function recognise(reveal = true) {
  clearTimeout(timer);
  const data = context.getImageData(0, 0, SIDE, SIDE).data;
  const ink = Float32Array.from({ length: SIDE * SIDE }, (_, at) => data[4 * at]);
  const digit = centred(ink, SIDE, SIDE);
  $("hint").textContent = digit ? "" : "The canvas is empty.";
  if (!digit) return fail("The canvas is empty: draw a digit on it first.");
  ask(picture(FIELD, (x, y) => digit[y * FIELD + x]), "drawing.png", reveal);
}

/** As MNIST's digits were made: the ink fits a box of 20 x 20, and its centre of mass the field's; null of none. */
function centred(ink, width, height) {
  let left = width, right = -1, top = height, bottom = -1, mass = 0, x0 = 0, y0 = 0;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const value = ink[y * width + x];
      if (value < 32) continue;
      left = Math.min(left, x); right = Math.max(right, x);
      top = Math.min(top, y); bottom = Math.max(bottom, y);
      mass += value; x0 += value * (x + 0.5); y0 += value * (y + 0.5);
    }
  if (!mass) return null;
  const step = Math.max(right - left + 1, bottom - top + 1) / BOX; // of the ink's pixels to one of the field
  x0 /= mass; y0 /= mass;
  const digit = new Uint8ClampedArray(FIELD * FIELD), parts = 8;
  for (let at = 0; at < digit.length; at++) {
    let sum = 0;
    for (let part = 0; part < parts * parts; part++) {
      const x = Math.floor(x0 + ((at % FIELD) + ((part % parts) + 0.5) / parts - FIELD / 2) * step);
      const y = Math.floor(y0 + (Math.floor(at / FIELD) + (Math.floor(part / parts) + 0.5) / parts - FIELD / 2) * step);
      if (x >= 0 && x < width && y >= 0 && y < height) sum += ink[y * width + x];
    }
    digit[at] = sum / (parts * parts);
  }
  return digit;
}

/** A PNG of side x side pixels, of a grey level or [red, green, blue] for each. */
function picture(side, pixel) {
  const canvas = element("canvas");
  canvas.width = canvas.height = side;
  const image = new ImageData(side, side);
  for (let at = 0; at < side * side; at++) {
    const value = pixel(at % side, Math.floor(at / side));
    image.data.set([...(Array.isArray(value) ? value : [value, value, value]), 255], 4 * at);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// ---- images

async function take(files) {
  if (!files.length) return;
  clearTimeout(timer);
  if (files.length > 1) return fail(`These are ${files.length} files: give one image at a time.`);
  const file = files[0];
  if (!$("centre").checked) return ask(file, file.name || "pasted.png");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch (error) {
    return fail(`${file.name} is no image this browser can read: take a PNG or JPEG, or leave it uncentred`);
  }
  const digit = digitIn(bitmap, bitmap.width, bitmap.height);
  if (!digit) return fail(`${file.name} is of one grey: choose an image that shows a digit`);
  ask(picture(FIELD, (x, y) => digit[y * FIELD + x]), file.name || "pasted.png");
}

/** The digit that a picture shows, as one that is drawn; null of a picture of one grey. */
function digitIn(source, wide, high) {
  const shrink = Math.min(1, SIDE / Math.max(wide, high));
  const canvas = element("canvas");
  const width = (canvas.width = Math.max(1, Math.round(wide * shrink)));
  const height = (canvas.height = Math.max(1, Math.round(high * shrink)));
  const paper = canvas.getContext("2d", { willReadFrequently: true });
  paper.fillStyle = "#fff"; // below what is transparent, as the server has it
  paper.fillRect(0, 0, width, height);
  paper.imageSmoothingQuality = "high";
  paper.drawImage(source, 0, 0, width, height);
  return centred(inkOf(paper.getImageData(0, 0, width, height).data, width, height), width, height);
}

/** How far each pixel lies from the paper, which the edge shows: 0 to 255, faint ones 0. */
function inkOf(data, width, height) {
  const grey = Float32Array.from({ length: width * height },
    (_, at) => 0.299 * data[4 * at] + 0.587 * data[4 * at + 1] + 0.114 * data[4 * at + 2]);
  const edge = grey.filter((_, at) => {
    const x = at % width, y = Math.floor(at / width);
    return x === 0 || y === 0 || x === width - 1 || y === height - 1;
  }).sort();
  const background = edge[edge.length >> 1], sign = background > 127 ? -1 : 1;
  const most = grey.reduce((a, value) => Math.max(a, sign * (value - background)), 0);
  if (most < 16) return new Float32Array(width * height); // nothing but noise
  return grey.map((value) => {
    const ink = (sign * (value - background)) / most;
    return 255 * Math.min(1, Math.max(0, (ink - 0.25) / 0.5)); // shadows go, strokes become white
  });
}

$("file").onchange = () => {
  take([...$("file").files]);
  $("file").value = ""; // the same file may be chosen again
};
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return fail("What was pasted holds no image: copy an image, not its address.");
  event.preventDefault();
  take(files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser would leave the page for the image
  document.body.classList.remove("over");
  const files = [...event.dataTransfer.files];
  if (files.length) take(files);
  else fail("What was dropped holds no file: save the image first, then drop its file.");
});

// ---- examples, drawn here

const DIGITS = [ // strokes in a square of 100, as x and y by turns
  [[50, 8, 25, 16, 18, 50, 25, 84, 50, 92, 75, 84, 82, 50, 75, 16, 50, 8]],
  [[56, 8, 44, 92]],
  [[22, 30, 30, 8, 68, 6, 80, 30, 56, 60, 20, 90], [20, 90, 84, 88]],
  [[22, 16, 45, 4, 78, 12, 74, 40, 42, 48], [42, 48, 82, 54, 82, 86, 50, 98, 18, 84]],
  [[30, 8, 22, 55], [22, 55, 82, 51], [68, 10, 62, 94]],
  [[76, 10, 34, 12], [34, 12, 28, 46], [28, 46, 55, 34, 84, 52, 78, 86, 48, 96, 20, 84]],
  [[66, 6, 36, 26, 20, 65, 32, 94, 64, 94, 78, 72, 60, 52, 36, 58, 24, 76]],
  [[20, 14, 80, 12], [80, 12, 60, 50, 46, 94]],
  [[72, 18, 52, 2, 26, 14, 36, 42, 66, 58, 78, 84, 50, 100, 24, 84, 34, 58, 64, 42, 76, 20, 70, 14]],
  [[72, 30, 58, 6, 28, 10, 24, 42, 50, 52, 72, 30], [73, 26, 70, 60, 58, 94]],
];

function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, at) => [40 + 2 * flat[2 * at], 40 + 2 * flat[2 * at + 1]]);
}

/** Chaikin's: corners cut twice over. */
function rounded(points, times = 3) {
  if (!times || points.length < 3) return points;
  const cut = [points[0]];
  for (let at = 0; at + 1 < points.length; at++)
    for (const share of [0.25, 0.75])
      cut.push(points[at].map((from, axis) => from + share * (points[at + 1][axis] - from)));
  return rounded([...cut, points[points.length - 1]], times - 1);
}

function drawDigit(digit) {
  clear();
  strokes = DIGITS[digit].map((flat) => ({ width: 22, points: rounded(pairs(flat)) }));
  paint();
  recognise();
}

function noise() { // a generator of its own, so that the example is the same each time
  let state = 1;
  return () => (state = (state * 48271) % 2147483647) % 256;
}

const PATTERNS = {
  Noise: () => {
    const next = noise();
    return model.channels === 1 ? next : () => [next(), next(), next()];
  },
  Checkerboard: () => (x, y) => ((x >> 2) + (y >> 2)) % 2 ? 235 : 20,
  Gradient: () => (x, y) => [40 + 5 * x, 90 + 3 * y, 220 - 4 * y].map((value) => Math.min(255, value)),
};

/** Ask about a picture of a known class; its address is a data: URL, which the page's policy lets none fetch. */
function addPicture({ class: name, picture: address }) {
  const button = element("button"), image = element("img"), caption = element("span", name);
  const bytes = Uint8Array.from(atob(address.slice(address.indexOf(",") + 1)), (char) => char.charCodeAt(0));
  button.type = "button";
  button.title = image.alt = name;
  image.src = address;
  caption.setAttribute("aria-hidden", "true"); // the image's text is the button's name
  button.append(image, caption);
  button.onclick = () => ask(new Blob([bytes], { type: "image/png" }), "example.png");
  $("pictures").append(button);
}

function addExample(name, action) {
  const button = element("button", name);
  button.type = "button";
  button.onclick = action;
  $("examples").append(button);
}

// ---- start

async function start() {
  try {
    model = await load();
  } catch (error) {
    return fail(error.message);
  }
  const { classes, examples, channels, image_size: size } = model;
  const names = classes.slice(0, 20).join(", ") + (classes.length > 20 ? ", …" : "");
  $("about").textContent = `The model knows ${classes.length} classes (${names}) and calls every image unknown ` +
    `whose score (${model.score}) is above ${number(model.threshold)}. It sees ${size} × ${size} pixels, ` +
    `${channels === 1 ? "grey" : "in colour"}.`;
  const digits = channels === 1 && classes.every((name) => /^[0-9]$/.test(name));
  $("drawing").hidden = $("centring").hidden = !digits;
  if (digits) paint();
  else $("file").labels[0].textContent = "Give an image";
  $("known-examples").hidden = !examples.length;
  examples.forEach(addPicture);
  if (digits && !examples.length) for (const name of classes) addExample(name, () => drawDigit(Number(name)));
  for (const [name, pixel] of Object.entries(PATTERNS).slice(0, examples.length ? 2 : 3))
    addExample(name, () => ask(picture(FIELD, pixel()), `${name.toLowerCase()}.png`));
}

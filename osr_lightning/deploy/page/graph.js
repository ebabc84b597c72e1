
// ---- the exported graph answers, in this browser

const RUNTIME = "runtime/ort.wasm.bundle.min.js", WASM = "runtime/ort-wasm-simd-threaded.wasm";
const MOST_CLASSES = 20; // as the server's answers have
const opening = openGraph(); // begins at once; load() and each question wait for it
opening.catch(() => {}); // whoever waits says what is wrong
show("note", "Everything happens in this browser: no picture leaves it.");

async function load() {
  return (await opening).told;
}

/** What model.json says, and onnxruntime with the graph in it. */
async function openGraph() {
  if (location.protocol === "file:")
    throw new Error("A page that is opened as a file may load none of its other files: put its folder on a web " +
      "host, or run python -m http.server in it and open http://localhost:8000");
  const told = JSON.parse(new TextDecoder().decode(await bytesOf("model.json", null)));
  const total = told.bytes.graph + told.bytes.runtime;
  const graph = await bytesOf(told.graph, told.bytes.graph, (done) => loading(done, total));
  const wasm = await bytesOf(WASM, told.bytes.runtime, (done) => loading(told.bytes.graph + done, total));
  try {
    const ort = await import(new URL(RUNTIME, location.href));
    ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
    ort.env.wasm.wasmBinary = wasm.buffer;
    const quiet = { logSeverityLevel: 3 }; // else it warns of the threshold, which is an input that may be left out
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], ...quiet });
    return { told, ort, session };
  } catch (error) {
    throw new Error(`This browser cannot run the recogniser (${reason(error)}): take a newer one`);
  }
}

const reason = (error) => String(error.message || error).trim().split("\n")[0].slice(0, 200);

function loading(done, total) {
  $("about").textContent = `Loading the recogniser: ${(done / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB …`;
}

/** A file's bytes, which must be so many. */
async function bytesOf(address, size, progress = () => {}) {
  const parts = [];
  let done = 0, response;
  try {
    response = await fetch(address, { cache: "no-cache" }); // is there a newer one?
    if (response.ok)
      for (let reader = response.body.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
        parts.push(part.value);
        progress((done += part.value.length));
      }
  } catch (error) {
    throw new Error(`${address} cannot be loaded: see whether the network and the host work, then load the page again`);
  }
  if (!response.ok || (size !== null && done !== size))
    throw new Error(`The host has no whole ${address} (${response.ok ? `${done} of ${size} bytes` :
      `status ${response.status}`}): upload the page's folder again`);
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function explain(blob, name) {
  try {
    return await answerTo(await decoded(blob, name));
  } catch (error) {
    return { error: error.message };
  }
}

/** What the server says under /explain, of an image as decoded() gives it. */
async function answerTo(image) {
  const { told, ort, session } = await opening;
  const { channels, image_size: size, classes, score: name } = told;
  const seen = prepared(image, told);
  let found;
  try {
    found = await session.run({ images: new ort.Tensor("uint8", seen, [1, channels, size, size]) });
  } catch (error) {
    throw new Error(`The recogniser stops on this image (${reason(error)}): take another`);
  }
  const named = Number(found.prediction.data[0]), score = found.score.data[0];
  return {
    row: {
      prediction: named < classes.length ? classes[named] : "unknown",
      confidence: found.confidence.data[0],
      score: Number.isFinite(score) ? score : null,
      threshold: told.threshold,
      p_value: pValue(score, told.p_values),
    },
    probabilities: shares(Array.from(found.probabilities.data), classes),
    samples: null,
    pixels: address(seen, channels, size),
    why: null,
  };
}

/** p_values.py: what belongs to the number of known calibration scores that are less. */
function pValue(score, { known, levels }) {
  if (!known.length) return null;
  const place = known.findIndex((one) => one >= Math.min(score, Number.MAX_VALUE)); // none is as great as NaN
  return levels[place < 0 ? known.length : place];
}

/** All of few classes in their own order, the likeliest of many. */
function shares(probabilities, classes) {
  const all = probabilities.map((probability, at) => ({ class: classes[at], probability }));
  return all.length > MOST_CLASSES ?
    all.sort((a, b) => b.probability - a.probability).slice(0, MOST_CLASSES) : all;
}

/** Planes as a picture's address. */
function address(planes, channels, size) {
  const canvas = element("canvas"), image = new ImageData(size, size), count = size * size;
  canvas.width = canvas.height = size;
  for (let at = 0; at < count; at++) {
    for (let part = 0; part < 3; part++) image.data[4 * at + part] = planes[(channels === 3 ? part * count : 0) + at];
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}


// ---- the camera: at most ten pictures a second, of which none is kept

const BEAT = 100; // milliseconds from one picture to the next
const AT_LEAST = 10; // between them, for the hand on the slider
const CERTAIN = 1000; // milliseconds that an answer must last to be spoken
let stream = null, waiting = false;

$("camera").hidden = false;

$("watch").onclick = async () => {
  if (stream) return stopLive();
  if (waiting) return; // for the person who is asked
  waiting = true;
  const found = await lent();
  waiting = false;
  if (typeof found === "string") return fail(found);
  stopLive();
  stream = found;
  stopLive = stopCamera;
  asked += 1; // what is under way would overwrite the camera's answers
  $("result").removeAttribute("aria-busy");
  clearTimeout(timer);
  $("video").srcObject = stream;
  $("video").hidden = $("shown").hidden = false;
  $("watch").textContent = "Stop the camera";
  $("given-figure").hidden = true;
  $("answer").setAttribute("aria-live", "off"); // ten answers a second are no one's to hear
  stream.getVideoTracks()[0].onended = () => fail("The camera was taken away: see whether it is still there, then start it again");
  watch(stream);
};

/** A camera's stream, or what keeps the page from it. */
async function lent() {
  if (!navigator.mediaDevices)
    return "A browser lends its camera to pages of https:// and localhost alone: open this one there";
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    return {
      NotAllowedError: "This page may not use the camera: allow it in the browser's settings for this page, then start it again",
      NotFoundError: "There is no camera: connect one, or give an image",
      NotReadableError: "Another program uses the camera: end it there, then start it again",
    }[error.name] || `The camera cannot be used (${error.name}): give an image`;
  }
}

function stopCamera() {
  stopLive = () => {};
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  steady = false;
  $("video").srcObject = null;
  $("video").hidden = $("shown").hidden = true;
  $("watch").textContent = "Start the camera";
  $("rate").textContent = $("spoken").textContent = "";
  $("answer").setAttribute("aria-live", "polite");
}
addEventListener("pagehide", () => stopLive());

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function watch(mine) {
  let seen = 0, since = performance.now(), last = "", changed = since;
  try {
    await $("video").play();
  } catch (error) { // it was stopped meanwhile, or the browser waits for more
    if (stream === mine) fail("The camera gives no picture: start it again");
  }
  while (stream === mine) {
    const begun = performance.now();
    if (!document.hidden && $("video").readyState >= 2) {
      const content = await ofFrame();
      if (stream !== mine) return;
      if (content && content.error) return fail(content.error);
      if (content) {
        answer = content;
        showAnswer();
        steady = true;
      } else {
        showNone("No digit in sight", "");
        brief("No digit in sight");
      }
      const said = content ? answer.row.prediction : "", now = performance.now();
      if (said !== last) [last, changed] = [said, now];
      else if (now - changed > CERTAIN && $("spoken").textContent !== said) $("spoken").textContent = said;
      seen += 1;
      if (now - since > 1000) {
        const rate = (1000 * seen) / (now - since), told = rate < 1 ? rate.toFixed(1) : `${Math.round(rate)}`;
        $("rate").textContent = `${told} picture${told === "1" ? "" : "s"} a second`;
        [seen, since] = [0, now];
      }
    }
    await pause(Math.max(AT_LEAST, BEAT - (performance.now() - begun)));
  }
}

/** The answer to what the camera shows; null where a digit is asked for and none is there. */
async function ofFrame() {
  const { videoWidth: width, videoHeight: height } = $("video");
  try {
    if (!$("centre").checked) return await answerTo(planesOf($("video"), width, height));
    const digit = digitIn($("video"), width, height);
    return digit && (await answerTo({ channels: 1, height: FIELD, width: FIELD, values: Uint8Array.from(digit) }));
  } catch (error) {
    return { error: error.message };
  }
}


// ---- PNG of 16 bits a value or with transparency: browsers round these as they like, this as osr_lightning/images

const SIGNATURE = 0x89504e47, HEAD = 0x49484452, ORIENTATION = 0x112; // the file's, IHDR's; EXIF's number
const GREY = 0, COLOUR = 2, GREY_ALPHA = 4, COLOUR_ALPHA = 6;
const VALUES = { [GREY]: 1, [COLOUR]: 3, [GREY_ALPHA]: 2, [COLOUR_ALPHA]: 4 }; // of a pixel
const PASSES = [ // of an interlaced PNG: first column and row, and the steps to the next
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];

/** What a PNG says of itself; null of any other file. */
async function pngHead(blob) {
  const head = new DataView(await blob.slice(0, 29).arrayBuffer());
  if (head.byteLength < 29 || head.getUint32(0) !== SIGNATURE || head.getUint32(12) !== HEAD) return null;
  const [width, height, interlaced] = [head.getUint32(16), head.getUint32(20), head.getUint8(28) === 1];
  const deep = head.getUint8(24) === 16, kind = head.getUint8(25);
  return { width, height, deep, kind, interlaced, alpha: kind === GREY_ALPHA || kind === COLOUR_ALPHA };
}

/** Its pixels as an image, upright and on white. */
async function pngPixels(blob, head) {
  const parts = partsOf(await blob.arrayBuffer()), rows = rowsOf(head);
  const { width, height, deep, kind, alpha } = head, size = deep ? 2 : 1, step = VALUES[kind] * size;
  const bytes = await inflated(parts.get("IDAT"), rows.reduce((sum, { wide }) => sum + 1 + wide * step, 0));
  const channels = VALUES[kind] - (alpha ? 1 : 0), values = new Uint8Array(channels * width * height);
  let from = 0, last = null;
  for (const { y, left, right, wide, below } of rows) {
    const row = bytes.subarray(from + 1, from + 1 + wide * step);
    unfilter(bytes[from], row, below ? last : new Uint8Array(row.length), step);
    for (let channel = 0; channel < channels; channel++) {
      let to = (channel * height + y) * width + left;
      for (let at = channel * size, end = step - size; at < row.length; at += step, end += step, to += right)
        if (alpha) values[to] = Math.round((row[at] * row[end] + 255 * (255 - row[end])) / 255);
        else if (kind === GREY) values[to] = even(((256 * row[at] + row[at + 1]) / 65535) * 255);
        else values[to] = row[at]; // Pillow has 16 bits for grey alone: of others it takes the upper 8
    }
    from += 1 + row.length;
    last = row;
  }
  return upright({ channels, height, width, values }, orientation(parts.get("eXIf")));
}

/** The contents of a PNG's chunks by name. */
function partsOf(buffer) {
  const file = new DataView(buffer), parts = new Map();
  for (let at = 8; at + 8 <= buffer.byteLength;) {
    const begin = at + 8, end = begin + file.getUint32(at);
    const name = String.fromCharCode(...new Uint8Array(buffer, at + 4, 4));
    parts.set(name, [...(parts.get(name) || []), new Uint8Array(buffer.slice(begin, end))]);
    at = end + 4; // a checksum follows
  }
  return parts;
}

/** The rows as the file has them: where their pixels go, and whether they are below another one of their pass. */
function rowsOf({ width, height, interlaced }) {
  const rows = [];
  for (const [left, top, right, down] of interlaced ? PASSES : [[0, 0, 1, 1]]) {
    const wide = Math.ceil((width - left) / right);
    for (let y = top; wide > 0 && y < height; y += down) rows.push({ y, left, right, wide, below: y > top });
  }
  return rows;
}

/** The first bytes of what is packed; no more, however much there is. */
async function inflated(packed, length) {
  const bytes = new Uint8Array(length);
  const reader = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  for (let at = 0; at < length;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("its pixels end early");
    bytes.set(value.subarray(0, length - at), at);
    at += value.length;
  }
  await reader.cancel();
  return bytes;
}

/** Bytes from their differences to the left, upper and upper left ones. */
function unfilter(filter, row, above, step) {
  if (filter > 4) throw new Error("its rows have an unknown filter");
  for (let at = 0; filter && at < row.length; at++) {
    const left = at < step ? 0 : row[at - step], up = above[at];
    if (filter === 1) row[at] += left;
    else if (filter === 2) row[at] += up;
    else if (filter === 3) row[at] += (left + up) >> 1;
    else row[at] += nearest(left, up, at < step ? 0 : above[at - step]);
  }
}

/** Paeth's guess. */
function nearest(left, up, corner) {
  const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/** How an image has to be turned, by EXIF: 1 to 8, 1 being upright. */
function orientation(parts) {
  if (!parts) return 1;
  const exif = new DataView(parts[0].buffer), little = exif.getUint16(0) === 0x4949, first = exif.getUint32(4, little);
  for (let entry = exif.getUint16(first, little) - 1; entry >= 0; entry--) {
    const at = first + 2 + 12 * entry;
    if (exif.getUint16(at, little) === ORIENTATION) return exif.getUint16(at + 8, little);
  }
  return 1;
}

function upright(image, way) {
  if (way > 4 && way < 9) image = turned(image);
  return mirrored(image, [2, 3, 6, 7].includes(way), [3, 4, 7, 8].includes(way));
}

function mirrored({ channels, height, width, values }, across, down) {
  if (!across && !down) return { channels, height, width, values };
  const found = new Uint8Array(values.length);
  for (let channel = 0; channel < channels; channel++)
    for (let y = 0; y < height; y++) {
      const to = (channel * height + y) * width, row = (channel * height + (down ? height - 1 - y : y)) * width;
      for (let x = 0; x < width; x++) found[to + x] = values[row + (across ? width - 1 - x : x)];
    }
  return { channels, height, width, values: found };
}

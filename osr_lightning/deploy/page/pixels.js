
// ---- pixels as osr_lightning/images has them, to the last bit: a canvas resizes otherwise

// An image here is { channels, height, width, values }, values being a Uint8Array of planes, one after the other.

const MAX_PIXELS = 89478485, MAX_SIDE = 65535; // decode.py's
const LARGE = 2 ** 22, FINER = 16, LONGEST = 4, MOST_BITS = 22; // decode.py's and pixels.py's

/** As Python and numpy round: a half to the even neighbour. */
function even(value) {
  const below = Math.floor(value), rest = value - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? 1 : 0);
}

/** What an image of these sides is averaged down by before it is resized: decode.py's smaller_by. */
function smallerBy(width, height, size) {
  const large = Math.floor(Math.sqrt(Math.floor((width * height) / LARGE)));
  return Math.max(1, large, Math.floor(Math.min(width, height) / (FINER * size)));
}

/** Means of squares of so many pixels a side, those of the last row and column of what is left: Pillow's reduce. */
function reduced({ channels, height, width, values }, factor) {
  const high = Math.ceil(height / factor), wide = Math.ceil(width / factor);
  const found = new Uint8Array(channels * high * wide);
  let at = 0;
  for (let channel = 0; channel < channels; channel++)
    for (let top = 0; top < height; top += factor)
      for (let left = 0; left < width; left += factor) {
        const bottom = Math.min(height, top + factor), right = Math.min(width, left + factor);
        let sum = 0;
        for (let y = top; y < bottom; y++) {
          const row = (channel * height + y) * width;
          for (let x = left; x < right; x++) sum += values[row + x];
        }
        const count = (bottom - top) * (right - left);
        const share = Math.trunc(Math.fround(2 ** 24 / count)); // Pillow multiplies where others divide
        found[at++] = Math.floor(((sum + (count >> 1)) * share) / 2 ** 24);
      }
  return { channels, height: high, width: wide, values: found };
}

/** Colour to one grey plane, by a function of red, green and blue. */
function grey({ height, width, values }, level) {
  const count = height * width, found = new Uint8Array(count);
  for (let at = 0; at < count; at++) found[at] = level(values[at], values[count + at], values[2 * count + at]);
  return { channels: 1, height, width, values: found };
}

// torch's weights, each sum rounded to 32 bits; and Pillow's
const [RED, GREEN, BLUE] = [0.2989, 0.587, 0.114].map(Math.fround);
const torchGrey = (red, green, blue) =>
  even(Math.fround(Math.fround(Math.fround(red * RED) + GREEN * green) + BLUE * blue));
const pillowGrey = (red, green, blue) => (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;

/** An image with its rows as columns. */
function turned({ channels, height, width, values }) {
  const found = new Uint8Array(values.length);
  for (let channel = 0; channel < channels; channel++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        found[(channel * width + x) * height + y] = values[(channel * height + y) * width + x];
  return { channels, height: width, width: height, values: found };
}

/** Every row as weighted sums of its pixels; weights are whole numbers, the parts of 2 ** bits. */
function weighted({ channels, height, width, values }, columns, bits) {
  const size = columns.length, whole = 2 ** bits, found = new Uint8Array(channels * height * size);
  for (let row = 0; row < channels * height; row++)
    for (let column = 0; column < size; column++) {
      const { begin, weights } = columns[column], first = row * width + begin;
      let sum = whole / 2;
      for (let at = 0; at < weights.length; at++) sum += weights[at] * values[first + at];
      found[row * size + column] = Math.min(255, Math.max(0, Math.floor(sum / whole)));
    }
  return { channels, height, width: size, values: found };
}

/** The pixels that each of size others is made of, and their weights, which add up to 1. */
function spans(length, size, reach, filter) {
  const scale = length / size, wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, position) => {
    const center = scale * (position + 0.5);
    const begin = Math.max(0, Math.trunc(center - reach * wide + 0.5));
    const end = Math.min(length, Math.trunc(center + reach * wide + 0.5));
    const weights = Array.from({ length: end - begin }, (_, at) => filter((begin + at - center + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { begin, weights: weights.map((weight) => weight / sum) };
  });
}

const bilinear = (x) => Math.max(0, 1 - Math.abs(x));

/** torch's antialiased bilinear interpolation of rows: weights have 16 bits at most. */
function torchRows(image, size) {
  if (image.width === size) return image;
  const columns = spans(image.width, size, 1, bilinear);
  const largest = Math.max(...columns.map(({ weights }) => Math.max(...weights)));
  let bits = 0;
  while (bits < MOST_BITS - 1 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  for (const column of columns) column.weights = column.weights.map((one) => Math.trunc(one * 2 ** bits + 0.5));
  return weighted(image, columns, bits);
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = { // Pillow's: how far each reaches, and its weight there
  bilinear: [1, bilinear],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }],
  lanczos: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** Pillow's interpolation of rows: weights have 22 bits. */
function pillowRows(image, size, interpolation) {
  if (image.width === size) return image;
  const columns = spans(image.width, size, ...FILTERS[interpolation]);
  const bits = 22; // of bytes
  for (const column of columns)
    column.weights = column.weights.map((one) => Math.trunc(one * 2 ** bits + (one < 0 ? -0.5 : 0.5)));
  return weighted(image, columns, bits);
}

function cropped({ channels, height, width, values }, left, top, right, bottom) {
  const wide = right - left, high = bottom - top, found = new Uint8Array(channels * high * wide);
  for (let channel = 0; channel < channels; channel++)
    for (let y = 0; y < high; y++) {
      const begin = (channel * height + top + y) * width + left;
      found.set(values.subarray(begin, begin + wide), (channel * high + y) * wide);
    }
  return { channels, height: high, width: wide, values: found };
}

/** What the recogniser is given of an image, (channels, size, size): pixels.py's prepared. */
function prepared(image, { channels, image_size: size, resize, interpolation }) {
  const factor = smallerBy(image.width, image.height, resize || size);
  if (factor > 1) image = reduced(image, factor);
  if (channels < image.channels) image = grey(image, resize === null ? torchGrey : pillowGrey);
  image = resize === null ? squeezed(image, size) : cut(image, size, resize, interpolation);
  if (channels === image.channels) return image.values;
  const repeated = new Uint8Array(channels * size * size);
  for (let channel = 0; channel < channels; channel++) repeated.set(image.values, channel * size * size);
  return repeated;
}

/** To a square, whatever the shape: pixels.py's fit. */
function squeezed(image, size) {
  if (size > 1) return turned(torchRows(turned(torchRows(image, size)), size));
  const { channels, height, width, values } = image, count = height * width;
  const means = Array.from({ length: channels }, (_, channel) =>
    even(values.subarray(channel * count, (channel + 1) * count).reduce((a, b) => a + b, 0) / count));
  return { channels, height: 1, width: 1, values: Uint8Array.from(means) };
}

/** The shorter side to a length, and a square out of the middle: pixels.py's to_input. */
function cut(image, size, resize, interpolation) {
  const ends = (side) => Math.floor(Math.max(0, side - LONGEST * Math.min(image.width, image.height)) / 2);
  const left = ends(image.width), top = ends(image.height);
  if (left || top) image = cropped(image, left, top, image.width - left, image.height - top);
  const shorter = Math.min(image.width, image.height);
  const wide = Math.floor((resize * image.width) / shorter), high = Math.floor((resize * image.height) / shorter);
  image = pillowRows(image, wide, interpolation);
  image = turned(pillowRows(turned(image), high, interpolation));
  const [x, y] = [even((wide - size) / 2), even((high - size) / 2)];
  return cropped(image, x, y, x + size, y + size);
}

/** A decoded picture as an image of three planes, what is transparent on white. */
function planesOf(picture, width, height) {
  const values = new Uint8Array(3 * width * height), strip = Math.max(1, Math.floor(LARGE / width));
  const canvas = document.createElement("canvas"); // by strips: phones have no canvas for 50 million pixels
  canvas.width = width;
  canvas.height = Math.min(height, strip);
  const paper = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += strip) {
    const rows = Math.min(strip, height - top);
    paper.fillStyle = "#fff";
    paper.fillRect(0, 0, width, rows);
    paper.drawImage(picture, 0, -top);
    const { data } = paper.getImageData(0, 0, width, rows);
    for (let channel = 0; channel < 3; channel++) {
      const begin = (channel * height + top) * width;
      for (let at = 0; at < width * rows; at++) values[begin + at] = data[4 * at + channel];
    }
  }
  return { channels: 3, height, width, values };
}

/** An image file's pixels, upright, as numbers of the file: no colour profile is applied, as osr predict applies none. */
async function decoded(blob, name) {
  const png = await pngHead(blob);
  if (png) checkSize(png, name);
  let bitmap;
  try {
    if (png && (png.deep || png.alpha)) return await pngPixels(blob, png);
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch (error) {
    throw new Error(`${name} is no image that this browser can read: take a PNG, JPEG or WebP`);
  }
  checkSize(bitmap, name);
  const image = planesOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return image;
}

function checkSize({ width, height }, name) {
  if (width * height > MAX_PIXELS || Math.max(width, height) > MAX_SIDE)
    throw new Error(`${name} has ${width} × ${height} pixels, more than this page takes: make it smaller`);
}

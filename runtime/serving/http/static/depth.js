// Depths: what the page of a depth bundle shows. They come as floats and are coloured here, near ones bright.

const COLOURS = "/* colours */".match(/.{6}/g); // red, green, blue in hexadecimal, from dark to bright
const MARKED = 0.05; // of the mean depth: a change from which a pixel is marked

let span = [0, 1]; // the smallest and the largest depth of what is shown

const task = {
  name: "Depth", opacity: 100, path: "/v1/depth", saved: "png", doing: "Estimating the depth of", shown: "its depth",
  invitation: "Point at the image to see its depth.",
  size: headers => [headers.get("X-Depth-Width"), headers.get("X-Depth-Height")],
  values: (headers, body) => { // little-endian, whatever this machine is
    const view = new DataView(body);
    return Float32Array.from({ length: body.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
  },
  begin: () => {},
  summary: () => `${amount(span[0])} to ${amount(span[1])}`,
  about: () => {
    if (!isMetric()) return `relative depth, larger is ${model.depth.larger_is}`;
    return model.depth.largest === null ? "depth in metres" : `depth up to ${model.depth.largest} metres`;
  },
  figure: accuracy => `AbsRel ${accuracy.AbsRel.toFixed(4)}`,
  kept: agreement => `depths differ from FP32's by ${(100 - agreement).toFixed(2)} % of their mean`,
  unlit: () => {},
  colourAt: value => Number.isFinite(value) ? `#${COLOURS[level(value)]}` : "#000",
  compare: change, coloured, list: showBar, words, listen: () => {},
};

const isMetric = () => model.depth.unit === "metres";
const isNearLarge = () => model.depth.larger_is === "nearer";
const plain = value => Number(value.toPrecision(3)).toString();
const amount = value => !Number.isFinite(value) ? "no depth" : isMetric() ? `${plain(value)} m` : plain(value);

function level(value) { // of the colours
  const share = Math.min(1, Math.max(0, (value - span[0]) / (span[1] - span[0] || 1)));
  return Math.round((COLOURS.length - 1) * (isNearLarge() ? share : 1 - share));
}

function change(first, second) {
  let total = 0, sum = 0, largest = 0, place = 0, marked = 0;
  const count = first.values.length;
  for (let pixel = 0; pixel < count; pixel++) {
    const difference = Math.abs(second.values[pixel] - first.values[pixel]);
    total += Math.abs(first.values[pixel]);
    sum += difference;
    if (difference > largest) [largest, place] = [difference, pixel];
  }
  const least = MARKED * total / count;
  const marks = marksWhere(pixel => {
    const isMarked = !(Math.abs(second.values[pixel] - first.values[pixel]) <= least);
    marked += isMarked;
    return isMarked;
  });
  return {
    marks, figure: `${(100 * sum / total).toFixed(2)} %`, unit: "of the mean depth, on average",
    lines: [["Largest difference", `${amount(largest)} at (${place % first.width}, ${Math.floor(place / first.width)})`],
      [`By more than ${100 * MARKED} % of the mean`, percent(marked / count)]],
  };
}

function coloured(result) { // a colour for each pixel of the image
  const colours = new Uint32Array(COLOURS.length);
  const bytes = new Uint8Array(colours.buffer); // red, green, blue, alpha in memory, as ImageData has them
  COLOURS.forEach((colour, index) => {
    bytes.set([...[0, 2, 4].map(start => parseInt(colour.slice(start, start + 2), 16)), 255], 4 * index);
  });
  return pixel => Number.isFinite(result.values[pixel]) ? colours[level(result.values[pixel])] : 0;
}

function words(found) { // the pixel's depth in each result
  const unit = isMetric() ? "" : ` (relative, larger is ${model.depth.larger_is})`;
  const texts = found.map(amount);
  at("pointed").style.left = `${100 * (1 - level(found[0]) / (COLOURS.length - 1))}%`;
  at("pointed").hidden = !Number.isFinite(found[0]);
  return (texts.length === 2 && texts[0] !== texts[1] ? `${texts[0]} → ${texts[1]}` : texts[0]) + unit;
}

function showBar() {
  span = [Infinity, -Infinity];
  for (const { values } of shown) {
    for (const value of values) {
      if (!Number.isFinite(value)) continue;
      if (value < span[0]) span[0] = value;
      if (value > span[1]) span[1] = value;
    }
  }
  const [near, far] = isNearLarge() ? [span[1], span[0]] : span;
  at("bar").style.background = `linear-gradient(to left, ${COLOURS.map(colour => `#${colour}`).join(", ")})`;
  at("bar").setAttribute("aria-label", `Colours: near, ${amount(near)}, is bright; far, ${amount(far)}, is dark`);
  const middle = amount((near + far) / 2) + (isMetric() ? "" : `, relative, larger is ${model.depth.larger_is}`);
  at("ends").replaceChildren(...[`near ${amount(near)}`, middle, `${amount(far)} far`].map(text => make("span", text)));
  at("pointed").hidden = true;
  paint();
}

// Masks: what the page of a segmentation bundle shows. They come as raw indices and are coloured here: no colour is ever read back.

const NOBODY = -1;

let hidden = new Set(); // classes that are not coloured
let lit = NOBODY; // the class whose legend line is pointed at

const task = {
  name: "Mask", opacity: 60, path: "/v1/segment", saved: "mask", doing: "Segmenting", shown: "segmented",
  invitation: "Point at the image to see its classes.",
  size: headers => [headers.get("X-Mask-Width"), headers.get("X-Mask-Height")],
  values: (headers, body) => headers.get("X-Mask-Type") === "uint16" ? wide(body) : new Uint8Array(body),
  begin: () => { hidden = new Set(); },
  summary: () => counted(shares().length, "class", "classes"),
  about: () => counted(model.classes.length, "class", "classes"),
  figure: accuracy => `mIoU ${accuracy.mIoU.toFixed(2)}`,
  kept: agreement => `${agreement.toFixed(2)} % of pixels get the class that FP32 gives`,
  unlit: () => { lit = NOBODY; },
  compare, coloured, colourAt: index => model.classes[index]?.colour ?? "#000", list: listClasses, words, listen: listenToLegend,
};

function wide(body) { // little-endian, whatever this machine is
  const view = new DataView(body);
  return Uint16Array.from({ length: body.byteLength / 2 }, (_, index) => view.getUint16(2 * index, true));
}

function shares() { // of the first result, largest first
  const counts = new Float64Array(model.classes.length);
  for (const index of shown[0].values) counts[index]++;
  return [...counts.entries()].filter(([, count]) => count).sort((a, b) => b[1] - a[1])
    .map(([index, count]) => ({ index, share: count / shown[0].values.length }));
}

function compare(first, second) {
  const pairs = new Map();
  let count = 0;
  const marks = marksWhere(pixel => {
    const a = first.values[pixel], b = second.values[pixel];
    if (a === b) return false;
    count++;
    const key = a * 65536 + b;
    pairs.set(key, (pairs.get(key) ?? 0) + 1);
    return true;
  });
  const name = index => model.classes[index].name;
  return {
    marks, figure: number(count), unit: `${count === 1 ? "pixel" : "pixels"}, ${percent(count / first.values.length)}`,
    lines: [...pairs].sort((a, b) => b[1] - a[1]).slice(0, 5)
      .map(([key, pixels]) => [`${name(Math.floor(key / 65536))} → ${name(key % 65536)}`, number(pixels)]),
  };
}

const rgb = colour => [1, 3, 5].map(start => parseInt(colour.slice(start, start + 2), 16));

function coloured(result) { // a colour for each pixel of the image
  const colours = new Uint32Array(model.classes.length);
  const bytes = new Uint8Array(colours.buffer); // red, green, blue, alpha in memory, as ImageData has them
  model.classes.forEach(({ colour }, index) => {
    const alpha = hidden.has(index) ? 0 : lit === NOBODY || lit === index ? 255 : 56;
    bytes.set([...rgb(colour), alpha], 4 * index);
  });
  return pixel => colours[result.values[pixel]];
}

function words(found) { // of the pixel's class in each result
  const names = found.map(index => model.classes[index]?.name ?? "ignored");
  return found.length === 2 && found[0] !== found[1] ? `${names[0]} → ${names[1]}` : names[0];
}

function swatch(index) {
  const element = make("span", "", { className: "swatch" });
  element.style.background = model.classes[index].colour;
  return element;
}

function listClasses() {
  at("legend").replaceChildren(...shares().map(({ index, share }) => {
    const button = make("button", "", { type: "button" });
    button.setAttribute("aria-pressed", String(!hidden.has(index)));
    button.append(swatch(index), make("span", model.classes[index].name, { className: "name" }),
      make("span", percent(share), { className: "share" }));
    button.onclick = () => {
      if (!hidden.delete(index)) hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      legendChanged();
    };
    button.onpointerenter = () => light(index);
    button.onpointerleave = () => light(NOBODY);
    const item = make("li");
    item.append(button);
    return item;
  }));
  legendChanged();
}

function legendChanged() {
  at("all").textContent = hidden.size ? "Show all" : "Hide all";
  paint();
}

function light(index) {
  lit = hidden.has(index) ? NOBODY : index;
  paint();
}

function listenToLegend() {
  at("all").onclick = () => {
    hidden = hidden.size ? new Set() : new Set(shares().map(({ index }) => index));
    for (const button of at("legend").querySelectorAll("button")) button.setAttribute("aria-pressed", String(!hidden.size));
    legendChanged();
  };
}

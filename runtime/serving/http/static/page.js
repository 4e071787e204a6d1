// The page of `denseport serve`, of either task: `task`, in the file before this one, says what it shows.

const LARGEST_VIEW = 2048; // px of the longer side that are drawn; pointing and counting use every pixel
const RETRIES = 3; // when the server is full
const NAMES = { queue: "Waiting", decode: "Decoding", open: "Loading the model", preprocess: "Preparing", network: "Network",
  postprocess: task.name, encode: "Encoding" };

const at = id => document.getElementById(id);
const number = value => value.toLocaleString("en");
const percent = share => share >= 0.0005 || share === 0 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";

let model = null;
let image = null; // { file, name, bitmap }
let shown = []; // one or two results: { artifact, values, width, height, stages, trip }
let differing = null; // { marks, figure, unit, lines }
let running = null; // AbortController of what is under way
let cursor = { x: 0, y: 0 }; // of the keyboard, px of the image

// The server

class Failure extends Error {
  constructor(error, remedy) { super(error); this.remedy = remedy; }
}

async function ask(format, artifact, signal) {
  const form = new FormData();
  form.append("image", image.file);
  const query = new URLSearchParams({ format, artifact });
  for (let attempt = 0; ; attempt++) {
    const start = performance.now();
    let response;
    try {
      response = await fetch(`${task.path}?${query}`, { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer.", "Check that it is running, then try again.");
    }
    if (response.ok) {
      const body = await response.arrayBuffer();
      return { headers: response.headers, body, trip: performance.now() - start };
    }
    if (response.status === 503 && attempt < RETRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      say(`The server is busy; trying again in ${seconds} s …`);
      await new Promise(done => setTimeout(done, 1000 * seconds));
      signal?.throwIfAborted();
      continue;
    }
    const told = await response.json().catch(() => ({}));
    throw new Failure(told.error ?? `The server answered ${response.status}.`, told.remedy);
  }
}

async function result(artifact, signal) {
  const { headers, body, trip } = await ask("raw", artifact, signal);
  const values = task.values(headers, body);
  const [width, height] = task.size(headers).map(Number);
  if (values.length !== width * height) throw new Failure("The answer is incomplete.", "Try again.");
  const stages = (headers.get("Server-Timing") ?? "").split(", ").map(part => part.split(";dur="));
  return { artifact: headers.get("X-Artifact"), values, width, height, stages, trip };
}

// What a user does

async function take(file, name) {
  if (!model) return;
  complain(null);
  try {
    if (!file.type.startsWith("image/")) throw new Failure(`${name} is not an image.`, "Choose a JPEG, PNG, WebP or BMP file.");
    if (file.size > model.max_bytes) {
      throw new Failure(`${name} has ${megabytes(file.size)}; this server takes ${megabytes(model.max_bytes)} at most.`,
        "Scale it down, or save it as JPEG.");
    }
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Failure(`${name} cannot be read as an image.`, "It may be damaged: copy it again, or convert it to JPEG.");
    });
    image = { file, name, bitmap };
  } catch (error) {
    complain(error);
    return;
  }
  task.begin();
  cursor = { x: bitmapWidth() >> 1, y: bitmapHeight() >> 1 };
  await run();
}

async function run() {
  if (!image) return;
  running?.abort();
  const mine = running = new AbortController();
  complain(null);
  say(`${task.doing} ${image.name} …`);
  document.body.classList.add("busy");
  try {
    const found = [];
    for (const artifact of [at("artifact").value, at("versus").value].filter(Boolean)) {
      found.push(await result(artifact, mine.signal));
    }
    if (found.some(each => each.width !== bitmapWidth() || each.height !== bitmapHeight())) {
      throw new Failure("The browser and the server read different sizes from this image.", "Convert it to PNG.");
    }
    shown = found;
    differing = found.length === 2 ? task.compare(...found) : null;
    present();
    say(`${image.name}: ${number(shown[0].width)} × ${number(shown[0].height)}, ${task.summary()}`);
  } catch (error) {
    if (mine.signal.aborted) return;
    complain(error);
  } finally {
    if (running === mine) document.body.classList.remove("busy");
  }
}

async function sample() {
  complain(null);
  const response = await fetch("/sample.jpg").catch(() => null);
  if (!response?.ok) return complain(new Failure("The sample cannot be loaded.", "Check that the server is running."));
  await take(await response.blob(), "sample.jpg");
}

const bitmapWidth = () => image.bitmap.width;
const bitmapHeight = () => image.bitmap.height;
const megabytes = bytes => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

// What is drawn

function viewSize() {
  const scale = Math.min(1, LARGEST_VIEW / Math.max(bitmapWidth(), bitmapHeight()));
  return { scale, columns: Math.max(1, Math.round(bitmapWidth() * scale)), rows: Math.max(1, Math.round(bitmapHeight() * scale)) };
}

function marksWhere(differs) { // pixels of the view, in which a pixel of the image differs
  const { scale, columns, rows } = viewSize();
  const marks = new Uint8Array(columns * rows);
  for (let y = 0, pixel = 0; y < bitmapHeight(); y++) {
    const row = Math.min(rows - 1, Math.floor(y * scale)) * columns;
    for (let x = 0; x < bitmapWidth(); x++, pixel++) {
      if (differs(pixel)) marks[row + Math.min(columns - 1, Math.floor(x * scale))] = 1;
    }
  }
  return marks;
}

function drawn(result, columns, rows) {
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colour = task.coloured(result);
  const across = Uint32Array.from({ length: columns }, (_, x) => Math.floor((x + 0.5) * result.width / columns));
  for (let y = 0, pixel = 0; y < rows; y++) {
    const row = Math.floor((y + 0.5) * result.height / rows) * result.width;
    for (let x = 0; x < columns; x++, pixel++) pixels[pixel] = colour(row + across[x]);
  }
  return image;
}

function marked(columns, rows) {
  const image = new ImageData(columns, rows);
  const mark = getComputedStyle(document.documentElement).getPropertyValue("--mark").trim();
  const [red, green, blue] = [1, 3, 5].map(start => parseInt(mark.slice(start, start + 2), 16));
  const pixels = new Uint32Array(image.data.buffer);
  const [ink] = new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer);
  const reach = Math.round(columns / 500); // a single pixel would not be seen
  differing.marks.forEach((isMarked, pixel) => {
    if (!isMarked) return;
    const x = pixel % columns, y = (pixel - x) / columns;
    for (let row = Math.max(0, y - reach); row <= Math.min(rows - 1, y + reach); row++) {
      pixels.fill(ink, row * columns + Math.max(0, x - reach), row * columns + Math.min(columns - 1, x + reach) + 1);
    }
  });
  return image;
}

function canvas(view, kind, columns, rows) {
  const element = view.querySelector(`.${kind}`);
  element.width = columns;
  element.height = rows;
  return element.getContext("2d");
}

function paint() { // the colours alone
  const { columns, rows } = viewSize();
  views().forEach((view, place) => canvas(view, "colours", columns, rows).putImageData(drawn(shown[place], columns, rows), 0, 0));
}

function paintMarks() {
  const { columns, rows } = viewSize();
  for (const view of views()) {
    const context = canvas(view, "marks", columns, rows);
    if (differing && at("mark").checked) context.putImageData(marked(columns, rows), 0, 0);
  }
}

const views = () => [...document.querySelectorAll(".view")].slice(0, shown.length);

function present() {
  at("empty").hidden = true;
  for (const id of ["views", "below", "details", "again", "result"]) at(id).hidden = false;
  at("second").hidden = shown.length < 2;
  at("views").classList.toggle("two", shown.length === 2);
  const { columns, rows } = viewSize();
  views().forEach((view, place) => {
    canvas(view, "image", columns, rows).drawImage(image.bitmap, 0, 0, columns, rows);
    view.setAttribute("aria-label", `${image.name}, ${task.shown} by ${shown[place].artifact}`);
    view.nextElementSibling.textContent = shown.length === 2 ? shown[place].artifact : "";
    view.querySelector(".cross").hidden = true;
    view.classList.toggle("small", columns < 512); // is enlarged: its pixels should be seen
  });
  task.list();
  paintMarks();
  fade();
  listDifferences();
  listTimes();
}

function fade() {
  at("percent").textContent = `${at("opacity").value} %`;
  for (const element of document.querySelectorAll(".colours")) element.style.opacity = at("opacity").value / 100;
}

function make(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

function listDifferences() {
  at("differences").hidden = !differing;
  if (!differing) return;
  at("differing").replaceChildren(`${differing.figure} `, make("small", differing.unit));
  at("changes").replaceChildren(...differing.lines.map(([name, value]) => {
    const item = make("li");
    item.append(make("span", name), make("span", value));
    return item;
  }));
}

function listTimes() {
  const milliseconds = value => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
  const head = make("tr");
  head.append(make("td"), ...shown.map(({ artifact }) => make("th", artifact, { scope: "col" })));
  const order = Object.keys(NAMES);
  const stages = [...new Set(shown.flatMap(({ stages }) => stages.map(([stage]) => stage)))]
    .sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const lines = stages.map(stage => [NAMES[stage] ?? stage,
    ...shown.map(({ stages }) => stages.find(([name]) => name === stage)).map(found => found ? milliseconds(Number(found[1])) : "")]);
  lines.push(["Round trip", ...shown.map(({ trip }) => milliseconds(trip))]);
  at("times").tHead.replaceChildren(head);
  at("times").tBodies[0].replaceChildren(...lines.map(([name, ...values]) => {
    const line = make("tr");
    line.append(make("th", name, { scope: "row" }), ...values.map(value => make("td", value)));
    return line;
  }));
}

// Pointing

function point(x, y) { // a text for what the pixel has
  const found = shown.map(({ values, width }) => values[y * width + x]);
  const text = task.words(found);
  at("value").textContent = `${text} (${x}, ${y})`;
  for (const element of [at("under"), at("tip")]) {
    element.querySelector(".swatch").style.background = task.colourAt(found[0]);
  }
  return text;
}

function onPointer(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const inside = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
  cursor = { x: inside((event.clientX - box.left) / box.width, bitmapWidth()),
    y: inside((event.clientY - box.top) / box.height, bitmapHeight()) };
  const tip = at("tip");
  tip.lastElementChild.textContent = point(cursor.x, cursor.y);
  tip.hidden = false;
  const left = Math.min(event.clientX + 16, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  cross(false);
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  const step = STEPS[event.key];
  if (!step || !shown.length || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const far = event.shiftKey ? 10 : 1;
  cursor = { x: Math.min(bitmapWidth() - 1, Math.max(0, cursor.x + far * step[0])),
    y: Math.min(bitmapHeight() - 1, Math.max(0, cursor.y + far * step[1])) };
  at("spoken").textContent = point(cursor.x, cursor.y);
  at("tip").hidden = true;
  cross(true);
}

function cross(visible) {
  for (const view of views()) {
    const mark = view.querySelector(".cross");
    mark.hidden = !visible;
    mark.style.left = `${100 * (cursor.x + 0.5) / bitmapWidth()}%`;
    mark.style.top = `${100 * (cursor.y + 0.5) / bitmapHeight()}%`;
  }
}

// Files to keep

function save(blob, ending) {
  const link = make("a", "", { href: URL.createObjectURL(blob), download: image.name.replace(/\.[^.]*$/, "") + ending });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function saveResult() {
  complain(null);
  try {
    const { body } = await ask(task.saved, shown[0].artifact);
    save(new Blob([body], { type: "image/png" }), `_${task.name.toLowerCase()}.png`);
  } catch (error) {
    complain(error);
  }
}

async function saveOverlay() { // as it is seen, at the image's own size
  const [width, height] = [bitmapWidth(), bitmapHeight()];
  const whole = new OffscreenCanvas(width, height), colours = new OffscreenCanvas(width, height);
  task.unlit();
  colours.getContext("2d").putImageData(drawn(shown[0], width, height), 0, 0);
  const context = whole.getContext("2d");
  context.drawImage(image.bitmap, 0, 0);
  context.globalAlpha = at("opacity").value / 100;
  context.drawImage(colours, 0, 0);
  save(await whole.convertToBlob({ type: "image/png" }), "_overlay.png");
}

// Words

function say(text) { at("status").textContent = text; }

function complain(error) {
  if (!error) return at("error").replaceChildren();
  if (!(error instanceof Failure)) console.error(error);
  const box = make("div");
  box.append(make("strong", error.message), ...error.remedy ? [" ", make("span", error.remedy)] : []);
  at("error").replaceChildren(box);
  say("");
}

function describeModel() {
  document.title = `${model.name} · Denseport`;
  at("name").textContent = model.name;
  at("about").textContent = `${model.architecture}, ${(model.parameters / 1e6).toFixed(1)} M parameters, `
    + `${task.about()}; ${model.running}`;
  at("accepts").textContent = `JPEG, PNG, WebP or BMP, up to ${megabytes(model.max_bytes)} and ${Math.floor(model.max_pixels / 1e6)} megapixels`;
  const option = ({ name, precision, accuracy, runs_here: runs }) => make("option",
    [name, precision.toUpperCase(), accuracy === null ? "" : task.figure(accuracy), runs ? "" : "does not run here"].filter(Boolean).join(" · "),
    { value: name, disabled: !runs });
  at("artifact").append(...model.artifacts.map(option));
  at("artifact").value = model.default_artifact;
  at("versus").append(make("option", "nothing", { value: "" }), ...model.artifacts.map(option));
  at("versus").disabled = model.artifacts.filter(each => each.runs_here).length < 2;
  describeArtifact();
}

function describeArtifact() {
  const chosen = at("artifact").value;
  const { accuracy, agreement } = model.artifacts.find(each => each.name === chosen);
  const parts = [];
  if (accuracy) parts.push(`${task.figure(accuracy)} on ${counted(accuracy.images, "image", "images")}`);
  if (agreement !== null) parts.push(task.kept(agreement));
  at("measured").textContent = parts.join("; ") || "Its accuracy has not been recorded.";
  for (const option of at("versus").options) option.hidden = option.value === chosen;
  if (at("versus").value === chosen) at("versus").value = "";
}

function listen() {
  for (const element of document.querySelectorAll("[data-of]")) {
    if (element.dataset.of !== task.name) element.remove();
  }
  at("value").textContent = task.invitation;
  at("opacity").value = task.opacity;
  at("save-result").textContent = task.name;
  at("save-result").setAttribute("aria-label", `Download the ${task.name.toLowerCase()}`);
  for (const id of ["choose", "another"]) at(id).onclick = () => at("file").click();
  for (const id of ["sample", "resample"]) at(id).onclick = sample;
  at("file").onchange = () => {
    const [file] = at("file").files;
    at("file").value = ""; // the same file may be chosen again
    if (file) take(file, file.name);
  };
  at("artifact").onchange = () => { describeArtifact(); run(); };
  at("versus").onchange = run;
  at("opacity").oninput = fade;
  at("mark").onchange = paintMarks;
  at("save-result").onclick = saveResult;
  at("save-overlay").onclick = saveOverlay;
  for (const view of document.querySelectorAll(".view")) {
    view.onpointermove = view.onpointerdown = onPointer;
    view.onpointerleave = () => { at("tip").hidden = true; };
    view.onkeydown = onKey;
  }
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(file, file.name);
  });
  addEventListener("paste", event => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) take(file, file.name);
  });
}

listen();
task.listen();
try {
  const response = await fetch("/v1/model");
  if (!response.ok) throw new Error(response.status);
  model = await response.json();
  describeModel();
  say("Ready.");
} catch {
  complain(new Failure("The server does not answer.", "Check that it is running, then load this page again."));
}

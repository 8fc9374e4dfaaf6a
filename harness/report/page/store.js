// Where a case's details, pictures and sounds come from: the page itself, or files beside it that are loaded when needed. Those
// are scripts, because a page opened from a disk may read nothing else.

const loaded = { cases: {}, pictures: {} };
const waiting = {};

/** Called by the files beside the page. */
function loraDrift(kind, values) {
  Object.assign(loaded[kind], values);
}

function loadFile(name) {
  waiting[name] ??= new Promise((resolve, reject) => {
    const script = make("script", { src: `report-files/${name}.js` });
    script.onload = resolve;
    script.onerror = () => reject(new Error(`report-files/${name}.js could not be loaded: it belongs beside this page`));
    document.head.append(script);
  });
  return waiting[name];
}

async function caseDetails(row) {
  const inline = document.getElementById(`data-${row.id}`);
  if (inline) return JSON.parse(inline.textContent);
  await loadFile(row.file);
  return loaded.cases[row.id];
}

/** The data URI of the picture or sound named `key`. */
async function source(key) {
  const inline = document.querySelector(`:is(img, audio)[data-key="${key}"]`);
  if (!inline) await loadFile(key);
  return inline ? inline.src : loaded.pictures[key];
}

/** A canvas that holds the picture named `key`. */
async function picture(key) {
  const image = new Image();
  image.src = await source(key);
  try {
    await image.decode();
  } catch {
    throw new Error("this picture cannot be decoded");
  }
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
  return canvas;
}

/** The output from its golden and the change that leads to it (see pictures.py). */
function changed(golden, change) {
  const canvas = make("canvas", { width: golden.width, height: golden.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = context.createImageData(golden.width, golden.height);
  const [from, by] = [pixelsOf(golden), pixelsOf(change)];
  for (let i = 0; i < from.length; i++) pixels.data[i] = i % 4 === 3 ? 255 : (from[i] + by[i]) & 255;
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** {golden, output}: canvases or null, and {problems}: why one is null. */
async function picturesOf(shown) {
  const found = { golden: null, output: null, problems: { golden: shown.problems[0], output: shown.problems[1] } };
  const get = async (name, key, make) => {
    if (!key) return;
    try {
      found[name] = await make(key);
    } catch (error) {
      found.problems[name] = error.message;
    }
  };
  await get("golden", shown.golden, picture);
  if (shown.change) await get("output", shown.output, async (key) => changed(found.golden, await picture(key)));
  else await get("output", shown.output, picture);
  return found;
}

// Opens the report's viewer for a sample: zoom, slider, blink, frames, and the pixel under the cursor.

const NAMES = { golden: "sample", output: "ours" };
let opened = null;

/** A canvas with what `image` shows; of a video, its frames one below the other. */
async function strip(image) {
  const whole = new Image();
  whole.src = image.dataset.strip ?? image.src;
  await whole.decode();
  const canvas = make("canvas", { width: whole.naturalWidth, height: whole.naturalHeight });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(whole, 0, 0);
  return canvas;
}

async function open(cell, button) {
  opened?.viewer.close();
  opened?.viewer.root.remove();
  opened?.button.setAttribute("aria-expanded", "false");
  if (opened?.button === button) return (opened = null);
  const [golden, output] = await Promise.all([...cell.querySelectorAll("img[data-part]")].map(strip));
  const viewer = new Viewer({ golden, output, problems: { golden: "", output: "" } }, Number(cell.dataset.frames), Number(cell.dataset.fps), NAMES);
  opened = { viewer, button };
  button.setAttribute("aria-expanded", "true");
  cell.closest("section").append(viewer.root);
  viewer.refit(true);
  viewer.root.scrollIntoView({ block: "nearest" });
}

for (const cell of document.querySelectorAll("article[data-frames]")) {
  const button = make("button", { type: "button", "aria-expanded": "false", "aria-label": `Compare: ${cell.querySelector("h3").textContent}` }, "Compare");
  button.addEventListener("click", () => open(cell, button));
  cell.querySelector(".pictures").after(button);
}
oneAtATime();
document.documentElement.dataset.ready = "";

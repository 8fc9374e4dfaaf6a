// Elements from data. Text always goes in as text: nothing here reads markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== "" && value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(Boolean)); // so that `condition && make(...)` may stand among them
  return element;
}

function chip(verdict) {
  return make("span", { class: `chip ${verdict}` }, verdict);
}

/** `backticks` become <code>. */
function withCode(text) {
  return text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));
}

/** Three digits that matter: 0.00123, 1.2e-5. */
function short(number) {
  if (number === null) return "absent or of another shape";
  const rounded = Number(number.toPrecision(3));
  return rounded !== 0 && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
}

/** Starting a sound stops the others, so that they can be told apart. */
function oneAtATime() {
  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, { capture: true }); // it does not bubble
}

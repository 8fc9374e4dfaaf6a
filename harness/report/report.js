"use strict";
// Adds to a page that is complete without it: the frame scrubber, flipping output and golden, and the filter.

function scrubber(pictures) {
  const range = pictures.querySelector("input[type=range]");
  const label = pictures.querySelector("output");
  const play = pictures.querySelector(".play");
  const show = (frame) => {
    range.value = frame;
    label.textContent = `${frame + 1} / ${pictures.dataset.frames}`;
    pictures.style.setProperty("--frame", frame);
    pictures.dataset.frame = frame;
  };
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  };
  const start = () => {
    const delay = 1000 / (Number(pictures.dataset.fps) || 8);
    timer = setInterval(() => show((Number(range.value) + 1) % Number(pictures.dataset.frames)), delay);
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Pause";
  };
  range.addEventListener("input", () => { stop(); show(Number(range.value)); });
  play.addEventListener("click", () => (timer ? stop() : start()));
  show(0);
}

function flipper(pictures) {
  const button = pictures.querySelector(".flip");
  const golden = pictures.querySelector(".pane.golden img").src;
  const pane = pictures.querySelector(".pane.output");
  const image = pane.querySelector("img");
  const output = image.src;
  button.addEventListener("click", () => {
    const flipped = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(flipped));
    button.textContent = flipped ? "Flip back to output" : "Flip output to golden";
    image.src = flipped ? golden : output;
    pane.querySelector("b").textContent = flipped ? "golden" : "output";
    pane.classList.toggle("flipped", flipped);
  });
}

function filter(label) {
  const input = label.querySelector("input");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of document.querySelectorAll("table.summary tbody tr")) {
      row.hidden = !words.every((word) => row.dataset.text.toLowerCase().includes(word));
    }
  });
  label.hidden = false;
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const section = target && target.closest("details.case");
  if (section) {
    section.open = true;
    target.scrollIntoView();
  }
}

const videos = document.querySelectorAll(".pictures.video");
videos.forEach(scrubber);
document.querySelectorAll(".pictures:has(.flip)").forEach(flipper);
document.querySelectorAll(".tools").forEach((tools) => { tools.hidden = tools.childElementCount === 0; });
document.querySelectorAll("label.filter").forEach(filter);
window.addEventListener("hashchange", openTarget);
openTarget();
document.documentElement.dataset.scrubbers = videos.length;

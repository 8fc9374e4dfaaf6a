// Puts the page together: which case is open (the address says it), keys, and the theme.

const rows = JSON.parse(document.getElementById("index").textContent).map(asRow);
const overview = document.getElementById("overview");
const panel = document.getElementById("case");
const place = panel.querySelector(".place");
const list = new CaseList(document.getElementById("cases"), rows, (row) => go(row.id));
let open = null; // {row, viewer}
let theme = ""; // "light" or "dark" once the reader has chosen

function setTheme(chosen) {
  theme = chosen;
  document.documentElement.style.colorScheme = chosen;
}

function asRow(values) {
  const [id, name, model, status, kind, lora, at, where, part, cause, about, changed, tier, device, dtype, step, max, l2, ssim, flip, caught, controls, seconds, frames, shown, outside, file, golden] = values;
  const row = { id, name, where, shown: { max: shown[0], l2: shown[1], ssim: shown[2] }, outside, file, golden, step, max, l2, ssim, flip, caught, controls, seconds, frames };
  for (const [key, value] of Object.entries({ case: name, model, status, kind, lora, at, part, cause, changed, tier, device, dtype })) row[key] = value.toLowerCase();
  row.words = `${name} ${status} ${where} ${cause} ${about} ${tier} ${device}`.toLowerCase();
  return row;
}

/** Where the reader is, with the theme that was chosen: `#case-…`, `#q=…`, `#…&theme=dark`. */
function address(place) {
  return `#${place}${theme ? `&theme=${theme}` : ""}`;
}

function go(place) {
  location.hash = address(place);
}

/** Another address for the same view: nothing to go back to. */
function note(place) {
  if ((location.hash || "#") !== address(place)) history.replaceState(null, "", address(place));
}

function noteFilter() {
  note(list.input.value && `q=${encodeURIComponent(list.input.value)}`);
}

/** #case-… shows a case, #q=… filters, anything else is the overview. */
async function route() {
  const [written, ...options] = location.hash.slice(1).split("&");
  const chosen = options.find((option) => /^theme=(light|dark)$/.test(option));
  if (chosen) setTheme(chosen.slice("theme=".length));
  note(written); // links of the page know no theme
  const hash = decodeURIComponent(written);
  const row = rows.find((candidate) => candidate.id === hash);
  open?.viewer?.close();
  const came = open?.row;
  open = null;
  if (row) return showCase(row);
  panel.hidden = true;
  overview.hidden = false;
  place.replaceChildren();
  document.title = overview.dataset.title;
  if (!hash) noteFilter();
  if (hash.startsWith("q=")) {
    if (list.input.value !== hash.slice(2)) list.setQuery(hash.slice(2));
    document.getElementById("cases").scrollIntoView();
  } else if (came) {
    document.getElementById(`row-${came.id}`)?.querySelector("a").focus();
  } else if (hash) {
    document.getElementById(hash)?.scrollIntoView();
  }
}

async function showCase(row) {
  const mine = (open = { row, viewer: null });
  const neighbours = { previous: list.neighbour(row, -1), next: list.neighbour(row, 1) };
  for (const [name, neighbour] of Object.entries(neighbours)) {
    const link = panel.querySelector(`.${name}`);
    link.toggleAttribute("data-none", !neighbour);
    if (neighbour) link.href = `#${neighbour.id}`;
    else link.removeAttribute("href");
    link.title = neighbour?.name ?? "";
  }
  panel.querySelector(".position").textContent = list.shown.includes(row) ? `${list.shown.indexOf(row) + 1} of ${list.shown.length}` : "";
  let view;
  try {
    [view, mine.viewer] = await caseView(row, await caseDetails(row));
  } catch (error) {
    view = make("p", { class: "message error" }, error.message);
  }
  if (open !== mine) return mine.viewer?.close(); // another case was opened meanwhile
  overview.hidden = true;
  panel.hidden = false;
  place.replaceChildren(view);
  mine.viewer?.refit();
  document.title = `${row.name}: ${row.status}`;
  scrollTo(0, 0);
  view.querySelector("h2")?.focus({ preventScroll: true });
  panel.dataset.ready = row.id;
}

const KEYS = {
  "/": () => { go(""); list.input.focus(); },
  j: () => step(1),
  k: () => step(-1),
  Escape: () => open && go(""),
  "?": () => document.getElementById("keys").showModal(),
  ".": () => open?.viewer?.frames > 1 && open.viewer.seek(open.viewer.frame + 1),
  ",": () => open?.viewer?.frames > 1 && open.viewer.seek(open.viewer.frame - 1),
  " ": () => (open?.viewer?.view === "blink" ? open.viewer.toggleBlink() : open?.viewer?.frames > 1 && open.viewer.togglePlay()),
};
Object.keys(VIEWS).forEach((view, i) => { KEYS[i + 1] = () => open?.viewer?.show(view); });

function step(by) {
  if (!open) return list.move(by);
  const neighbour = list.neighbour(open.row, by);
  if (neighbour) go(neighbour.id);
}

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (target.matches("input[type=search]")) {
    if (event.key === "Escape" || event.key === "Enter") list.move(1);
    return;
  }
  if (event.key === " " && target.matches("button, summary, a, input, audio")) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

for (const link of document.querySelectorAll("a[data-query]")) link.href = `#q=${encodeURIComponent(link.dataset.query)}`;
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
document.getElementById("theme").addEventListener("click", () => {
  const dark = theme === "dark" || (!theme && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(dark ? "light" : "dark");
  note(location.hash.slice(1).split("&")[0]);
});
list.input.addEventListener("input", noteFilter);
document.getElementById("grid").addEventListener("click", (event) => {
  const pressed = document.querySelector("table.list").classList.toggle("grid");
  event.currentTarget.setAttribute("aria-pressed", String(pressed));
});
oneAtATime();
addEventListener("hashchange", route);
route().then(() => { document.documentElement.dataset.ready = ""; });

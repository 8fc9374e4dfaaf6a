// The table of cases: filter, order, and a cursor that the keyboard moves. Rows are made as they are needed, so that
// ten thousand cases cost no more than the hundred that are seen.

const BATCH = 100;
const COLUMNS = [
  // field, heading, numeric
  ["case", "case", false],
  ["status", "verdict", false],
  ["at", "began at", false],
  ["max", "pixel max", true],
  ["l2", "latents rel L2", true],
  ["ssim", "SSIM", true],
  ["controls", "controls caught", true],
  ["seconds", "seconds", true],
];
const VERDICTS = ["error", "corrupt", "missing", "stale", "drift", "known", "match"];

class CaseList {
  /** `rows`: what render.py's index says, worst first. `openCase(row)` is called for a click or Enter. */
  constructor(section, rows, openCase) {
    this.all = rows;
    this.shown = rows;
    this.openCase = openCase;
    this.order = { field: "", falling: false };
    this.cursor = -1;
    this.input = section.querySelector("input[type=search]");
    this.status = section.querySelector("[role=status]");
    this.body = section.querySelector("tbody");
    this.more = section.querySelector(".more");
    this.head = section.querySelector("thead tr");
    for (const column of COLUMNS) this.head.append(this.heading(...column));
    this.input.addEventListener("input", () => this.filter());
    this.more.addEventListener("click", () => this.extend());
    new IntersectionObserver((seen) => seen[0].isIntersecting && this.extend(), { rootMargin: "400px" }).observe(this.more);
    // Thumbnails are drawn when they come into view, which they do in the grid only.
    this.seen = new IntersectionObserver((seen) => seen.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
      this.seen.unobserve(target);
      drawThumbnail(target);
    }), { rootMargin: "200px" });
    this.filter();
  }

  heading(field, title, numeric) {
    const button = make("button", { type: "button" }, title);
    button.addEventListener("click", () => this.sort(field));
    return make("th", { scope: "col", class: numeric ? "num" : "", "data-field": field }, button);
  }

  /** Rising, falling, then the order of the report again (worst first). */
  sort(field) {
    const { order } = this;
    if (order.field !== field) this.order = { field, falling: false };
    else this.order = order.falling ? { field: "", falling: false } : { field, falling: true };
    this.filter();
  }

  setQuery(text) {
    this.input.value = text;
    this.filter();
  }

  filter() {
    const query = parseQuery(this.input.value);
    const rows = this.all.filter(query.matches);
    const { field, falling } = this.order;
    const rank = field === "status" ? (row) => VERDICTS.indexOf(row.status) : (row) => row[field];
    if (field) {
      const sign = falling ? -1 : 1;
      rows.sort((a, b) => {
        const [x, y] = [rank(a), rank(b)];
        if (x === y) return 0;
        if (x === null || x === "") return 1; // what has no value comes last in both directions
        if (y === null || y === "") return -1;
        return x < y ? -sign : sign;
      });
    }
    for (const heading of this.head.children) {
      const sorted = heading.dataset.field === field;
      heading.setAttribute("aria-sort", sorted ? (falling ? "descending" : "ascending") : "none");
    }
    this.shown = rows;
    this.cursor = -1;
    this.body.replaceChildren();
    this.extend();
    const count = rows.length === this.all.length ? `${rows.length} cases` : `${rows.length} of ${this.all.length} cases`;
    this.status.textContent = query.problem || count;
    this.status.classList.toggle("outside", Boolean(query.problem));
    this.input.setAttribute("aria-invalid", String(Boolean(query.problem)));
  }

  extend() {
    const from = this.body.childElementCount;
    this.body.append(...this.shown.slice(from, from + BATCH).map((row) => this.row(row)));
    const left = this.shown.length - this.body.childElementCount;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show more (${left} left)`;
  }

  row(row) {
    const link = make("a", { href: `#${row.id}` }, row.name);
    const number = (value, state) => (value === null ? make("span", { class: "none" }, "–") : make("span", { class: state }, value));
    const caught = row.controls ? number(`${row.caught}/${row.controls}`, row.caught < row.controls ? "outside" : "") : number(null);
    const thumbnail = make("canvas", { class: "thumb", "aria-hidden": "true", "data-key": row.golden, "data-frames": row.frames, width: 0, height: 0 });
    if (row.golden) this.seen.observe(thumbnail);
    const line = make("tr", { class: row.status, id: `row-${row.id}` },
      make("th", { scope: "row" }, thumbnail, link, row.changed && make("small", { class: "changed" }, row.changed)),
      make("td", {}, chip(row.status)),
      make("td", { "data-label": "began at" }, row.at ? row.where : make("span", { class: "none" }, "–")),
      make("td", { class: "num", "data-label": "pixel max" }, number(row.shown.max, row.outside.includes("max") ? "outside" : "")),
      make("td", { class: "num", "data-label": "latents" }, number(row.shown.l2, row.outside.includes("l2") ? "outside" : "")),
      make("td", { class: "num", "data-label": "SSIM" }, number(row.shown.ssim, "")),
      make("td", { class: "num", "data-label": "controls" }, caught),
      make("td", { class: "num", "data-label": "seconds" }, row.seconds.toFixed(1)),
    );
    line.addEventListener("click", (event) => { if (!event.target.closest("a")) this.openCase(row); });
    return line;
  }

  /** Move the cursor by `step` rows; the row's link takes the focus. */
  move(step) {
    const focused = document.activeElement?.closest?.("tr");
    if (focused?.parentElement === this.body) this.cursor = [...this.body.children].indexOf(focused);
    this.cursor = Math.min(Math.max(this.cursor + step, 0), this.shown.length - 1);
    while (this.cursor >= this.body.childElementCount && !this.more.hidden) this.extend();
    this.body.children[this.cursor]?.querySelector("a").focus();
  }

  /** The case `step` rows from `row` in the order that is shown; undefined at an end. */
  neighbour(row, step) {
    const at = this.shown.indexOf(row);
    return at < 0 ? undefined : this.shown[at + step];
  }
}

/** The golden's first frame; without a picture nothing, the case itself says why. */
async function drawThumbnail(canvas) {
  const whole = await picture(canvas.dataset.key).catch(() => null);
  if (!whole) return;
  canvas.width = whole.width;
  canvas.height = whole.height / Number(canvas.dataset.frames);
  canvas.getContext("2d").drawImage(whole, 0, 0);
}

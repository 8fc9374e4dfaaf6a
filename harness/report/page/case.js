// Everything about one case, made from its details when it is opened.

const TRACE_FLOOR = 1e-8; // below the rounding of float32; the other end is 1, an error as large as the signal

/** [the element, the viewer or null] */
async function caseView(row, details) {
  const d = details;
  const facts = [d.tier, d.device, d.dtype, d.pictures.frames > 1 && `${d.pictures.frames} frames`, `${d.seconds.toFixed(1)} s`];
  const heading = make("h2", { tabindex: -1, id: "case-title" }, d.case);
  const view = make("article", { class: `case ${d.verdict}`, "aria-labelledby": "case-title" },
    make("header", {}, chip(d.verdict), heading, make("span", { class: "meta" }, facts.filter(Boolean).join(" · "))),
    make("p", { class: "about" }, d.about),
    began(d),
    traceback(d.traceback),
    excuse(d),
  );
  view.append(asked(d.asked));
  const pictures = await picturesOf(d.pictures);
  let viewer = null;
  if (pictures.golden || pictures.output) {
    viewer = new Viewer(pictures, d.pictures.frames, d.pictures.fps);
    view.append(viewer.root);
  } else {
    view.append(make("p", { class: "none" }, `Golden: ${pictures.problems.golden}. Output: ${pictures.problems.output}.`));
  }
  view.append(
    await players(d.pictures.sounds),
    make("div", { class: "columns" }, d.metrics.length && metricTable(d.metrics), make("div", {}, diagnosis(d), trend(d.trend), traceStrip(d), d.controls.length && controlTable(d.controls))),
    d.schedule.length ? beside("Schedule", d.schedule, true) : "",
    beside("Settings", d.settings, d.verdict === "drift"),
    beside("Environment", d.environment, false),
    provenance(d.provenance),
    commands(d.commands),
  );
  return [view, viewer];
}

/** Prompt and control images: what the pictures should show. */
function asked({ words, images }) {
  if (!Object.keys(words).length && !images.length) return "";
  const lines = Object.entries(words).map(([title, text]) => make("div", {}, make("dt", {}, title), make("dd", {}, text)));
  const figures = images.map(([name, uri]) => make("figure", {}, make("img", { src: uri, alt: `control image ${name}` }), make("figcaption", {}, name)));
  return make("div", { class: "asked" }, make("dl", {}, ...lines), make("div", { class: "thumbs" }, ...figures));
}

/** A player of the golden's sound beside one of the output's. */
async function players(sounds) {
  if (!sounds.length) return "";
  const figures = sounds.map(async ([name, key, problem]) => {
    const caption = make("figcaption", {}, `sound: ${name}`);
    if (!key) return make("figure", {}, caption, make("p", { class: "none" }, problem));
    try {
      return make("figure", {}, caption, make("audio", { controls: true, preload: "metadata", src: await source(key), "aria-label": `Sound: ${name}` }));
    } catch (error) {
      return make("figure", {}, caption, make("p", { class: "none" }, error.message));
    }
  });
  return make("section", { class: "sounds", "aria-label": "Sound" }, ...(await Promise.all(figures)));
}

/** The error of the latents in earlier runs: a line on a log scale, and the same as words. */
function trend(points) {
  if (!points.length) return "";
  const heights = points.map(([, , error]) => (error === null ? 100 : onTrace(error)));
  const said = points.map(([when, verdict, error]) => `${when.slice(0, 10)} ${verdict}${error === null ? "" : ` ${short(error)}`}`);
  const columns = points.map(([, verdict], i) => {
    const column = make("i", { class: verdict === "match" || verdict === "known" ? "" : "first", title: said[i] });
    column.style.setProperty("--v", `${Math.max(heights[i], 2)}%`);
    return column;
  });
  return make("section", { class: "trend" }, make("h3", {}, "Trend ", make("small", {}, "relative error of the latents in the last runs, log scale 1e-8 to 1")),
    make("div", { class: "errors", role: "img", "aria-label": `Trend: ${said.join(", ")}` }, ...columns),
    make("small", {}, `${said[0]} … ${said.at(-1)}`));
}

function began(d) {
  if (d.verdict === "match") return "";
  const rows = [];
  if (d.began) {
    const size = d.began.error === null ? "absent or of another shape" : `error ${short(d.began.error)}, tolerance ${short(d.began.gate)}`;
    rows.push(["Began at", make("span", {}, make("b", {}, d.began.words), " ", make("code", {}, d.began.boundary), ` (${size})`)]);
  }
  if (d.cause && d.cause !== d.message) rows.push(["Likely cause", make("span", {}, ...withCode(d.cause))]);
  rows.push(["Verdict", make("span", {}, ...withCode(d.message || d.verdict))]);
  return make("dl", { class: `message ${d.verdict}` }, ...rows.map(([title, value]) => make("div", {}, make("dt", {}, title), make("dd", {}, value))));
}

/** Of an exception that nobody expected: whole, but folded. */
function traceback(text) {
  return text && make("details", { class: "traceback" }, make("summary", {}, "Traceback"), make("pre", { tabindex: 0 }, text));
}

/** What `lora-drift diagnose` ranked: its answer itself is among the causes. */
function diagnosis(d) {
  if (!d.diagnosis?.length) return "";
  const rows = d.diagnosis.map(([name, about, distance]) => make("tr", {},
    make("th", { scope: "row" }, name, make("small", {}, about)),
    make("td", { class: "num" }, short(distance))));
  return make("table", { class: "diagnosis" },
    make("caption", {}, "Diagnosis ", make("small", {}, "how far this picture is from what each deviation makes where the case matches")),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "deviation"), make("th", { scope: "col", class: "num" }, "distance, of 255"))),
    make("tbody", {}, ...rows));
}

function excuse(d) {
  if (!d.excuse) return "";
  const what = d.verdict === "match"
    ? "Listed as a known drift, but it matches: remove the entry from cases/known.yaml. "
    : d.excuse.expired ? `The known drift expired on ${d.excuse.expires}. ` : `Known drift, until ${d.excuse.expires}. `;
  return make("p", { class: `excuse ${d.excuse.expired ? "outside" : ""}` }, what, make("span", {}, `Cause: ${d.excuse.cause}`));
}

function metricTable(metrics) {
  const table = make("table", { class: "metrics" },
    make("caption", {}, "Metrics ", make("small", {}, "log scale, three decades either side of the tolerance (solid line); dotted: the spread of equally correct renders")),
    make("thead", {}, make("tr", {}, ...["metric", "distance", "value", "tolerance", "spread"].map((t, i) => make("th", { scope: "col", class: i > 1 ? "num" : i ? "wide" : "" }, t)))),
  );
  const body = make("tbody");
  for (const m of metrics) {
    const bar = m.bar === null ? make("span", { class: "none" }, m.state === "unknown" ? "not evaluated" : "no tolerance") : bars(m);
    const value = make("td", { class: "num" }, make("b", {}, m.value), m.state === "outside" && make("span", { class: "outside" }, " outside"));
    const head = make("th", { scope: "row" }, m.label, m.note && m.note !== m.value && make("small", {}, m.note.replace(/^not evaluated:? ?/, "")));
    body.append(make("tr", { class: m.state }, head, make("td", { class: "wide" }, bar), value, make("td", { class: "num" }, m.gate), make("td", { class: "num" }, m.floor)));
  }
  table.append(body);
  return table;
}

function bars(m) {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${m.bar}%`;
  const bar = make("span", { class: "bar" }, fill);
  if (m.floorAt !== null) {
    const floor = make("span", { class: "floor" });
    floor.style.left = `${m.floorAt}%`;
    bar.append(floor);
  }
  bar.append(make("span", { class: "gate" }));
  return bar;
}

function controlTable(controls) {
  const rows = controls.map(([name, pixels, latents, caught]) => make("tr", {},
    make("th", { scope: "row" }, name),
    make("td", { class: "num" }, short(pixels)),
    make("td", { class: "num" }, short(latents)),
    make("td", {}, make("span", { class: caught ? "within" : "outside" }, caught ? "caught" : "not caught"))));
  return make("table", { class: "controls" },
    make("caption", {}, "Negative controls ", make("small", {}, "deliberate mistakes, which must be outside the tolerance")),
    make("thead", {}, make("tr", {}, ...["change", "pixel max", "latents rel L2", "caught"].map((t, i) => make("th", { scope: "col", class: i === 1 || i === 2 ? "num" : "" }, t)))),
    make("tbody", {}, ...rows));
}

/** One column for each stage in the order of the run, grouped by step; the line is the tolerance. */
function traceStrip(d) {
  const entries = Object.entries(d.trace);
  if (!entries.length) return "";
  const off = entries.filter(([, error]) => error !== 0).length;
  const note = d.began ? `first leaves the golden at ${d.began.boundary}` : off ? `nothing outside its tolerance reaches the final latents; ${entries.length - off} are equal` : "all are equal";
  const section = make("section", { class: "trace" }, make("h3", {}, "Trace ", make("small", {}, `relative error at ${entries.length} stages, log scale 1e-8 to 1: ${note}`)));
  const strip = make("div", { class: "strip", role: "img", "aria-label": `Trace: ${note}` });
  if (d.traceGate !== null) strip.style.setProperty("--gate", `${onTrace(d.traceGate)}%`);
  let stage = null;
  let left = false;
  for (const [boundary, error] of entries) {
    const name = boundary.split("/")[0];
    if (stage?.name !== name) {
      const columns = make("div", { class: "errors" });
      const element = make("div", { class: "stage" }, columns, make("small", {}, name));
      stage = { name, columns, element };
      strip.append(element);
    }
    const first = d.began?.boundary === boundary;
    left ||= first;
    const column = make("i", { class: first ? "first" : error === null ? "absent" : left ? "after" : "", title: `${boundary}: ${short(error)}` });
    column.style.setProperty("--v", `${onTrace(error)}%`);
    stage.columns.append(column);
    stage.element.style.flexGrow = Math.min(stage.columns.childElementCount, 12);
  }
  section.append(strip);
  if (off) {
    const rows = entries.filter(([, error]) => error !== 0).map(([boundary, error]) => make("tr", { class: d.began?.boundary === boundary ? "outside" : "" },
      make("th", { scope: "row" }, make("code", {}, boundary)), make("td", { class: "num" }, short(error))));
    const table = make("table", { class: "boundaries" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "stage"), make("th", { scope: "col", class: "num" }, "relative error"))), make("tbody", {}, ...rows));
    section.append(make("details", {}, make("summary", {}, `${off} of ${entries.length} stages have an error`), table));
  }
  return section;
}

function onTrace(error) {
  if (error === null) return 100;
  return error <= TRACE_FLOOR ? 0 : Math.min(100 * (1 - Math.log(error) / Math.log(TRACE_FLOOR)), 100);
}

function beside(title, rows, open) {
  const differing = rows.filter((row) => row[3]).length;
  const note = differing ? make("b", { class: "differs" }, `${differing} of ${rows.length} differ`) : rows.length ? `${rows.length} rows, none differs` : "not recorded";
  const lines = rows.map(([key, golden, ours, differs]) => make("tr", { class: differs ? "differs" : "" },
    make("th", { scope: "row" }, key), make("td", {}, golden), make("td", {}, ours, differs && make("span", { class: "sr" }, " (differs)"))));
  return make("details", { class: "beside", open: open && differing > 0 },
    make("summary", {}, `${title} `, make("small", {}, note)),
    rows.length && make("table", {}, make("thead", {}, make("tr", {}, ...[title.toLowerCase(), "golden", "this run"].map((t) => make("th", { scope: "col" }, t)))), make("tbody", {}, ...lines)));
}

function provenance(facts) {
  const rows = Object.entries(facts).map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, value)));
  return make("details", { class: "beside" }, make("summary", {}, "Provenance of the golden ", !rows.length && make("small", {}, "not recorded")), make("dl", { class: "facts" }, ...rows));
}

function commands(list) {
  const rows = list.map(([purpose, command]) => {
    const code = make("code", {}, command);
    const copy = make("button", { type: "button", class: "copy", "aria-label": `Copy: ${purpose}` }, "Copy");
    copy.addEventListener("click", async () => {
      await copyText(code);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    return make("div", {}, make("dt", {}, purpose), make("dd", {}, code, copy));
  });
  return make("section", { class: "commands" }, make("h3", {}, "Commands"), make("dl", {}, ...rows));
}

/** A page from a disk may lack the clipboard; the text is then selected, ready for Ctrl+C. */
async function copyText(element) {
  getSelection().selectAllChildren(element);
  if (navigator.clipboard) await navigator.clipboard.writeText(element.textContent).catch(() => document.execCommand("copy"));
}

"use strict";
// The filter's language: terms that must all hold.
//
//   fox                 the word somewhere in the case's name, cause, stage or description
//   "two words"         both, as written
//   model:flux          the field holds this text; `status:drift|error` one of several
//   model:=flux         the field is this text
//   step:<3  l2:>=1e-5  numbers: < <= > >= =
//   -status:match       not

const TEXT_FIELDS = ["case", "model", "status", "lora", "kind", "at", "part", "cause", "changed", "tier", "device", "dtype"];
const NUMBER_FIELDS = ["step", "max", "l2", "ssim", "flip", "caught", "controls", "seconds", "frames"];
const SYNONYMS = { verdict: "status", boundary: "at", stage: "at", pixel_max: "max", latents_rel_l2: "l2" };
const TERM = /(-?)(?:([A-Za-z_]\w*):)?(?:"([^"]*)"?|(\S+))/g;

/** Text -> {matches(row), problem}: rows are objects with the fields above and `words`, all lower case. */
function parseQuery(text) {
  const tests = [];
  let problem = "";
  for (const [, minus, name, quoted, plain] of text.matchAll(TERM)) {
    const value = (quoted ?? plain ?? "").toLowerCase();
    const field = name && (SYNONYMS[name.toLowerCase()] ?? name.toLowerCase());
    let test;
    if (!name) {
      test = (row) => row.words.includes(value);
    } else if (TEXT_FIELDS.includes(field)) {
      const choices = value.split("|");
      test = (row) => choices.some((choice) => (choice[0] === "=" ? row[field] === choice.slice(1) : row[field].includes(choice)));
    } else if (NUMBER_FIELDS.includes(field)) {
      test = comparison(field, value);
      if (!test) problem = `${name}: wants a number, such as ${name}:<3`;
    } else {
      problem = `unknown field “${name}”; there are ${[...TEXT_FIELDS, ...NUMBER_FIELDS].join(", ")}`;
    }
    if (test) tests.push(minus ? (row) => !test(row) : test);
  }
  return { matches: (row) => tests.every((test) => test(row)), problem };
}

/** "<3" -> a test of one number; a row without that number never passes. Undefined if it is no comparison. */
function comparison(field, value) {
  const found = /^(<=|>=|<|>|=)?(.+)$/.exec(value);
  const limit = found ? Number(found[2]) : NaN;
  if (Number.isNaN(limit)) return undefined;
  const compare = {
    "<": (n) => n < limit,
    "<=": (n) => n <= limit,
    ">": (n) => n > limit,
    ">=": (n) => n >= limit,
    "=": (n) => n === limit,
  }[found[1] ?? "="];
  return (row) => row[field] !== null && compare(row[field]);
}

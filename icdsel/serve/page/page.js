// The page: an image and a question in, choices and answers out.

import { Failure, hasKey, inWords, json } from "./api.js";
import { copyText, curlOf } from "./copying.js";
import { candidateBlob, candidateImage, forgetImages } from "./images.js";
import { LONGEST, dataUrl, prepared } from "./picture.js";
import { ABOUT, Results, element, seconds } from "./results.js";

const byId = (id) => document.getElementById(id);
const POLICY = "policy";
const ZERO_SHOT = "zero-shot";
const FIRST = [POLICY, "nearest-both", "random", ZERO_SHOT]; // compared unless others are ticked
const EXAMPLES = 6;
const MOST_SHOTS = 4;
const LONGEST_ANSWER = 128; // tokens

let picture = null; // { url, shown, known, question }
let run = null; // what is being answered, or was last
let choosing = 0; // so that a slow image does not replace a later one

// ---- controls ----

function choiceOf(kind, name, value, text, checked, about = "") {
  const label = element("label", "choice");
  const input = element("input");
  Object.assign(input, { type: kind, name, value, checked });
  const words = element("span", "", text);
  if (about) words.append(element("small", "", about));
  label.append(input, words);
  return label;
}

const ticked = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)].map((input) => input.value);

function showSelectors(told) {
  const first = FIRST.filter((name) => told.selectors.includes(name));
  const others = told.selectors.filter((name) => !first.includes(name));
  const choice = (name) => choiceOf("checkbox", "selector", name, name, first.includes(name), ABOUT[name]);
  byId("selectors").replaceChildren(...first.map(choice));
  byId("more-selectors").replaceChildren(...others.map(choice));
  byId("more").hidden = !others.length;
  const counts = Array.from({ length: MOST_SHOTS + 1 }, (_, count) => String(count));
  if (told.auto !== false) counts.push("auto");
  const usual = String(told.default_shots);
  if (!counts.includes(usual)) counts.push(usual);
  byId("shots").replaceChildren(...counts.map((one) => choiceOf("radio", "shots", one, one, one === usual)));
  byId("auto-note").hidden = !counts.includes("auto");
  byId("candidates").textContent = told.candidates.toLocaleString("en");
}

async function showModels() {
  const listed = await json("/v1/models");
  const names = (Array.isArray(listed.data) ? listed.data : []).map((model) => String(model.id));
  byId("model").replaceChildren(...names.map((name) => Object.assign(element("option", "", name), { value: name })));
  byId("model-field").hidden = names.length < 2;
}

// ---- the image ----

// Takes a promised image, and tells whether it could.
async function take(promise, { known = null, question = null, exact = false } = {}) {
  const own = ++choosing;
  const note = byId("picture-note");
  try {
    const blob = await promise;
    const made = await prepared(blob);
    // A candidate's own file, so that the server recognises it and does not show it as its own demonstration.
    const sent = exact ? blob : made.blob;
    const url = await dataUrl(sent);
    if (own !== choosing) return false;
    if (picture) URL.revokeObjectURL(picture.shown);
    picture = { url, shown: URL.createObjectURL(sent), known, question };
    Object.assign(byId("preview"), { src: picture.shown, hidden: false });
    byId("invitation").classList.add("unseen");
    note.textContent = made.note;
    note.classList.remove("failed");
    byId("missing").textContent = "";
    return true;
  } catch (error) {
    if (own !== choosing) return false;
    note.textContent = error.message;
    note.classList.add("failed");
    return false;
  }
}

function takeFirst(files) {
  const file = [...(files ?? [])].find((one) => one.type.startsWith("image/") || !one.type);
  if (file) take(file);
  return Boolean(file);
}

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", () => {
    takeFirst(byId(id).files);
    byId(id).value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  if (takeFirst(event.clipboardData?.files)) event.preventDefault();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // a file that misses the frame must not replace the page
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (event.dataTransfer?.files.length && !takeFirst(event.dataTransfer.files)) {
    byId("picture-note").textContent = "This is not an image.";
    byId("picture-note").classList.add("failed");
  }
});

// ---- examples ----

async function showExamples(candidates) {
  const count = Math.min(EXAMPLES, candidates);
  const rows = Array.from({ length: count }, (_, at) => Math.floor((at * candidates) / count));
  const found = await Promise.all(rows.map((row) => json(`/v1/candidates/${row}`)));
  byId("example-list").replaceChildren(
    ...found.map((one) => {
      const button = element("button", "example");
      button.type = "button";
      button.append(candidateImage(one.image, ""), element("span", "", String(one.question)));
      button.addEventListener("click", async () => {
        const about = { known: String(one.answer), question: String(one.question), exact: true };
        if (!(await take(candidateBlob(one.image), about))) return;
        byId("question").value = about.question;
        ask();
      });
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
  byId("examples").hidden = false;
}

// ---- asking ----

const say = (text) => {
  byId("said").textContent = text;
};

// What is sent for an answer. Zero-shot is a selector too: its question is worded as those of the others.
function chatBody(own, name) {
  const content = [
    { type: "image_url", image_url: { url: own.image } },
    { type: "text", text: own.question },
  ];
  const model = own.model ? { model: own.model } : {};
  const icdsel = { selector: name, shots: own.shots.get(name) ?? own.wanted };
  const messages = [{ role: "user", content }];
  return { ...model, messages, temperature: 0, max_tokens: LONGEST_ANSWER, icdsel };
}

const chooseBody = (own, selectors, shots) => ({ image: own.image, question: own.question, shots, selectors });

const textOf = (content) => {
  if (typeof content === "string") return content;
  return Array.isArray(content) ? content.map((part) => part?.text ?? "").join("") : "";
};

async function answer(own, name) {
  own.results.waitForAnswer(name);
  const { signal } = own.stopping;
  const started = performance.now();
  try {
    const replied = await json("/v1/chat/completions", { body: chatBody(own, name), signal });
    if (run !== own) return; // another question was asked meanwhile
    const [first] = replied.choices ?? [];
    if (!first) throw new Failure("The VLM sent no answer.");
    const text = textOf(first.message?.content);
    const notes = first.finish_reason === "length" ? ["cut off: it was too long"] : [];
    own.results.showAnswer(name, { text, ms: performance.now() - started, notes });
    say(`${name} answers ${text}`);
  } catch (error) {
    if (run !== own) return;
    const stopped = error.name === "AbortError";
    own.results.failAnswer(name, stopped ? "Stopped." : `No answer. ${inWords(error)}`);
    if (!stopped) say(`${name}: no answer. ${inWords(error)}`);
  }
}

// The choices of some selectors; where they fail together, each alone, so that the others are seen.
async function choose(own, names, shots) {
  if (!names.length) return [];
  const { signal } = own.stopping;
  const chosen = [];
  try {
    const reply = await json("/v1/choose", { body: chooseBody(own, names, shots), signal });
    if (run !== own) return [];
    own.times.encode += reply.timing_ms.encode;
    own.times.choose += reply.timing_ms.choose;
    for (const choice of reply.choices) {
      own.shots.set(choice.selector, shots);
      own.results.showChoice(choice.selector, choice);
      if (choice.scores?.length) byId("percent-note").hidden = false;
      chosen.push(choice);
    }
  } catch (error) {
    if (run !== own) return [];
    if (error.status === 400 && names.length > 1) {
      return (await Promise.all(names.map((name) => choose(own, [name], shots)))).flat();
    }
    const [name] = names;
    for (const each of names) own.results.failChoice(each, error.name === "AbortError" ? "Stopped." : inWords(error));
    say(`${name}: ${inWords(error)}`);
  }
  return chosen;
}

async function chooseAll(own) {
  if (!own.wanted.startsWith("auto")) return choose(own, own.names, Number(own.wanted));
  // Only the policy decides how many; the others are compared at the same number.
  const others = own.names.filter((name) => name !== POLICY);
  const first = await choose(own, [POLICY], own.wanted);
  const count = Math.max(1, first[0]?.icds.length ?? 1);
  return [...first, ...(await choose(own, others, count))];
}

function showAsked(own) {
  byId("results").hidden = false;
  Object.assign(byId("asked-image"), { src: own.image, alt: "The image that is asked about" });
  byId("asked-question").textContent = own.question;
  byId("timing").textContent = "";
  byId("percent-note").hidden = true;
  own.results.showKnown(own.known);
  byId("results-title").focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("results").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

async function ask() {
  const question = byId("question").value.trim();
  const names = ticked("selector");
  const wanted = ticked("shots")[0] ?? "";
  const missing = [
    [!picture, "Choose an image first.", "file"],
    [!question, "Type a question first.", "question"],
    [!names.length, "Tick a selector first.", null],
    [wanted.startsWith("auto") && !names.includes(POLICY), "With auto, the policy decides: tick it, or take a number.", null],
  ].find(([is]) => is);
  byId("missing").textContent = missing ? missing[1] : "";
  if (missing) {
    if (missing[2]) byId(missing[2]).focus();
    return;
  }
  run?.stopping.abort();
  forgetImages();
  const known = picture.question === question ? picture.known : null;
  const own = {
    ...{ image: picture.url, question, known, names, wanted, model: byId("model").value },
    ...{ stopping: new AbortController(), shots: new Map(), times: { encode: 0, choose: 0 } },
  };
  own.results = new Results(names, {
    onCopy: (name, kind) => copy(own, name, kind),
    onRetry: (name) => answer(Object.assign(own, { stopping: new AbortController() }), name),
  });
  run = own;
  showAsked(own);
  byId("stop").hidden = false;
  say("Choosing demonstrations.");
  const started = performance.now();
  const chosen = await chooseAll(own);
  if (run !== own) return;
  const { encode, choose: choosing } = own.times;
  if (chosen.length) byId("timing").textContent = `Chosen in ${seconds(encode + choosing)}`;
  await Promise.all(chosen.map((choice) => answer(own, choice.selector)));
  if (run !== own) return;
  byId("stop").hidden = true;
  if (chosen.length) {
    byId("timing").textContent += `; everything in ${seconds(performance.now() - started)}`;
    say("All answers have arrived.");
  }
}

// True if it was copied, false if it is shown to be copied by hand.
function copy(own, name, kind) {
  if (kind === "curl") return copyText(Promise.resolve(curlOf(chatBody(own, name), hasKey())));
  const body = { ...chooseBody(own, [name], own.shots.get(name) ?? own.wanted), messages: true };
  return copyText(json("/v1/choose", { body }).then((reply) => JSON.stringify(reply.choices[0].messages, null, 2)));
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", () => {
  run?.stopping.abort();
  byId("stop").hidden = true;
});

// ---- start ----

async function start() {
  byId("trouble").hidden = byId("enter-key").hidden = true;
  byId("longest").textContent = LONGEST.toLocaleString("en");
  const problem = (error) => {
    byId("trouble").textContent = inWords(error);
    byId("trouble").hidden = false;
    byId("enter-key").hidden = error.status !== 401;
  };
  try {
    const told = await json("/v1/selectors");
    byId("interface").hidden = hasKey(); // a link cannot send it
    showSelectors(told);
    showExamples(told.candidates).catch(() => {}); // they are only an offer
  } catch (error) {
    problem(error);
    return;
  }
  // Without the VLM, choices can be seen all the same.
  await showModels().catch((error) => problem(new Failure(`There will be no answers: ${error.message}`, error.status)));
}

byId("enter-key").addEventListener("click", start);
start();

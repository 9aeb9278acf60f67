// What each selector chose and what the VLM answered, as cards.

import { inWords } from "./api.js";
import { candidateImage } from "./images.js";

const byId = (id) => document.getElementById(id);
const COLOURS = 8;

export const ABOUT = {
  policy: "learned by icdsel",
  "zero-shot": "no demonstrations",
  random: "drawn by chance",
  balanced: "drawn by chance, with different answers",
  "nearest-image": "most similar images",
  "nearest-question": "most similar questions",
  "nearest-both": "most similar image and question",
  mmices: "similar images, then questions",
  mmr: "similar and diverse (MMR)",
  "k-dpp": "similar and diverse (k-DPP)",
  "facility-location": "represent what is similar",
};

// An element with text. Nothing that a server says is ever read as HTML.
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function button(text, name, act) {
  const made = element("button", "", text);
  made.type = "button";
  made.setAttribute("aria-label", `${text}: ${name}`);
  made.addEventListener("click", act);
  return made;
}

const TOLD = 2500; // milliseconds

function copyButton(text, name, copy) {
  const made = button(text, name, async () => {
    const told = await copy().then((done) => (done ? "Copied" : ""), inWords);
    if (!told) return;
    made.textContent = told;
    setTimeout(() => (made.textContent = text), TOLD);
  });
  made.setAttribute("aria-live", "polite");
  return made;
}

const number = (value, digits) => value.toFixed(digits).replace("-", "−");

export const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

// A log-prob in nats as a percentage and as it is.
export function likelihood(score) {
  const percent = 100 * Math.exp(score);
  const shown = percent < 0.1 ? "< 0.1" : percent > 99.9 ? "> 99.9" : percent.toFixed(percent < 10 ? 1 : 0);
  return `${shown} % (${number(score, 2)})`;
}

// Answers that differ only in case, spaces and a full stop agree.
const alike = (answer) => answer.normalize("NFKC").toLowerCase().replace(/\s+/g, " ").trim().replace(/[.!]+$/, "");

export class Results {
  // `onCopy(name, kind)` copies a prompt; `onRetry(name)` asks for an answer again.
  constructor(names, { onCopy, onRetry }) {
    this.answers = new Map();
    this.known = null; // the answer in the data
    this.letters = new Map();
    this.cards = new Map(names.map((name) => [name, this.#card(name, onCopy)]));
    this.onRetry = onRetry;
    byId("groups").replaceChildren();
    byId("cards").replaceChildren(...[...this.cards.values()].map((card) => card.whole));
    this.#showGroups();
  }

  #card(name, onCopy) {
    const whole = element("article", "card");
    whole.dataset.selector = name;
    const who = element("div", "who");
    who.append(element("h3", "", name), element("p", "note", ABOUT[name] ?? ""));
    const icds = element("div", "shown");
    icds.append(this.#waiting("Choosing"));
    const said = element("div", "said");
    const buttons = element("div", "buttons");
    buttons.append(
      copyButton("Copy the prompt", name, () => onCopy(name, "prompt")),
      copyButton("Copy as curl", name, () => onCopy(name, "curl")),
    );
    whole.append(who, icds, said, buttons);
    return { whole, icds, said, buttons };
  }

  #waiting(text) {
    const made = element("p", "waiting");
    made.append(element("span", "spinner"), document.createTextNode(`${text} …`));
    return made;
  }

  showChoice(name, choice) {
    const { icds } = this.cards.get(name);
    if (!choice.icds.length) {
      icds.replaceChildren(element("p", "note", "Nothing is shown: the question alone."));
      return;
    }
    const list = element("ol", "icds");
    choice.icds.forEach((icd, at) => {
      const item = element("li", "icd");
      const text = element("div", "text");
      text.append(element("span", "asks", String(icd.question)), element("span", "answer", String(icd.answer)));
      const score = choice.scores?.[at];
      if (Number.isFinite(score)) text.append(element("span", "score", likelihood(score)));
      item.append(candidateImage(icd.image, `Demonstration ${at + 1}`), text);
      list.append(item);
    });
    icds.replaceChildren(list);
  }

  failChoice(name, message) {
    const { icds, said } = this.cards.get(name);
    icds.replaceChildren(element("p", "failed", message));
    said.replaceChildren();
  }

  waitForAnswer(name) {
    this.answers.delete(name);
    this.cards.get(name).said.replaceChildren(this.#waiting("Waiting for the VLM"));
    this.#showGroups();
  }

  showAnswer(name, { text, ms, notes }) {
    const { said } = this.cards.get(name);
    this.answers.set(name, text);
    const line = element("p", "reply");
    line.append(this.#badge(text), element("strong", "", text.trim() || "(an empty answer)"));
    said.replaceChildren(line, element("p", "note", [`in ${seconds(ms)}`, ...notes].join("; ")));
    this.#showGroups();
  }

  failAnswer(name, message) {
    const { said } = this.cards.get(name);
    said.replaceChildren(element("p", "failed", message), button("Try again", name, () => this.onRetry(name)));
    this.#showGroups();
  }

  showKnown(text) {
    const line = byId("known");
    line.hidden = text === null;
    line.replaceChildren();
    this.known = text;
    if (text === null) return;
    line.append("Its answer in the data: ", this.#badge(text), element("strong", "", text));
    this.#showGroups();
  }

  // A letter for each different answer, in the order of arrival.
  #letter(text) {
    const key = alike(text);
    if (!this.letters.has(key)) this.letters.set(key, this.letters.size);
    return this.letters.get(key);
  }

  #badge(text) {
    const at = this.#letter(text);
    const made = element("span", "badge", at < 26 ? String.fromCharCode(65 + at) : String(at + 1));
    made.dataset.letter = String(at);
    made.setAttribute("aria-hidden", "true"); // the answer itself is read
    return made;
  }

  #showGroups() {
    const groups = new Map(); // key -> who
    for (const [name, text] of this.answers) {
      const key = alike(text);
      if (!groups.has(key)) groups.set(key, { text, names: [] });
      groups.get(key).names.push(name);
    }
    const order = [...this.cards.keys()];
    const place = ({ names: [first] }) => order.indexOf(first);
    for (const { names } of groups.values()) names.sort((a, b) => order.indexOf(a) - order.indexOf(b));
    if (this.known !== null) groups.get(alike(this.known))?.names.push("the data");
    const lines = [...groups.values()].sort((a, b) => b.names.length - a.names.length || place(a) - place(b));
    byId("groups").replaceChildren(
      ...lines.map(({ text, names }) => {
        const line = element("li");
        line.append(this.#badge(text), element("strong", "", text.trim() || "(an empty answer)"));
        line.append(element("span", "names", names.join(", ")));
        return line;
      }),
    );
    for (const badge of document.querySelectorAll("#results .badge")) {
      const at = Number(badge.dataset.letter);
      const members = [...groups.entries()].find(([key]) => this.letters.get(key) === at)?.[1].names.length ?? 0;
      badge.className = members > 1 ? `badge shared series-${at % COLOURS}` : "badge";
    }
    byId("groups-title").hidden = !lines.length;
  }
}

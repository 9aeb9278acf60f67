"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const images = JSON.parse(byId("images").textContent);

  // The page holds each picture once, as text; an img gets it when it is shown.
  const fill = (part) => {
    for (const image of part.querySelectorAll("img[data-image]")) {
      image.src = "data:image/webp;base64," + images[image.dataset.image];
      image.removeAttribute("data-image");
    }
  };

  // Which edges of a table hide columns, for the hint and the shadows.
  const scrollers = [...document.querySelectorAll(".scroller")].map((frame) => [frame, frame.querySelector(".box")]);
  const mark = ([frame, box]) => {
    const hidden = box.scrollWidth - box.clientWidth;
    frame.classList.toggle("fits", hidden < 2);
    frame.classList.toggle("more-left", box.scrollLeft > 1);
    frame.classList.toggle("more-right", box.scrollLeft < hidden - 1);
  };
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) mark(scrollers.find(([, box]) => box.contains(entry.target)));
  });
  for (const [frame, box] of scrollers) {
    mark([frame, box]);
    box.addEventListener("scroll", () => mark([frame, box]), { passive: true });
    resized.observe(box);
    resized.observe(box.firstElementChild);
  }

  const place = byId("cards");
  const cards = [...place.querySelectorAll(".card")].map((element) => ({
    element,
    scores: JSON.parse(element.dataset.scores),
    correct: JSON.parse(element.dataset.correct),
    text: null,
  }));
  // Half as many where each takes twice the height.
  const atOnce = Number(place.dataset.atOnce) / (matchMedia("(max-width: 45rem)").matches ? 2 : 1);
  place.replaceChildren();
  fill(document);
  const buttons = [...document.querySelectorAll("[data-show]")];
  const turns = [...document.querySelectorAll("[data-turn]")];
  const [first, second, shots, search, every] = ["first", "second", "shots", "search", "every"].map(byId);
  let shown = "all";
  let fitting = cards;
  let start = 0;

  // A selector without demonstrations has the same score at any number of shots.
  const at = (values, own, count) => values[own]?.[count] ?? values[own]?.[0];
  const score = (card, own, count) => at(card.scores, own, count);
  const fits = {
    all: () => true,
    differ: (card, count) => {
      const known = card.scores.map((_, own) => score(card, own, count)).filter((value) => value !== undefined);
      return new Set(known).size > 1;
    },
    lost: (card, count) => score(card, first.value, count) < score(card, second.value, count),
    won: (card, count) => score(card, first.value, count) > score(card, second.value, count),
    none: (card, count) => card.scores.every((_, own) => !at(card.correct, own, count)),
  };
  const textOf = (card) => {
    card.text ??= [...card.element.querySelectorAll("[data-text], .icd .text")]
      .map((part) => part.textContent)
      .join(" ")
      .toLowerCase();
    return card.text;
  };

  const turn = (to) => {
    start = Math.max(0, Math.min(to, fitting.length - 1 - ((fitting.length - 1) % atOnce)));
    const visible = fitting.slice(start, start + atOnce);
    const both = every && !every.checked ? [first.value, second.value] : null;
    for (const { element } of visible) {
      fill(element);
      for (const part of element.querySelectorAll(".line")) {
        part.hidden = both !== null && !both.includes(part.dataset.place);
      }
      for (const part of element.querySelectorAll("[data-shots]")) {
        part.hidden =
          (shots.value !== "" && ![shots.value, "0"].includes(part.dataset.shots)) ||
          !part.querySelector(".line:not([hidden])");
      }
    }
    place.replaceChildren(...visible.map((card) => card.element));
    const of = fitting.length === cards.length ? `${cards.length} queries` : `${fitting.length} that fit, of ${cards.length} queries`;
    const where = visible.length ? `${start + 1} to ${start + visible.length} of ${of}` : `None of ${cards.length} queries fits`;
    byId("count").textContent = where;
    document.querySelector(".where").textContent = where;
    for (const button of turns) {
      const next = start + atOnce * Number(button.dataset.turn);
      button.setAttribute("aria-disabled", String(next < 0 || next >= fitting.length)); // keeps the focus
    }
  };
  const apply = () => {
    const counts = shots.value ? [shots.value] : [...shots.options].map((option) => option.value).filter(Boolean);
    if (!counts.length) counts.push("0");
    const wanted = search.value.trim().toLowerCase();
    fitting = cards.filter(
      (card) => counts.some((count) => fits[shown](card, count)) && (!wanted || textOf(card).includes(wanted)),
    );
    turn(0);
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      shown = button.dataset.show;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      apply();
    });
  }
  for (const button of turns) {
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") === "true") return;
      turn(start + atOnce * Number(button.dataset.turn));
      byId("gallery").querySelector(".pager").scrollIntoView();
    });
  }
  [first, second, shots].forEach((field) => field.addEventListener("change", apply));
  every?.addEventListener("change", () => turn(start));
  search.addEventListener("input", apply);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").hidden = cards.length === 0;
  document.querySelectorAll(".pager").forEach((pager) => {
    pager.hidden = cards.length === 0;
  });
  apply();
})();

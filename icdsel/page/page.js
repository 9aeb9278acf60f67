"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const images = JSON.parse(byId("images").textContent);
  const cards = [...byId("cards").children].map((element) => ({
    element,
    scores: JSON.parse(element.dataset.scores),
    correct: JSON.parse(element.dataset.correct),
    text: null,
  }));
  const buttons = [...document.querySelectorAll("[data-show]")];
  const [first, second, shots, search] = ["first", "second", "shots", "search"].map(byId);
  let shown = "all";

  // The page holds each picture once, as text; an img gets it when it comes near the visible part of the page.
  const fill = (image) => {
    image.src = "data:image/webp;base64," + images[image.dataset.image];
    image.removeAttribute("data-image");
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          near.unobserve(entry.target);
          if (entry.target.dataset.image) fill(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  document.querySelectorAll("img[data-image]").forEach((image) => near.observe(image));
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("article:not([hidden]) img[data-image], .favourites img[data-image]").forEach((image) => {
      if (!image.closest("[hidden]")) fill(image);
    });
  });

  // A selector without demonstrations has the same score at any number of shots.
  const at = (values, place, count) => values[place]?.[count] ?? values[place]?.[0];
  const score = (card, place, count) => at(card.scores, place, count);
  const fits = {
    all: () => true,
    differ: (card, count) => {
      const known = card.scores.map((_, place) => score(card, place, count)).filter((value) => value !== undefined);
      return new Set(known).size > 1;
    },
    lost: (card, count) => score(card, first.value, count) < score(card, second.value, count),
    won: (card, count) => score(card, first.value, count) > score(card, second.value, count),
    none: (card, count) => card.scores.every((_, place) => !at(card.correct, place, count)),
  };
  const textOf = (card) => {
    card.text ??= [...card.element.querySelectorAll("[data-text], .icd .text")]
      .map((part) => part.textContent)
      .join(" ")
      .toLowerCase();
    return card.text;
  };

  const apply = () => {
    const counts = shots.value ? [shots.value] : [...shots.options].map((option) => option.value).filter(Boolean);
    if (!counts.length) counts.push("0");
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const card of cards) {
      const fit = counts.some((own) => fits[shown](card, own)) && (!wanted || textOf(card).includes(wanted));
      card.element.hidden = !fit;
      count += fit;
      for (const part of card.element.querySelectorAll("[data-shots]")) {
        part.hidden = shots.value !== "" && ![shots.value, "0"].includes(part.dataset.shots);
      }
    }
    byId("count").textContent = `${count} of ${cards.length} queries shown`;
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      shown = button.dataset.show;
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      apply();
    });
  }
  [first, second, shots].forEach((field) => field.addEventListener("change", apply));
  search.addEventListener("input", apply);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").hidden = cards.length === 0;
  apply();
})();

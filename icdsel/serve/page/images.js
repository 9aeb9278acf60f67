// Images of candidates. They are fetched, since an <img> cannot send the key.

import { request } from "./api.js";

let kept = new Map(); // promises of object URLs, by path

export async function candidateBlob(path) {
  return (await request(path)).blob();
}

function objectUrl(path) {
  if (!kept.has(path)) {
    const made = candidateBlob(path).then((blob) => URL.createObjectURL(blob));
    kept.set(path, made);
    made.catch(() => kept.delete(path));
  }
  return kept.get(path);
}

// An <img> that shows a candidate's image when it has arrived.
export function candidateImage(path, alt) {
  const image = document.createElement("img");
  image.alt = alt;
  const missing = () => {
    const text = document.createElement("span");
    text.className = "no-image";
    text.textContent = "no image";
    image.replaceWith(text);
  };
  // Only this server's own images, whatever it says.
  if (typeof path !== "string" || !/^\/v1\/candidates\/\d+\/image$/.test(path)) queueMicrotask(missing);
  else objectUrl(path).then((url) => Object.assign(image, { onerror: missing, src: url }), missing);
  return image;
}

// Frees the images of earlier results.
export function forgetImages() {
  for (const made of kept.values()) made.then(URL.revokeObjectURL, () => {});
  kept = new Map();
}

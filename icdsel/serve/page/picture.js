// Makes an image small enough to be sent, and upright.

export const LONGEST = 1280; // pixels of the longer side
const HEAVY = 2 * 2 ** 20; // bytes
const QUALITY = 0.92;
const SENT = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"]; // what the server reads

async function decoded(blob) {
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    image.src = url;
    await image.decode(); // turned as its EXIF data say
    if (!image.naturalWidth) throw new Error("no size");
    return image;
  } catch {
    throw new Error("Your browser cannot read this file as an image. Try a JPEG or a PNG.");
  } finally {
    URL.revokeObjectURL(url);
  }
}

// EXIF data turn a picture, and may tell where it was taken.
async function hasExif(blob) {
  if (blob.type !== "image/jpeg") return false;
  const head = new Uint8Array(await blob.slice(0, 2 ** 16).arrayBuffer());
  return new TextDecoder("latin1").decode(head).includes("Exif\0");
}

function redrawn(image, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff"; // below what is transparent: JPEG is not
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("Your browser cannot shrink this image.")));
    canvas.toBlob(done, "image/jpeg", QUALITY);
  });
}

// The image as it is sent, and what was done to it. A small one stays as it is, to the byte.
export async function prepared(blob) {
  const image = await decoded(blob);
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  if (scale === 1 && blob.size <= HEAVY && SENT.includes(blob.type) && !(await hasExif(blob))) {
    return { blob, note: `${width} × ${height} pixels` };
  }
  const sent = await redrawn(image, scale);
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  return { blob: sent, note: scale < 1 ? `${width} × ${height} pixels, sent as ${w} × ${h}` : `${w} × ${h} pixels` };
}

export const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file cannot be read."));
    reader.readAsDataURL(blob);
  });

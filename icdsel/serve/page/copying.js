// Prompts as text, in the clipboard or, where a browser does not allow that, to be copied by hand.

const byId = (id) => document.getElementById(id);

byId("text-close").addEventListener("click", () => byId("text-dialog").close());

// Text that a shell reads as one word.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A command that asks the same. The body is in a here-document, since an image is longer than an argument may be; the
// key is left to a variable, so that it is not passed on with the command.
export function curlOf(body, withKey) {
  const words = [`curl ${quoted(`${location.origin}/v1/chat/completions`)} -H 'Content-Type: application/json'`];
  if (withKey) words.push('-H "Authorization: Bearer $ICDSEL_SERVE_API_KEY"');
  words.push("--data-binary @- <<'END'");
  return `${words.join(" ")}\n${JSON.stringify(body)}\nEND\n`;
}

// Copies a promised text; a click stays one for Safari while the promise is given along. True if it was copied.
export async function copyText(promise) {
  if (navigator.clipboard && window.ClipboardItem) {
    const blob = promise.then((text) => new Blob([text], { type: "text/plain" }));
    try {
      await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })]);
      return true;
    } catch {
      // Not allowed, or the text could not be made: the next line says which.
    }
  }
  byId("text").value = await promise;
  byId("text-dialog").showModal();
  byId("text").select();
  return false;
}

// Requests to the server of this page, with its key.

const KEY = "icdsel-key"; // in the session storage of this tab only
const byId = (id) => document.getElementById(id);

export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

// What a person reads of an error.
export function inWords(error) {
  const said = error instanceof Failure ? error.message : `Something went wrong on this page (${error.message})`;
  return said.charAt(0).toUpperCase() + said.slice(1);
}

let asking = null; // all requests that need a key wait for the same dialog

function askForKey(rejected) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const field = byId("key");
    byId("key-wrong").hidden = !rejected;
    field.value = "";
    const end = (given) => {
      byId("key-form").onsubmit = byId("key-cancel").onclick = dialog.oncancel = null;
      dialog.close();
      asking = null;
      resolve(given);
    };
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const given = field.value.trim();
      field.value = "";
      if (!/^[\x21-\x7e]+$/.test(given)) {
        byId("key-wrong").hidden = false; // a header cannot carry it
        return;
      }
      sessionStorage.setItem(KEY, given);
      end(true);
    };
    byId("key-cancel").onclick = dialog.oncancel = () => end(false);
    dialog.showModal();
    field.focus();
  });
  return asking;
}

async function reason(response) {
  const said = await response.json().then((body) => body?.error?.message, () => null);
  if (typeof said === "string" && said) return said;
  return `The server replied with the status ${response.status}`;
}

// The response to a request, which has succeeded. Asks for the key where one is needed.
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const options = { headers, signal };
    if (body !== undefined) {
      headers["Content-Type"] = "application/json";
      Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    }
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server cannot be reached. Is icdsel serve still running?");
    }
    if (response.ok) return response;
    const said = await reason(response);
    if (response.status !== 401) throw new Failure(said, response.status);
    // Another request may have got a new key meanwhile.
    if (sessionStorage.getItem(KEY) === key && !(await askForKey(key !== null))) {
      throw new Failure("A key is needed.", 401);
    }
  }
}

export const json = async (path, options) => (await request(path, options)).json();

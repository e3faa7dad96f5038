// What all pages use: elements made of text alone, and the API.

/** An element. Children are elements or text; text is never read as HTML. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** A refusal or a failure, as the API says it. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || `the server answers ${status}`);
    this.status = status;
    this.code = document.code;
  }
}

/** Asks the API. With a body it is a POST. */
export async function api(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(`/api/v1${path}`, options);
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
  return answer.json();
}

/** The path of a program in the API and of its page. */
export const program = (name) => `/programs/${encodeURIComponent(name)}`;

export function toast(text) {
  const place = document.getElementById("toasts");
  const note = h("div", {}, text);
  place.append(note);
  setTimeout(() => note.remove(), 8000);
}

/** Does something that may be refused, and says so. */
export async function attempt(work) {
  try {
    return await work();
  } catch (e) {
    toast(e.message);
    return undefined;
  }
}

export function duration(seconds) {
  if (seconds < 0 || !Number.isFinite(seconds)) return "";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** How long a run took, or has taken so far, in seconds; null if it has not begun. */
export function took(run, now = Date.now()) {
  if (!run.started_at) return null;
  const end = run.ended_at ? Date.parse(run.ended_at) : now;
  return (end - Date.parse(run.started_at)) / 1000;
}

/** A moment as people say it, the whole of it as a tip. */
export function moment(text) {
  if (!text) return h("span", { class: "dim" }, "–");
  const then = new Date(text);
  const ago = (Date.now() - then) / 1000;
  const said = ago < 5 ? "now" : ago < 86400 ? `${duration(ago)} ago` : then.toLocaleString();
  return h("time", { datetime: text, title: then.toLocaleString() }, said);
}

const LOOKS = {
  succeeded: "good", running: "busy", waiting: "warn", failed: "bad", signalled: "bad",
  "timed-out": "bad", "not-started": "bad", lost: "bad", interrupted: "bad", cancelled: "warn",
  superseded: "dim", idle: "dim", dead: "dim", stopped: "dim", starting: "busy", stopping: "warn",
  backoff: "warn", lingering: "warn",
};

export const look = (word) => LOOKS[word] || "dim";

export const badge = (word) => h("span", { class: `state ${look(word)}` }, word);

/** The usual duration of runs like this, in seconds; null if nobody knows. */
export async function usual(run) {
  const { runs } = await api(`/runs?program=${encodeURIComponent(run.program)}&outcome=succeeded&limit=30`);
  const times = runs.filter((r) => r.action === run.action && r.id < run.id).map((r) => took(r));
  times.sort((a, b) => a - b);
  return times.length ? times[times.length >> 1] : null;
}

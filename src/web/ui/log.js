// A log: its bytes become lines, and only those that are to be seen become elements.

import { h } from "./lib.js";

const HEIGHT = 20;
/** Browsers do not make elements taller than this, so beyond it the scroll bar is a scale. */
const TALLEST = 15_000_000;

/** Splits a line into pieces with the looks that ANSI codes give them. `state` is changed. */
export function ansi(text, state) {
  const pieces = [];
  // Other sequences (titles, movements) are left out; none of them does anything here.
  const code = /\x1b\[([0-9;:]*)m|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]/g;
  let at = 0;
  const add = (end) => {
    if (end > at) pieces.push([looks(state), text.slice(at, end)]);
  };
  for (let found; (found = code.exec(text)); at = code.lastIndex) {
    add(found.index);
    if (found[1] !== undefined) paint(found[1].split(/[;:]/).map(Number), state);
  }
  add(text.length);
  return pieces;
}

function paint(numbers, state) {
  for (let i = 0; i < numbers.length; i++) {
    const n = numbers[i];
    if (n === 0) for (const key of Object.keys(state)) delete state[key];
    else if (n === 1) state.b = 1;
    else if (n === 2) state.d = 1;
    else if (n === 3) state.i = 1;
    else if (n === 4) state.u = 1;
    else if (n === 9) state.s = 1;
    else if (n === 22) delete state.b, delete state.d;
    else if (n === 23) delete state.i;
    else if (n === 24) delete state.u;
    else if (n === 29) delete state.s;
    else if ((n >= 30 && n <= 37) || (n >= 90 && n <= 97)) state.c = n % 10;
    else if ((n >= 40 && n <= 47) || (n >= 100 && n <= 107)) state.g = n % 10;
    else if (n === 39) delete state.c;
    else if (n === 49) delete state.g;
    else if (n === 38 || n === 48) i += numbers[i + 1] === 5 ? 2 : numbers[i + 1] === 2 ? 4 : 0;
  }
}

function looks(state) {
  const names = [];
  for (const key of ["b", "d", "i", "u", "s"]) if (state[key]) names.push(key);
  if (state.c !== undefined) names.push(`c${state.c}`);
  if (state.g !== undefined) names.push(`g${state.g}`);
  return names.join(" ");
}

export class Log {
  constructor({ onlines } = {}) {
    this.lines = []; // { text, err, time, state }
    this.open = { out: null, err: null }; // the line that each stream has not ended
    this.state = { out: {}, err: {} };
    this.onlines = onlines || (() => {});
    this.follow = true;
    this.at = -1;
    this.hits = [];
    this.needle = "";
    this.space = h("div", { class: "space" });
    this.element = h("div", {
      class: "log", tabindex: "0", role: "log", "aria-label": "Output", onscroll: () => this.scrolled(),
    }, this.space);
    this.waiting = false;
  }

  /** Takes in a piece of output. */
  add({ stream, text, time }) {
    const parts = text.split("\n");
    parts.forEach((part, i) => {
      let line = this.open[stream];
      if (!line && (part !== "" || i < parts.length - 1)) {
        line = { text: "", err: stream === "err", time, state: { ...this.state[stream] } };
        this.lines.push(line);
        this.open[stream] = line;
      }
      if (line) line.text += part;
      if (i < parts.length - 1) {
        // What was written over (a progress bar) does not count.
        const last = line.text.replace(/\r+$/, "").lastIndexOf("\r");
        line.text = last < 0 ? line.text.replace(/\r+$/, "") : line.text.slice(last + 1);
        if (line.text.includes("\x1b")) ansi(line.text, this.state[stream]);
        this.open[stream] = null;
      }
    });
    this.refresh();
  }

  refresh() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.needle) this.find(this.needle, false);
      this.show();
      this.onlines(this.lines.length);
    });
  }

  get tall() {
    return Math.min(this.lines.length * HEIGHT, TALLEST);
  }

  /** The first line that is to be seen. */
  get top() {
    const all = this.lines.length * HEIGHT;
    if (all <= TALLEST) return this.element.scrollTop / HEIGHT;
    const room = Math.max(1, this.tall - this.element.clientHeight);
    const most = this.lines.length - this.element.clientHeight / HEIGHT;
    return (this.element.scrollTop / room) * most;
  }

  show() {
    this.space.style.height = `${this.tall}px`;
    if (this.follow) this.element.scrollTop = this.element.scrollHeight;
    const first = Math.max(0, Math.floor(this.top) - 10);
    const count = Math.ceil(this.element.clientHeight / HEIGHT) + 20;
    const from = this.element.scrollTop - (this.top - first) * HEIGHT;
    const rows = [];
    for (let n = first; n < Math.min(first + count, this.lines.length); n++) {
      rows.push(this.row(n, from + (n - first) * HEIGHT));
    }
    this.space.replaceChildren(...rows);
  }

  row(n, y) {
    const line = this.lines[n];
    const looks = ["line"];
    if (line.err) looks.push("err");
    if (n === this.at) looks.push("at");
    if (this.needle && this.isHit(line)) looks.push("hit");
    const time = line.time ? new Date(line.time * 1000).toLocaleTimeString() : "";
    const pieces = ansi(line.text, { ...line.state });
    const row = h("div", { class: looks.join(" ") },
      h("a", { class: "number", href: `${location.hash.split("/L")[0]}/L${n + 1}` }, `${n + 1}`),
      h("span", { class: "time" }, time),
      pieces.map(([looks, text]) => (looks ? h("span", { class: looks }, text) : text)));
    row.style.top = `${y}px`;
    return row;
  }

  scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.element;
    const bottom = scrollHeight - clientHeight - scrollTop < HEIGHT;
    if (bottom !== this.follow && !this.waiting) this.setFollow(bottom);
    this.show();
  }

  setFollow(follow) {
    this.follow = follow;
    this.onlines(this.lines.length);
    if (follow) this.show();
  }

  /** Shows a line, from 0. */
  go(n) {
    this.at = Math.max(0, Math.min(n, this.lines.length - 1));
    this.follow = false;
    const all = this.lines.length * HEIGHT;
    const middle = this.at - this.element.clientHeight / HEIGHT / 2;
    this.element.scrollTop = middle * HEIGHT * (all > TALLEST ? this.tall / all : 1);
    this.show();
    this.onlines(this.lines.length);
  }

  isHit(line) {
    return line.text.toLowerCase().includes(this.needle);
  }

  /** Finds lines with this text; how many there are. */
  find(text, go = true) {
    this.needle = text.toLowerCase();
    this.hits = [];
    if (this.needle) {
      this.lines.forEach((line, n) => {
        if (this.isHit(line)) this.hits.push(n);
      });
    }
    if (go && this.hits.length) this.next(1);
    else if (go) this.show();
    return this.hits.length;
  }

  /** The next line that was found (1), or the one before (-1). */
  next(step) {
    if (!this.hits.length) return this.go((this.at < 0 ? -1 : this.at) + step);
    const beyond = (n) => (step > 0 ? n > this.at : n < this.at);
    const order = step > 0 ? this.hits : [...this.hits].reverse();
    return this.go(order.find(beyond) ?? order[0]);
  }
}

/** Reads a run's log into `log` and goes on until the run is over; where it was cut off, again. */
export async function read(run, log, signal) {
  let offset = 0;
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 10000)) {
    try {
      const answer = await fetch(`/api/v1/runs/${run}/log?format=lines&follow=true&offset=${offset}`, { signal });
      if (!answer.ok) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let got; !(got = await reader.read()).done;) {
        const lines = (rest + got.value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          const piece = JSON.parse(line);
          offset = piece.offset;
          log.add(piece);
        }
      }
      return;
    } catch (e) {
      if (signal.aborted) return;
      await new Promise((later) => setTimeout(later, pause));
    }
  }
}

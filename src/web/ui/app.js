// The pages, and the one stream of events that keeps them true.

import { Log, read } from "./log.js";
import { api, attempt, badge, duration, h, look, moment, program as at, toast, took, usual } from "./lib.js";

const main = document.getElementById("main");
const search = document.getElementById("search");
/** The page that is shown: what it does about events, keys and the search field. */
let page = {};

const PAGES = [
  [/^#?\/?$/, programs, "programs"],
  [/^#\/programs\/([^/]+)$/, program, "programs"],
  [/^#\/runs\/(\d+)(?:\/L(\d+))?$/, run, "activity"],
  [/^#\/activity$/, activity, "activity"],
];

async function route() {
  const found = PAGES.map(([form, show, name]) => [location.hash.match(form), show, name]).find(([m]) => m);
  // Another line of the same log is not another page.
  if (found && found[1] === run && page.run === found[0][1] && found[0][2]) return page.go(found[0][2]);
  page.leave?.();
  page = {};
  search.value = "";
  for (const link of document.querySelectorAll("[data-page]")) {
    if (found && link.dataset.page === found[2]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!found) return show("Not here", h("p", {}, "There is no such page."));
  try {
    await found[1](...found[0].slice(1).map((part) => part && decodeURIComponent(part)));
  } catch (e) {
    show("Not here", h("p", {}, e.message));
  }
}

function show(title, ...content) {
  document.title = `${title} · deployer`;
  main.replaceChildren(h("h1", {}, title), ...content.flat());
}

/** Lets `work` run again when something changes, but not more often than it takes. */
function again(work) {
  let timer = null;
  return () => {
    timer ??= setTimeout(async () => {
      timer = null;
      await work().catch(() => {});
    }, 150);
  };
}

/** A table whose rows lead somewhere, by mouse and by keys. */
function table(heads, rows) {
  const body = rows.map(({ to, cells }) => h("tr", {
    tabindex: "0",
    "data-to": to,
    onkeydown: (e) => e.key === "Enter" && e.target === e.currentTarget && (location.hash = to),
  }, cells.map((cell) => h("td", {}, cell))));
  return h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, body));
}

const dots = (runs) => h("span", { class: "dots" }, runs.map((r) => h("a", {
  class: look(r.outcome), href: `#/runs/${r.id}`, title: `run ${r.id}: ${r.outcome}`, "aria-label": `run ${r.id}: ${r.outcome}`,
})));

const stateOf = (p) => (p.service ? p.service.status : p.state);

/** Does an action, and shows its run if it has one. */
async function act(p, action, body = {}) {
  await attempt(async () => {
    const { run, message } = await api(`${at(p.name)}/actions/${action}`, body);
    if (message) toast(message);
    if (run) location.hash = `#/runs/${run}`;
  });
}

function buttons(p, actions, className) {
  const there = actions.filter((action) => p.actions.includes(action));
  return there.map((action) => h("button", {
    class: className, disabled: p.frozen && action !== "stop", onclick: () => act(p, action),
  }, action));
}

/** What one does with a program most of all. */
function first(p) {
  if (!p.supervised) return ["run"];
  return stateOf(p) === "stopped" || stateOf(p) === "failed" ? ["start"] : ["restart", "stop"];
}

async function programs() {
  const place = h("div", {});
  const draw = async () => {
    const [{ programs }, { runs }] = await Promise.all([api("/programs"), api("/runs?limit=500")]);
    const wanted = search.value.toLowerCase();
    const rows = programs.filter((p) => p.name.toLowerCase().includes(wanted)).map((p) => {
      const own = runs.filter((r) => r.program === p.name && !r.action.startsWith("notify-"));
      const needs = p.inputs.some((input) => input.default === null);
      return {
        to: `#${at(p.name)}`,
        cells: [
          h("a", { href: `#${at(p.name)}` }, p.name),
          [badge(stateOf(p)), p.waiting ? h("span", { class: "warn" }, ` ${p.waiting} waiting`) : null,
            p.frozen ? h("div", { class: "warn", title: p.frozen }, "frozen") : null,
            p.failing ? h("div", { class: "bad", title: p.failing }, "source not reached") : null,
            p.newest ? h("div", { class: p.newest.endsWith("it is current") ? "good" : "warn" }, p.newest) : null,
            p.next_check ? h("div", { class: "dim" }, `next check ${p.next_check}`) : null],
          [dots(own.slice(0, 10).reverse()), " ", moment(own[0]?.requested_at)],
          h("span", { class: "row" }, needs && !p.supervised && p.actions.includes("run")
            ? h("a", { href: `#${at(p.name)}` }, "run …") : buttons(p, first(p))),
        ],
      };
    });
    place.replaceChildren(rows.length ? table(["Program", "State", "Last runs", ""], rows)
      : h("p", { class: "dim" }, wanted ? "Nothing is called like that." : "There is no program that you may use."));
  };
  page = { event: again(draw), search: again(draw) };
  show("Programs", place);
  await draw();
}

function field(input) {
  const id = `input-${input.name}`;
  const common = { id, name: input.name, required: input.default === null };
  const value = input.default ?? "";
  let control;
  if (input.kind === "choice") {
    control = h("select", common, input.default === null ? h("option", { value: "" }, "choose …") : null,
      input.choices.map((c) => h("option", { value: c, selected: c === value }, c)));
  } else if (input.kind === "flag") {
    control = h("input", { ...common, required: false, type: "checkbox", checked: value === "yes" });
  } else if (input.kind === "int") {
    control = h("input", { ...common, type: "number", step: 1, min: input.min, max: input.max, value });
  } else {
    // The pattern is the daemon's to check: its expressions are not quite those of browsers.
    control = h("input", { ...common, type: "text", value, title: input.pattern ? `has to match ${input.pattern}` : null });
  }
  return [h("label", { for: id }, input.name), control];
}

function formOf(p, action) {
  const fields = p.inputs.flatMap(field);
  const args = p.args ? [h("label", { for: "args" }, "arguments"), h("input", { id: "args", placeholder: "one after the other, between blanks" })] : [];
  return h("form", {
    class: "inputs",
    onsubmit: (e) => {
      e.preventDefault();
      const inputs = {};
      for (const input of p.inputs) {
        const control = e.target.elements[input.name];
        inputs[input.name] = input.kind === "flag" ? (control.checked ? "yes" : "no") : control.value;
      }
      const words = e.target.elements.args?.value.split(/\s+/).filter(Boolean) ?? [];
      const reason = e.target.elements.reason.value || null;
      act(p, action, { inputs, args: words, reason });
    },
  }, fields, args, h("label", { for: "reason" }, "reason"), h("input", { id: "reason", maxlength: 1000 }),
  h("div", { class: "wide" }, h("button", { class: "main", disabled: !!p.frozen }, action)));
}

async function releases(p, refresh) {
  if (!p.source) return [];
  const [{ releases }, why] = await Promise.all([api(`${at(p.name)}/releases`), api(`${at(p.name)}/why`)]);
  const may = (action) => p.actions.includes(action) && !p.frozen;
  const rows = releases.map((r) => ({
    to: `#/runs/${r.run}`,
    cells: [
      h("code", { title: r.revision }, r.release), moment(r.made), h("a", { href: `#/runs/${r.run}` }, `run ${r.run}`),
      [h("span", { class: r.state === "refused" ? "bad" : r.state === "current" ? "good" : "dim" }, r.state), r.pinned ? " pinned" : null],
      h("span", { class: "row" },
        may("rollback") && r.state !== "current" ? h("button", { onclick: () => act(p, "rollback", { args: [r.release] }) }, "roll back") : null,
        may("pin") && !r.pinned ? h("button", { onclick: () => act(p, "pin", { args: [r.release] }).then(refresh) }, "pin") : null,
        may("unpin") && r.pinned ? h("button", { onclick: () => act(p, "unpin").then(refresh) }, "unpin") : null),
    ],
  }));
  return [h("h2", {}, "Code"), h("p", { class: "dim" }, p.source), h("pre", {}, why.text),
    rows.length ? table(["Release", "Made", "By", "State", ""], rows) : null];
}

function freezing(p, refresh) {
  const change = (path, body) => attempt(() => api(`${at(p.name)}/${path}`, body)).then(refresh);
  if (p.frozen) {
    return h("div", { class: "banner", role: "status" }, `It is ${p.frozen}. `,
      p.actions.includes("freeze") ? h("button", { onclick: () => change("thaw", {}) }, "thaw") : null);
  }
  return null;
}

async function program(name) {
  const place = h("div", {});
  let p;
  const form = h("div", {});
  const draw = async () => {
    let runs;
    [p, { runs }] = await Promise.all([api(at(name)), api(`/runs?program=${encodeURIComponent(name)}&limit=30`)]);
    const code = await releases(p, refresh).catch((e) => [h("p", { class: "bad" }, e.message)]);
    const s = p.service;
    const facts = [["State", badge(stateOf(p))]];
    if (s?.pid) facts.push(["Process", `${s.pid}`]);
    if (s?.since) facts.push(["Since", moment(s.since)]);
    if (s?.restarts) facts.push(["Restarts", `${s.restarts}`]);
    if (s?.last_exit) facts.push(["Last one", s.last_exit]);
    if (s?.memory) facts.push(["Memory", `${(s.memory / 1048576).toFixed(1)} MiB`]);
    for (const [action, times] of Object.entries(p.schedules)) facts.push([`Does ${action} at`, times]);
    const others = p.actions.filter((a) => !["run", "cancel", "freeze", "status", "signal", "kill", "console", "pin", "unpin", "rollback"].includes(a));
    // A form that somebody fills in is left alone.
    if (p.actions.includes("run") && !form.contains(document.activeElement)) form.replaceChildren(h("h2", {}, "Run"), formOf(p, "run"));
    place.replaceChildren(
      freezing(p, refresh) ?? "",
      h("dl", { class: "facts" }, facts.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
      h("div", { class: "row" }, buttons(p, others),
        p.actions.includes("freeze") && !p.frozen ? h("button", {
          onclick: () => {
            const reason = prompt(`Why shall ${p.name} stand still?`);
            if (reason) attempt(() => api(`${at(p.name)}/freeze`, { reason })).then(refresh);
          },
        }, "freeze") : null),
      form, ...code.filter(Boolean),
      h("h2", {}, "History"), history(runs));
  };
  const refresh = again(draw);
  page = {
    event: (e) => (!e.program || e.program === name) && refresh(),
    r: () => (p.inputs.length ? form.querySelector("input, select")?.focus() : act(p, first(p)[0])),
  };
  show(name, place);
  await draw();
}

function history(runs) {
  return table(["Run", "Outcome", "Program", "By", "When", "Took"], runs.map((r) => ({
    to: `#/runs/${r.id}`,
    cells: [
      h("a", { href: `#/runs/${r.id}` }, `${r.id}`), badge(r.outcome), `${r.program} ${r.action}`,
      [r.by.user, r.reason ? h("div", { class: "dim" }, r.reason) : null], moment(r.requested_at),
      r.started_at ? duration(took(r)) : "",
    ],
  })));
}

async function activity() {
  const outcome = h("select", { "aria-label": "Outcome", onchange: () => refresh() }, h("option", { value: "" }, "all outcomes"),
    ["waiting", "running", "succeeded", "failed", "signalled", "timed-out", "cancelled", "superseded", "not-started", "interrupted", "lost"]
      .map((word) => h("option", {}, word)));
  const place = h("div", {});
  let limit = 50;
  const more = h("button", { onclick: () => { limit += 50; refresh(); } }, "older ones");
  const draw = async () => {
    const query = outcome.value ? `&outcome=${outcome.value}` : "";
    const { runs } = await api(`/runs?limit=${limit}${query}`);
    const wanted = search.value.toLowerCase();
    const text = (r) => `${r.id} ${r.program} ${r.action} ${r.by.user} ${r.reason ?? ""}`.toLowerCase();
    place.replaceChildren(history(runs.filter((r) => text(r).includes(wanted))));
    more.hidden = runs.length < limit;
  };
  const refresh = again(draw);
  page = { event: refresh, search: refresh };
  show("Activity", h("div", { class: "row" }, outcome), place, more);
  await draw();
}

const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

function command(r) {
  const inputs = Object.entries(r.inputs).map(([k, v]) => quote(`${k}=${v}`));
  const words = r.action === "run" ? ["deployer", "RUN", r.program, ...inputs] : ["deployer", r.program, r.action, ...inputs];
  return [...words, ...(r.args.length ? ["--", ...r.args.map(quote)] : [])].join(" ");
}

/** The steps of an update, from what it says. */
function steps(log) {
  const found = [];
  for (const { text } of log.lines) {
    const step = text.match(/^([a-z][a-z -]*): (.*) \((\d+\.\d+) s\)$/);
    if (step) found.push(step.slice(1));
  }
  return found;
}

async function run(id, line) {
  const stop = new AbortController();
  let r = await api(`/runs/${id}`);
  const name = `#${at(r.program)}`;
  const p = await api(at(r.program)).catch(() => ({ actions: [], inputs: [] }));
  const expected = await usual(r).catch(() => null);
  const facts = h("div", {});
  const bar = h("progress", { max: 100, "aria-label": "Progress" });
  const list = h("div", {});
  const following = h("button", { "aria-pressed": "true", onclick: () => log.setFollow(!log.follow) }, "follow");
  const count = h("span", { class: "dim" });
  const log = new Log({
    onlines: (n) => {
      count.textContent = `${n} lines`;
      following.setAttribute("aria-pressed", `${log.follow}`);
      following.classList.toggle("main", log.follow);
    },
  });
  const times = h("button", {
    "aria-pressed": "false",
    onclick: () => times.setAttribute("aria-pressed", `${log.element.classList.toggle("times")}`),
  }, "times");
  const repeat = h("button", { onclick: () => act({ name: r.program }, r.action, { inputs: r.inputs, args: r.args, reason: r.reason }) }, "run again");
  const cancel = h("button", { class: "danger", onclick: () => attempt(() => api(`/runs/${id}/cancel`, {})).then((done) => done && toast(done.text)) }, "cancel");

  const live = () => r.outcome === "running" || r.outcome === "waiting";
  const draw = () => {
    const rows = [
      ["Program", h("a", { href: name }, r.program)], ["Action", r.action], ["Outcome", [badge(r.outcome), r.detail ? ` ${r.detail}` : null]],
      ["By", r.by.user], ["Asked", moment(r.requested_at)],
    ];
    if (r.reason) rows.push(["Reason", r.reason]);
    if (r.started_at) rows.push([live() ? "Takes" : "Took", duration(took(r)) + (expected !== null ? ` (usually ${duration(expected)})` : "")]);
    if (r.exit_code !== null) rows.push(["Exit status", `${r.exit_code}`]);
    if (r.signal) rows.push(["Signal", r.signal]);
    if (r.covered_by) rows.push(["Covered by", h("a", { href: `#/runs/${r.covered_by}` }, `run ${r.covered_by}`)]);
    for (const [k, v] of Object.entries(r.inputs)) rows.push([k, v]);
    if (r.args.length) rows.push(["Arguments", r.args.join(" ")]);
    facts.replaceChildren(h("dl", { class: "facts" }, rows.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])));
    bar.hidden = r.outcome !== "running";
    const said = log.lines.slice(-5).reverse().map((l) => l.text.match(/(\d{1,3}(?:\.\d+)?)\s?%/)).find(Boolean);
    if (said) bar.value = Math.min(100, Number(said[1]));
    else if (expected) bar.value = Math.min(99, (100 * took(r)) / expected);
    else bar.removeAttribute("value");
    cancel.hidden = !live() || !p.actions.includes(p.supervised && r.action === "start" ? "stop" : "cancel");
    repeat.hidden = live() || !p.actions.includes(r.action);
    const done = steps(log);
    list.replaceChildren(...(p.source && done.length ? [h("h2", {}, "Steps"),
      h("ol", {}, done.map(([step, said, time]) => h("li", {}, `${step}: ${said} `, h("span", { class: "dim" }, `${time} s`))))] : []));
  };
  const refresh = again(async () => {
    r = await api(`/runs/${id}`);
    draw();
  });
  const clock = setInterval(() => r.outcome === "running" && draw(), 500);
  page = {
    run: id,
    go: (n) => log.go(n - 1),
    event: (e) => (!e.program || e.run === Number(id)) && refresh(),
    search: () => { count.textContent = search.value ? `${log.find(search.value)} found` : (log.find(""), `${log.lines.length} lines`); },
    next: (step) => log.next(step),
    f: () => log.setFollow(!log.follow),
    r: () => !repeat.hidden && repeat.click(),
    leave: () => { stop.abort(); clearInterval(clock); },
  };
  show(`Run ${id}`, facts, bar, h("div", { class: "row" }, cancel, repeat, following, times,
    h("a", { href: `/api/v1/runs/${id}/log`, download: `${r.program.replaceAll("/", "-")}-${id}.log` }, "download"),
    h("button", { onclick: () => navigator.clipboard?.writeText(command(r)).then(() => toast(command(r))) }, "copy as command"), count), list, log.element);
  draw();
  read(id, log, stop.signal).then(() => {
    refresh();
    if (line) log.go(Number(line) - 1);
  });
}

function listen() {
  const link = document.getElementById("link");
  const events = new EventSource("/api/v1/events");
  events.onopen = () => { link.textContent = ""; };
  events.onerror = () => { link.textContent = "connecting …"; };
  events.onmessage = (message) => page.event?.(JSON.parse(message.data));
}

function step(by) {
  if (page.next) return page.next(by);
  const rows = [...main.querySelectorAll("tr[data-to]")];
  const now = rows.indexOf(document.activeElement?.closest("tr[data-to]"));
  return rows[Math.max(0, Math.min(rows.length - 1, now + by))]?.focus();
}

const KEYS = {
  "/": () => search.focus(),
  "?": () => document.getElementById("help").showModal(),
  g: () => { location.hash = "#/"; },
  j: () => step(1),
  k: () => step(-1),
  r: () => page.r?.(),
  f: () => page.f?.(),
};

document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
  if (typing && e.key === "Escape") return e.target.blur();
  if (typing || document.getElementById("help").open) return;
  if (KEYS[e.key]) {
    e.preventDefault();
    KEYS[e.key]();
  }
});
search.addEventListener("input", () => page.search?.());
search.addEventListener("keydown", (e) => e.key === "Enter" && page.next?.(e.shiftKey ? -1 : 1));
addEventListener("hashchange", route);

const me = await attempt(() => api("/me"));
document.getElementById("me").textContent = me?.user || "nobody";
listen();
route();

// SPDX-License-Identifier: Apache-2.0
// The status page: shows the agent's answers as text and tables, every two seconds.
//
// The upper part is pure: it turns the agent's JSON into HTML, and escapes everything that comes
// from the JSON. The lower part sends requests, updates the page, and handles the user's input.
"use strict";

// -- HTML

class Markup {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
}

function escaped(value) {
  if (value instanceof Markup) return value.text;
  if (Array.isArray(value)) return value.map(escaped).join("");
  if (value === null || value === undefined || value === false) return "";
  return String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

function html(strings, ...values) {
  return new Markup(strings.reduce((text, part, n) => text + escaped(values[n - 1]) + part));
}

// -- numbers as people read them (agent/humanise.py)

const UNITS = ["", "k", "M", "G", "T", "P"];

function count(value) {
  if (value === null || value === undefined) return "";
  if (Math.abs(value) < 1000) {
    if (Number.isInteger(value) || Math.abs(value) >= 99.95) return value.toFixed(0);
    return Math.abs(value) >= 0.05 ? value.toFixed(1) : "<0.1";
  }
  let unit = 0;
  while (Math.abs(value) >= (unit ? 999.5 : 1000) && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return value.toFixed(Math.abs(value) < 99.95 ? 1 : 0) + UNITS[unit];
}

function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h${two(Math.floor(whole % 3600 / 60))}m`;
  return `${Math.floor(whole / 86400)}d${two(Math.floor(whole % 86400 / 3600))}h`;
}

function milliseconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 0.9995) return `${(value * 1000).toFixed(0)}µs`;
  if (value < 9.95) return `${value.toFixed(1)}ms`;
  if (value < 999.5) return `${value.toFixed(0)}ms`;
  return value < 59950 ? `${(value / 1000).toFixed(1)}s` : age(value / 1000);
}

function percent(share) {
  return share === null || share === undefined ? "" : `${(share * 100).toFixed(0)}%`;
}

function endpoint(address, port) {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour12: false });
}

function plural(number, noun) {
  const grouped = String(number).replace(/\B(?=(\d{3})+$)/g, ",");
  return number === 1 ? `1 ${noun}` : `${grouped} ${noun}s`;
}

// -- parts of tables

function state(word) {
  return html`<span class="state s-${word}">${word}</span>`;
}

function table(caption, heads, rows) {
  const head = heads.map(([title, kind]) => html`<th scope="col" class="${kind}">${title}</th>`);
  const body = rows.map((cells) => html`<tr>${cells.map((cell, n) =>
    html`<td class="${heads[n][1]}">${cell}</td>`)}</tr>`);
  return html`<table><caption>${caption}</caption><thead><tr>${head}</tr></thead><tbody>${body}
</tbody></table>`;
}

function command(text) {
  return html`<button type="button" class="copy" data-copy="${text}" title="copy">${text}</button>`;
}

// -- the page's parts

const HOOKS = { native: "native XDP", generic: "generic XDP", tc: "tc ingress",
  external: "called by another program" };

// Says what the HAProxy of this host does.
function tierView({ load }) {
  if (!load) return html`<span class="bad">not known</span>`;
  const notes = [
    load.refused_per_s > 0 && `${count(load.refused_per_s)}/s refused`,
    load.failed_per_s > 0 && `${count(load.failed_per_s)}/s failed`,
    `${count(load.current)} at engines`,
    load.queued > 0 && `${count(load.queued)} queued`,
    plural(load.connections, "connection"),
  ].filter(Boolean).join(", ");
  return html`${count(load.requests_per_s)} requests/s, ${notes}`;
}

// Says which version of its fleet a balancer runs, and what sets it apart from the others.
function versionView(fleet) {
  const { version, wanted_version: wanted } = fleet;
  const runs = version ? `version ${version}` : "own services";
  const notes = [
    wanted === version && version !== fleet.stable_version && "being tried",
    fleet.frozen !== null && "frozen",
    fleet.store_away_s !== null && "store away",
  ].filter(Boolean).map((note) => `, ${note}`);
  const other = wanted !== null && wanted !== version
    && html`, <span class="bad">${wanted} is wanted</span>`;
  return html`${runs}${notes}${other}`;
}

function headView(overview) {
  const { agent, dataplane: plane, rates, backends, services, fleet, tier } = overview.status;
  const where = [plane.interface, ...plane.backend_interfaces].join(", ");
  const does = plane.attached
    ? html`<b class="good">balancing</b> on ${where} (${HOOKS[plane.hook] || plane.hook}, driver
${plane.driver})`
    : html`<b class="bad">NOT attached</b> to ${where}`;
  const tally = (found) => Object.entries(found).filter(([name, n]) => name !== "total" && n)
    .map(([name, n]) => html` ${state(name)}&nbsp;${n}`);
  const flows = plane.flow_table;
  const facts = [
    ...(fleet ? [[`fleet ${fleet.name}`, versionView(fleet)]] : []),
    ["services", tally(services)],
    ["backends", tally(backends)],
    ["new flows", html`${count(rates.new_flows_per_s)}/s`],
    ["packets", html`${count(rates.packets_per_s)}/s`],
    ["traffic", html`${count(rates.bits_per_s)}bit/s`],
    ["dropped", html`${count(rates.drops_per_s)}/s`],
    ...(tier ? [["tier", tierView(tier)]] : []),
    ["established flows", html`${count(flows.established)}, ${percent(flows.used_share)} of the table in
use`],
  ];
  return html`<h1>${agent.name}</h1>
<p>${does}, version ${agent.version}, up ${age(agent.uptime_s)}</p>
<dl>${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function needsView(overview) {
  if (!overview.problems.length) return html`<p class="good">Nothing is wrong.</p>`;
  const last = overview.status.events_last_hour;
  return html`<ul class="needs">${overview.problems.map((text) => html`<li>${text}</li>`)}</ul>
<p class="note">In the last hour: ${plural(last.error || 0, "error")},
${plural(last.warning || 0, "warning")}. ${command("lbctl status")}
${command("lbctl events --since 1h --level warning")}</p>`;
}

function matches(row, words) {
  const text = `${row.name} ${row.vip} ${row.state} ${row.scheduler} ${row.forward}`.toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function handshakes(seen) {
  if (!seen || !seen.span_s) return "";
  const share = seen.begun ? ` of ${count(seen.begun / seen.span_s)}/s` : "";
  return `${count(seen.established / seen.span_s)}/s${share}`;
}

const SERVICE_HEADS = [["State", ""], ["Service", ""], ["VIP", ""], ["Way", "less"], ["Up", "n"],
  ["New flows", "n"], ["Handshakes", "n less"], ["Flows", "n"], ["Waiting", "n"],
  ["First byte p50", "n"], ["p99", "n"], ["Why", "prose"]];

const FEW_SERVICES = 20;

function servicesView(overview, words, open, all) {
  const found = overview.services.filter((row) => matches(row, words));
  const shown = all ? found : found.slice(0, FEW_SERVICES);
  if (!overview.services.length) return html`<p>There is no service: ${command("lbctl service add --help")}</p>`;
  if (!found.length) return html`<p>No service matches.</p>`;
  const rows = shown.map((row) => {
    const first = row.first_byte_last_minute || {};
    return [
      state(row.state),
      html`<button type="button" class="link" data-key="service ${row.name}" data-service="${row.name}"
 aria-expanded="${String(open === row.name)}">${row.name}</button>`,
      html`${endpoint(row.vip, row.port)}/${row.protocol}`,
      html`${row.forward}, ${row.scheduler}`,
      `${row.backends_up}/${row.backends_total}`,
      `${count(row.rates.new_flows_per_s)}/s`,
      handshakes(row.handshakes),
      count(row.flows_established),
      row.waiting_bytes === null ? "" : `${count(row.waiting_bytes)}B`,
      milliseconds(first.p50_ms),
      milliseconds(first.p99_ms),
      `${row.reason}, for ${age(row.since_s)}`,
    ];
  });
  const more = found.length > FEW_SERVICES ? html`<p><button type="button" data-key="all" data-all>
${all ? `Show the worst ${FEW_SERVICES} only` : `Show all ${found.length}`}</button></p>` : "";
  return html`${table("Services, the worst first", SERVICE_HEADS, rows)}${more}`;
}

function servicesCount(overview, words) {
  const shown = overview.services.filter((row) => matches(row, words)).length;
  const rest = overview.services_total - overview.services.length;
  const more = rest > 0 ? `, and ${rest} more in a better state: lbctl service list` : "";
  return `${shown} of ${plural(overview.services_total, "service")}${more}`;
}

const BACKEND_HEADS = [["State", ""], ["Backend", ""], ["Address", ""], ["Weight", "n"],
  ["Share", "n"], ["New flows", "n"], ["Flows", "n"], ["Waiting", "n"], ["First byte p50", "n"],
  ["p99", "n"], ["Queue", "n"], ["KV cache", "n"], ["GPUs", ""], ["Why", "prose"]];

function gpu(one) {
  if (one.lost) return html`<span class="bad">${one.gpu} lost</span>`;
  const figures = [percent(one.utilization_ratio),
    one.temperature_c === null ? "" : `${one.temperature_c}°C`,
    ...one.throttled_by].filter(Boolean).join(" ");
  return html`<span class="${one.throttled_by.length ? "bad" : ""}">${one.gpu} ${figures}</span> `;
}

function weight(row) {
  if (row.weight_effective === row.weight_configured) return String(row.weight_configured);
  return html`<span title="${row.weight_reason}">${row.weight_configured} → ${row.weight_effective}</span>`;
}

function why(row) {
  const weighs = row.weight_effective === row.weight_configured || row.state !== "up"
    ? "" : `; weight: ${row.weight_reason}`;
  return `${row.reason}, for ${age(row.since_s)}${weighs}`;
}

function detailView(name, answer, marked) {
  if (!answer) return html`<p>Asking the agent about ${name}.</p>`;
  if (answer.error) return html`<p class="bad">${answer.error.message}. ${answer.error.remedy}</p>`;
  const rows = answer.backends.map((row) => {
    const first = row.first_byte ? row.first_byte.last_minute : {};
    const reported = row.reported;
    const actual = row.share_actual === null ? "" : percent(row.share_actual);
    return [
      state(row.state),
      html`<span class="${row.name === marked ? "marked" : ""}">${row.name}</span>${row.backup ? " (backup)" : ""}`,
      row.port ? endpoint(row.address, row.port) : row.address,
      weight(row),
      html`<span title="share of new flows in the last minute; expected: ${percent(row.share_expected)}">${actual}</span>`,
      `${count(row.rates.new_flows_per_s)}/s`,
      count(row.flows_established),
      row.waiting_bytes === null ? "" : `${count(row.waiting_bytes)}B`,
      milliseconds(first.p50_ms),
      milliseconds(first.p99_ms),
      reported && reported.requests_waiting !== null ? count(reported.requests_waiting) : "",
      reported ? percent(reported.kv_cache_used_ratio) : "",
      reported ? reported.gpus.map(gpu) : "",
      why(row),
    ];
  });
  const one = marked || (answer.backends[0] || {}).name || "BACKEND";
  const more = answer.matched - answer.backends.length;
  return html`<h3>${name} <button type="button" class="link" data-key="close" data-service="${name}">close</button></h3>
${table(`Backends of ${name}, the worst first`, BACKEND_HEADS, rows)}
${more > 0 ? html`<p>And ${more} more: ${command(`lbctl backend list ${name}`)}</p>` : ""}
<p class="note">On the balancer: ${command(`lbctl service show ${name}`)}
${command(`lbctl backend show ${name}/${one}`)} ${command(`lbctl backend drain ${name}/${one}`)}
${command(`lbctl backend set ${name}/${one} --weight 50`)} ${command(`lbctl flows --service ${name}`)}
${command(`lbctl events --service ${name}`)}</p>`;
}

const MOST_COLUMNS = 40;

function cell(servers, services, one) {
  const [at, of, backend, word, load] = one;
  const [server, address] = servers[at];
  const busy = word === "up" ? `, ${percent(load)} of the busiest backend's work` : "";
  const label = `${services[of]}/${backend} on ${server} (${address}): ${word}${busy}`;
  const step = word === "up" ? ` l${Math.min(4, Math.ceil(load * 4))}` : "";
  return html`<button type="button" class="cell s-${word}${step}" title="${label}" aria-label="${label}"
 data-key="cell ${services[of]}/${backend}" data-service="${services[of]}" data-backend="${backend}"></button>`;
}

function mapView(overview) {
  const { servers, services, cells } = overview.matrix;
  if (!cells.length) return html`<p>There is no backend.</p>`;
  const legend = html`<p class="note">A cell is a backend. The fuller its colour, the more work it has,
compared with the busiest backend of its service.
${["up", "checking", "drain", "maintenance", "ejected", "unreachable", "down"].map((word) =>
    html`<span class="cell s-${word} l4"></span> ${word} `)}</p>`;
  const rows = services.map((name, n) => [name, cells.filter((one) => one[1] === n)]);
  if (servers.length > MOST_COLUMNS) {
    return html`${legend}<table class="map"><caption>${plural(servers.length, "server")}: the backends
of each service, by server</caption><tbody>${rows.map(([name, own]) => html`<tr><th scope="row">${name}</th>
<td>${own.map((one) => cell(servers, services, one))}</td></tr>`)}</tbody></table>`;
  }
  const heads = servers.map(([name, address]) =>
    html`<th scope="col" title="${address}"><span>${name}</span></th>`);
  const body = rows.map(([name, own]) => {
    const by = new Map();
    for (const one of own) by.set(one[0], [...(by.get(one[0]) || []), one]);
    return html`<tr><th scope="row">${name}</th>${servers.map((_, n) =>
      html`<td>${(by.get(n) || []).map((one) => cell(servers, services, one))}</td>`)}</tr>`;
  });
  return html`${legend}<table class="map"><caption>Servers across, services down</caption>
<thead><tr><td></td>${heads}</tr></thead><tbody>${body}</tbody></table>`;
}

function failoverView(found) {
  const problem = found.problem ? html`<p class="bad">${found.problem}</p>` : "";
  const heads = [["Instance", ""], ["Role", ""], ["For", "n"], ["Priority", "n"], ["Master", ""],
    ["VIPs", ""], ["Why", "prose"]];
  const rows = found.instances.map((row) => [
    row.name, state(row.role), age(row.since_s), String(row.priority_effective),
    row.master || "", row.vips.join(" "),
    html`${row.why}${row.mode === "normal" ? "" : ` (${row.mode})`}${row.problems.map((each) =>
      html` <span class="bad">${each.text}</span>`)}`,
  ]);
  const peers = found.flow_sync.peers.map((peer) => html`<p>Flow sync with ${peer.name || peer.address}:
${state(peer.state)}${peer.lag_s === null ? "" : `, ${milliseconds(peer.lag_s * 1000)} behind`}
(${peer.why})</p>`);
  return html`${problem}${table("Virtual routers", heads, rows)}${peers}
<p class="note">${command("lbctl failover status")} ${command("lbctl failover handover")}</p>`;
}

function eventsView(overview) {
  if (!overview.events.length) return html`<p>None yet.</p>`;
  const rows = overview.events.map((one) => [
    html`<time datetime="${one.at}" title="${one.at}">${clock(one.at)}</time>`,
    html`<span class="level v-${one.level}">${one.level}</span>`, one.about, one.text,
  ]);
  return html`${table("The newest first", [["At", ""], ["Level", ""], ["Of", ""], ["What", "prose"]], rows)}
<p class="note">${command("lbctl events --follow")}</p>`;
}

function answerView(answer) {
  if (answer.error) return html`<p class="bad">${answer.error.message}: ${answer.error.where}.
${answer.error.remedy}</p>`;
  const to = answer.backend ? ` to ${answer.service}/${answer.backend}`
    : answer.service ? ` (${answer.service})` : "";
  return html`<p><b>${answer.verdict}${to}</b>: ${answer.reason}</p>
<ol>${answer.steps.map((step) => html`<li>${step}</li>`)}</ol>`;
}

// Splits "198.51.100.7:40000" or "[2001:db8::7]:40000"; null if the text is neither.
function splitEndpoint(text) {
  const found = /^\s*(?:\[([0-9a-f:.]+)\]|([0-9.]+)):([0-9]+)\s*$/i.exec(text);
  return found && { address: found[1] || found[2], port: found[3] };
}

// -- the user and the agent

const EVERY_MS = 2000;
const PATIENCE_MS = 15000;
const TRACE_LINES = 200;

function start() {
  const at = (id) => document.getElementById(id);
  const shown = new Map();
  const open = { service: "", backend: "", answer: null };
  let overview = null;
  let overviewAt = null;
  let words = "";
  let all = false;

  // Writes only what has changed, so that the selection, the focus and the position of a screen
  // reader stay.
  function show(id, markup) {
    const text = String(markup);
    if (shown.get(id) === text) return;
    shown.set(id, text);
    const box = at(id);
    const focused = box.contains(document.activeElement) && document.activeElement.dataset.key;
    box.innerHTML = text;
    if (focused) {
      const again = [...box.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused);
      if (again) again.focus({ preventScroll: true });
    }
  }

  function draw() {
    if (!overview) return;
    document.title =
      `${overview.problems.length ? `(${overview.problems.length}) ` : ""}${overview.status.agent.name}`;
    show("head", headView(overview));
    show("needs", needsView(overview));
    show("services", servicesView(overview, words, open.service, all));
    at("services-count").textContent = servicesCount(overview, words);
    show("detail", open.service ? detailView(open.service, open.answer, open.backend) : "");
    show("map", mapView(overview));
    at("failover-section").hidden = !overview.failover;
    if (overview.failover) show("failover", failoverView(overview.failover));
    show("events", eventsView(overview));
    show("vips", overview.services.slice(0, 100).filter((row) => Number.isInteger(row.port))
      .map((row) => html`<option value="${endpoint(row.vip, row.port)}">`).join(""));
    if (at("trace-services") !== document.activeElement) {
      const chosen = at("trace-services").value;
      show("trace-services", html`<option value="">all</option>${overview.services.map((row) =>
        html`<option>${row.name}</option>`)}`);
      at("trace-services").value = chosen;
    }
  }

  // Browsers refuse to fetch from an address with the password in it, as a bookmark may have it.
  function addressOf(path, parameters) {
    const url = new URL(path, location.href);
    url.username = url.password = "";
    url.search = new URLSearchParams(parameters).toString();
    return url;
  }

  async function ask(path, parameters) {
    const answer = await fetch(addressOf(path, parameters),
      { signal: AbortSignal.timeout(PATIENCE_MS) });
    return answer.json();
  }

  async function look() {
    try {
      if (!document.hidden || !overview) {
        const answer = await ask("v1/page");
        if (answer.error) throw new Error(answer.error.message);
        overview = answer;
        overviewAt = new Date();
        if (open.service) await lookInto();
      }
      at("stale").hidden = true;
    } catch (error) {
      at("stale").hidden = false;
      const since = overviewAt
        ? `The page shows the state of ${clock(overviewAt)}.` : "There is no data yet.";
      at("stale").textContent = `The agent does not answer (${error.message}). ${since}`;
    }
    draw();
    setTimeout(look, EVERY_MS);
  }

  async function lookInto() {
    const service = open.service;
    const answer = await ask("v1/backends", { service, sort: "state", limit: "200" });
    if (open.service === service) open.answer = answer;
  }

  document.addEventListener("click", async (event) => {
    const one = event.target.closest("[data-service], [data-copy], [data-all]");
    if (!one) return;
    if ("all" in one.dataset) {
      all = !all;
      draw();
      return;
    }
    if (one.dataset.copy) {
      await copy(one);
      return;
    }
    const { service, backend = "" } = one.dataset;
    const closes = open.service === service && open.backend === backend;
    Object.assign(open, { service: closes ? "" : service, backend, answer: null });
    draw();
    if (closes) return;
    await lookInto().catch(() => {});
    draw();
    if (backend) at("detail").scrollIntoView({ block: "nearest" });
  });

  async function copy(button) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 1000);
    } catch {
      getSelection().selectAllChildren(button); // no clipboard over plain HTTP; Ctrl-C copies it
    }
  }

  at("filter").addEventListener("input", (event) => {
    words = event.target.value;
    draw();
  });

  at("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = new FormData(event.target);
    const [client, vip] = [splitEndpoint(given.get("client")), splitEndpoint(given.get("vip"))];
    if (!client || !vip) {
      const wrong = { message: "is not an address and port", where: client ? "VIP" : "client",
        remedy: "Write it as 198.51.100.7:40000 or [2001:db8::7]:40000." };
      show("answer", answerView({ error: wrong }));
      return;
    }
    try {
      show("answer", answerView(await ask("v1/explain", { protocol: given.get("protocol"),
        client: client.address, client_port: client.port, vip: vip.address, port: vip.port })));
    } catch (error) {
      show("answer", html`<p class="bad">The agent does not answer (${error.message}).</p>`);
    }
  });

  let tracing = null;
  at("trace-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (tracing) {
      tracing.abort();
      return;
    }
    tracing = new AbortController();
    at("trace-button").textContent = "Stop";
    try {
      await follow(new FormData(event.target), tracing.signal);
    } catch (error) {
      if (error.name !== "AbortError") line(`the trace broke off: ${error.message}`);
    }
    tracing = null;
    at("trace-button").textContent = "Start";
  });

  async function follow(given, signal) {
    const answer = await fetch(
      addressOf("v1/trace", [...given].filter(([, value]) => value)), { signal });
    if (!answer.ok) {
      const { error } = await answer.json();
      line(`${error.message}: ${error.remedy}`);
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) {
        const { text } = JSON.parse(part);
        if (text) line(text);
      }
    }
    line("the trace ended");
  }

  let lines = [];
  function line(text) {
    lines = [text, ...lines].slice(0, TRACE_LINES);
    at("trace").textContent = lines.join("\n");
  }

  look();
}

if (typeof document !== "undefined") start();

// The live panel of a service, drawn by hand: no framework, no build, nothing loaded from elsewhere.
// Whatever came from a request, a model or an exception is put into the page as text, never as markup.

const REASONS = [
	["full", "full"], ["model_free", "model free"], ["timeout", "wait over"], ["retry", "retry"], ["drain", "drain"],
];
const SPLIT = [["queue", 5, "drain"], ["predict", 6, "full"], ["rest", 7, "retry"]];
const BEAT_MS = 4000, ACK_MS = 250, SILENCE_MS = 12000, WINDOW_S = 60;
const KEPT_ROWS = 1000, ROW_PX = 27, EXACT_SIZES = 32;
const part = (colour) => `--part: var(--${colour})`;
const NO_BATCH = "No batch in this window";
const GONE = "The kernel was restarted or is gone; this is its last picture.";
// Places in a row of the log, and in a second.
const ID = 0, AT = 1, STATUS = 2, VERSION = 3, REPLICA = 4, BATCH = 5, SIZE = 6, REASON = 7, QUEUE = 8, PREDICT = 9,
	TOTAL = 10, PAYLOAD = 11, ANSWER = 12, ERROR = 13;
const COUNT = 1, P50 = 3, P99 = 4, WAITING = 8, SIZES = 9, ROWS = 10;

// -- text and elements

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Make control and direction characters visible; they could hide or turn what stands around them. */
function visible(text, {lines = false, most = 5000} = {}) {
	let shown = String(text ?? "");
	if (shown.length > most) shown = shown.slice(0, most) + "…";
	return shown.replace(LONE, "\ufffd").replace(HIDDEN, (sign) => {
		const code = sign.charCodeAt(0);
		if (lines && (code === 10 || code === 9)) return sign;
		if (code < 32) return String.fromCharCode(0x2400 + code);
		if (code === 127) return "\u2421";
		return `\u27e8${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
	});
}

const failed = (error) => `The panel's script failed: ${visible(error?.stack ?? error, {most: 400})}`;

/** Make an element, such as `div.class`; strings become text, `on…` handlers, the rest attributes. */
function h(kind, props, ...kids) {
	const [tag, ...classes] = kind.split(".");
	const made = tag === "svg" || tag === "path"
		? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
	if (classes.length) made.setAttribute("class", classes.join(" "));
	if (props && (typeof props === "string" || props.nodeType)) kids.unshift(props);
	else for (const [name, value] of Object.entries(props ?? {}))
		if (name.startsWith("on")) made.addEventListener(name.slice(2), guarded(value, (error) => tellOf(made, error)));
		else put(made, name, value);
	made.append(...kids);
	return made;
}

/** Make an error, now or later, known instead of losing it. */
function guarded(work, tell) {
	return (...args) => {
		try {
			const later = work(...args);
			later?.catch?.(tell);
		} catch (error) { tell(error); }
	};
}

const tellOf = (element, error) => element.dispatchEvent(new CustomEvent("as:failure", {bubbles: true, detail: error}));

/** Set text only where it differs: what does not change is neither laid out nor read out again. */
function say(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

function put(element, name, value) {
	if (name === "label") name = "aria-label";
	const wanted = name.startsWith("aria-") ? String(value) : value === true ? "" : value;
	if (wanted === false || wanted === null || wanted === undefined) element.removeAttribute(name);
	else if (element.getAttribute(name) !== String(wanted)) element.setAttribute(name, wanted);
}

const number = (value, digits = 0) => Number(value).toLocaleString("en-US", {
	minimumFractionDigits: digits, maximumFractionDigits: digits,
});
const short = (value) => number(value, value > 0 && value < 100 ? 1 : 0);
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : noun.endsWith("ch") ? "es" : "s"}`;
const reasonName = (reason) => (REASONS.find(([name]) => name === reason) ?? [0, reason ?? "–"])[1];
const pre = (label, text) => h("pre", {tabindex: 0, label}, visible(text, {lines: true}));
const across = (...kids) => h("div.as-row", ...kids);
let ids = 0;
const newId = () => `as${Date.now().toString(36)}-${++ids}`;

async function copy(text) {
	try {
		await navigator.clipboard.writeText(text);
	} catch {
		const box = h("textarea", {style: "position:fixed;opacity:0"});
		box.value = text;
		document.body.append(box);
		box.select();
		document.execCommand("copy");
		box.remove();
	}
}

// -- what all views of a panel share

class Store {
	page = newId() + Math.random().toString(36).slice(2, 8);
	views = new Set();
	head = {};
	totals = {requests: 0, errors: 0, batches: 0, batched: 0, rows: 0};
	sizes = [];
	rowSizes = [];
	states = [];
	seconds = new Map();
	rows = [];
	added = 0;
	why = null;
	latency = null;
	last = null;
	error = null;
	lost = null;
	example = "";
	flashes = 0;
	skew = 0;
	asked = new Map();
	number = 0;
	shown = 0;
	heard = Date.now();
	failure = "";
	told = false;

	constructor(model) {
		this.model = model;
		this.guarded = (work) => guarded(work, (error) => this.fail(error));
		this.apply(model.get("snapshot") ?? {});
		this.saved = true;
		this.onMessage = this.guarded((content, buffers) => this.take(content, buffers));
		this.onLive = this.guarded(() => setTimeout(() => {
			if (Date.now() - this.heard > 900) this.dead(GONE);
		}, 1000));
		this.onVisibility = this.guarded(() => this.beat());
		model.on("msg:custom", this.onMessage);
		model.on("comm_live_update", this.onLive);
		document.addEventListener("visibilitychange", this.onVisibility);
		this.timer = setInterval(this.guarded(() => this.beat()), BEAT_MS);
		this.clock = setInterval(this.guarded(() => this.tickTock()), 500);
	}

	close() {
		clearInterval(this.timer);
		clearInterval(this.clock);
		this.model.off("msg:custom", this.onMessage);
		this.model.off("comm_live_update", this.onLive);
		document.removeEventListener("visibilitychange", this.onVisibility);
		this.send({kind: "view", page: this.page, visible: false});
	}

	send(content) {
		try { this.model.send(content); } catch { this.dead(GONE); }
	}

	/** Say that some view is looked at, or that none is any more. */
	beat() {
		const seen = !document.hidden && [...this.views].some((view) => view.isShown());
		if (!seen && !this.told) return;
		if (seen && !this.told) this.heard = Date.now();
		this.told = seen;
		this.send({kind: "view", page: this.page, visible: seen, shown: this.shown});
	}

	tickTock() {
		if (this.told && !this.stopped && Date.now() - this.heard > SILENCE_MS)
			this.dead("The kernel has said nothing for a while; this is its last picture.");
		this.redraw();
	}

	dead(sentence) {
		this.lost = this.lost ?? sentence;
		for (const [, done] of this.asked) done({ok: false, text: "The kernel did not answer."});
		this.asked.clear();
		this.redraw();
	}

	fail(error) {
		console.error(error);
		this.failure = failed(error);
		for (const view of this.views) view.showFailure();
	}

	take(content, buffers) {
		this.heard = Date.now();
		this.lost = null;
		if (content.kind === "result") {
			this.asked.get(content.number)?.({...content, buffers});
			this.asked.delete(content.number);
			return;
		}
		if (content.kind !== "tick") return;
		const parts = JSON.parse(new TextDecoder().decode(buffers[0]));
		this.saved = false;
		if (parts.reset) { this.seconds.clear(); this.added -= this.rows.length; this.rows = []; }
		this.skew = parts.now - Date.now() / 1000;
		this.apply(parts);
		this.shown = content.number;
		this.ack ??= setTimeout(() => { this.ack = undefined; this.beat(); }, ACK_MS);
		this.redraw();
	}

	apply(parts) {
		for (const name of ["head", "totals", "sizes", "states", "why", "latency", "error", "example"])
			if (name in parts) this[name] = parts[name];
		if ("row_sizes" in parts) this.rowSizes = parts.row_sizes;
		if (parts.last && parts.last[0] !== this.last?.[0]) { this.flashes += this.last ? 1 : 0; this.last = parts.last; }
		for (const second of parts.seconds ?? []) this.seconds.set(second[0], second);
		const oldest = this.now() - WINDOW_S - 2;
		for (const second of this.seconds.keys()) if (second < oldest) this.seconds.delete(second);
		if (parts.rows) {
			this.rows.push(...parts.rows);
			this.added += parts.rows.length;
			if (this.rows.length > KEPT_ROWS) this.rows.splice(0, this.rows.length - KEPT_ROWS);
		}
	}

	get stopped() { return this.head.state === "stopped"; }

	/** The kernel's time; once nothing comes any more, that of the last thing that happened. */
	now() {
		const now = Date.now() / 1000 + this.skew;
		return this.lost || this.stopped ? Math.min(now, Math.max(0, ...this.seconds.keys()) + 2) : now;
	}

	/** The last `length` whole seconds, oldest first; null where nothing happened. */
	lastSeconds(length) {
		const end = Math.floor(this.now());
		return Array.from({length}, (_, place) => this.seconds.get(end - length + place) ?? null);
	}

	redraw() { for (const view of this.views) view.soon(); }

	/** Ask the kernel to do something; resolves with its outcome. */
	ask(command, args = {}) {
		if (this.lost) return Promise.resolve({ok: false, text: this.lost});
		const question = `${this.page}-${++this.number}`;
		return new Promise((done) => {
			this.asked.set(question, done);
			this.send({kind: "ask", number: question, command, arguments: args});
		});
	}
}

// -- small parts

function button(label, press, kind = "", props = {}) {
	return h(`button.as-button${kind}`, {type: "button", onclick: press, ...props}, label);
}

function choice(label, options, chosen, change) {
	const group = h("div.as-choice", {role: "group", label});
	for (const [value, text] of options) {
		const one = button(text, () => {
			for (const each of group.children) put(each, "aria-pressed", each === one);
			change(value);
		}, "", {"aria-pressed": value === chosen});
		group.append(one);
	}
	return group;
}

// -- head

function makeHead(store, notify) {
	const name = h("bdi.as-name");
	const dot = h("span.as-dot", {"aria-hidden": true});
	const state = h("span"), facts = h("bdi.as-soft"), open = h("bdi.as-open");
	const url = h("a.as-url", {target: "_blank", rel: "noopener noreferrer"});
	const copied = (what) => () => {
		copy(store.head[what]);
		notify(`${what} copied.`);
	};
	const copyUrl = button("Copy URL", copied("url"), ".as-quiet");
	const copyCurl = button("Copy curl", copied("curl"), ".as-quiet");
	const address = h("div.as-address", url, copyUrl, copyCurl);

	const run = (command, waiting) => async () => {
		notify(waiting, true);
		const outcome = await store.ask(command);
		notify(outcome.text, false, outcome);
	};
	const redeploy = button("Redeploy", run("redeploy", "Deploying again …"), "", {title: "Deploy again, as defined in the notebook now"});
	const rollback = button("Roll back", run("rollback", "Going back …"), "", {title: "Serve the version before again"});
	const stop = button("Stop", () => confirming(true));
	const question = h("span", {id: newId()});
	const really = button("Stop it", () => { confirming(false); run("stop", "Stopping …")(); }, ".as-danger");
	const keep = button("Keep it", () => { confirming(false); stop.focus(); });
	const sure = h("div.as-sure", {role: "group", "aria-labelledby": question.id, hidden: true, onkeydown: (event) => { if (event.key === "Escape") keep.click(); }}, question, really, keep);
	const actions = h("div.as-actions", {role: "group", label: "Deployment"}, redeploy, rollback, stop);
	function confirming(on) {
		sure.hidden = !on;
		actions.hidden = on;
		if (on) keep.focus();
	}

	const element = h("div.as-head",
		h("div.as-title", name, h("span.as-badge", dot, state), facts, open),
		actions, sure, address);
	return {element, draw() {
		const {head} = store, can = store.lost ? {} : head.can ?? {};
		say(name, visible(head.name));
		say(state, store.lost ? "no connection" : head.state ?? "");
		put(dot, "data-state", store.lost ? "lost" : head.state ?? "");
		say(facts, visible([head.version, head.engine_line, head.note].filter(Boolean).join(" · ")));
		say(open, head.shared_at ? `open to others at ${visible(head.shared_at)}` : "");
		say(question, `Stop ${visible(head.name)}?`);
		address.hidden = !head.url;
		if (head.url) { say(url, visible(head.url)); put(url, "href", /^https?:/.test(head.url) ? head.url : null); }
		copyCurl.hidden = !head.curl;
		for (const [what, one] of Object.entries({redeploy, rollback, stop})) put(one, "disabled", !can[what]);
	}};
}

// -- the large numbers

function makeFigures(store) {
	const element = h("dl.as-figures");
	const figures = {};
	for (const [key, label] of [
		["rate", "requests/s"], ["mean", "mean batch"], ["p50", "p50 ms"], ["p99", "p99 ms"], ["waiting", "waiting"],
		["total", "requests"], ["errors", "errors"],
	]) {
		figures[key] = h("dd", "–");
		element.append(h("div", {"data-figure": key}, h("dt", label), figures[key]));
	}
	return {element, draw() {
		const last = store.lastSeconds(3);
		const {requests, errors, batches, batched} = store.totals;
		const recent = counts(store, 10, false), made = sum(recent.values(), total);
		const mean = made
			? weight(recent) / made : batches ? batched / batches : null;
		const [p50, p99, many] = store.latency ?? [];
		say(figures.rate, short(sum(last, (each) => each?.[COUNT] ?? 0) / 3));
		say(figures.mean, mean === null ? "–" : number(mean, 1));
		say(figures.p50, p50 === undefined ? "–" : short(p50));
		say(figures.p99, many >= 100 ? short(p99) : "–");
		say(figures.waiting, number(sum(store.states, (each) => each[5])));
		say(figures.total, number(requests));
		say(figures.errors, number(errors));
		put(figures.errors.parentElement, "data-bad", errors > 0);
	}};
}

const sum = (values, part) => { let all = 0; for (const each of values) all += part(each); return all; };
const total = (by) => sum(by.values(), (count) => count);
const weight = (found) => sum(found.entries(), ([size, by]) => size * total(by));

/** Batches by size and reason within the last `seconds` (0: all). */
function counts(store, seconds, rows) {
	const found = new Map();
	const add = (triples) => {
		for (const [size, reason, count] of triples) {
			const by = found.get(size) ?? new Map();
			found.set(size, by.set(reason, (by.get(reason) ?? 0) + count));
		}
	};
	if (!seconds || store.saved) add(rows ? store.rowSizes : store.sizes);
	else {
		const oldest = store.now() - seconds;
		for (const [second, each] of store.seconds) if (second >= oldest) add(each[rows ? ROWS : SIZES]);
	}
	return found;
}

// -- batch sizes

/** First and last batch size of each column: exact up to 32, else powers of two. */
function columnsFor(largest) {
	if (largest <= EXACT_SIZES) return Array.from({length: Math.max(largest, 1)}, (_, place) => [place + 1, place + 1]);
	const columns = [[1, 1]];
	for (let high = 2; columns.at(-1)[1] < largest; high *= 2) columns.push([high / 2 + 1, high]);
	return columns;
}

function makeHistogram(store) {
	let seconds = 10, rows = false, flashed = 0;
	const title = h("div.as-heading", {id: newId()}, "Batch sizes");
	const windows = choice("Window", [[10, "10 s"], [60, "60 s"], [0, "all"]], seconds, (value) => { seconds = value; draw(); });
	const units = choice("Unit", [[false, "requests"], [true, "rows"]], rows, (value) => { rows = value; draw(); });
	const bars = h("div.as-bars"), limit = h("div.as-limit"), limitText = h("span");
	limit.append(limitText);
	const mean = h("div.as-mean"), meanText = h("span");
	mean.append(meanText);
	const empty = h("div.as-empty", NO_BATCH);
	const plot = h("div.as-plot", {role: "img"}, bars, limit, mean, empty);
	const legend = h("ul.as-legend", {label: "Release reasons"});
	const keys = REASONS.map(([reason, name]) => {
		const count = h("b");
		const key = h("li", h("i", {style: part(reason), "aria-hidden": true}), `${name} `, count);
		legend.append(key);
		return [reason, key, count];
	});
	const element = h("div.as-card", {role: "group", "aria-labelledby": title.id},
		across(title, windows, units), plot, legend);
	const pool = [];

	function column(place) {
		if (!pool[place]) {
			const count = h("b"), label = h("span"), parts = {};
			const stack = h("div.as-stack");
			for (const [reason] of REASONS) stack.append(parts[reason] = h("i", {style: part(reason)}));
			const box = h("div.as-column", count, stack, label);
			pool[place] = {box, count, label, stack, parts};
		}
		return pool[place];
	}

	function draw() {
		const found = counts(store, seconds, rows), most = rows ? 0 : store.head.batching === false ? 1 : store.head.max_batch_size ?? 0;
		const columns = columnsFor(Math.max(most, ...found.keys(), 1));
		const sums = columns.map(() => new Map());
		for (const [size, reasons] of found) {
			const by = sums[columns.findIndex(([, high]) => size <= high)];
			for (const [reason, count] of reasons) by.set(reason, (by.get(reason) ?? 0) + count);
		}
		const highest = Math.max(1, ...sums.map(total)), every = Math.ceil(columns.length / 16);
		const boxes = columns.map(([low, high], place) => {
			const one = column(place), by = sums[place], all = total(by);
			one.stack.style.height = `${(100 * all) / highest}%`;
			for (const [reason] of REASONS) one.parts[reason].style.flexGrow = by.get(reason) ?? 0;
			say(one.count, all && columns.length <= 20 ? compact(all) : "");
			one.count.style.bottom = `${(100 * all) / highest}%`;
			say(one.label, place % every ? "" : span(low, high, "–"));
			return one.box;
		});
		if (bars.children.length !== boxes.length) bars.replaceChildren(...boxes);
		mark(columns, most, found, sums);
		if (flashed !== store.flashes && store.last) {
			flashed = store.flashes;
			const size = store.last[rows ? 2 : 1], place = columns.findIndex(([, high]) => size <= high);
			if (place >= 0) flash(pool[place].stack);
		}
	}

	function mark(columns, most, found, sums) {
		const place = most ? columns.findIndex(([, high]) => most <= high) : -1, width = 100 / columns.length;
		limit.hidden = place < 0;
		limit.style.left = `${(place + 1) * width}%`;
		put(limit, "data-left", (place + 1) * width > 60);
		say(limitText, `limit ${most}`);
		const all = sum(sums, total), exact = rows && (!seconds || store.saved) ? store.totals.rows : weight(found), average = all ? exact / all : 0;
		const at = columns.findIndex(([, high]) => average <= high);
		const [low, high] = columns[Math.max(0, at)];
		mean.hidden = !all;
		mean.style.left = `${(at + (low === high ? 0.5 + average - low : (average - low) / (high - low || 1))) * width}%`;
		say(meanText, `mean ${number(average, 1)}`);
		empty.hidden = all > 0;
		for (const [reason, key, count] of keys) {
			const many = sum(sums, (by) => by.get(reason) ?? 0);
			say(count, number(many));
			key.hidden = !many && (reason === "retry" || reason === "drain");
		}
		put(plot, "label", all ? `${plural(all, "batch")}, mean size ${number(average, 1)}: ` + columns
			.map(([low, high], place) => total(sums[place]) && `${total(sums[place])} of ${span(low, high, " to ")}`).filter(Boolean).join(", ") : NO_BATCH);
	}
	return {element, draw};
}

const span = (low, high, to) => low === high ? `${low}` : `${low}${to}${high}`;
const compact = (count) => count < 10000 ? number(count) : `${number(count / 1000)}k`;

function flash(element) {
	if (matchMedia("(prefers-reduced-motion: reduce)").matches || !element.animate) return;
	element.animate([{filter: "brightness(1.3)", boxShadow: "0 0 0 2px var(--main)"}, {}], {duration: 450, easing: "ease-out"});
}

// -- the last minute, as lines

function makePulse(store) {
	const HIGH = 40;
	const title = h("div.as-heading", {id: newId()}, "Last 60 seconds");
	const element = h("div.as-card.as-pulse", {role: "group", "aria-labelledby": title.id}, across(title));
	const whole = (value) => number(Math.round(value));
	const lines = [
		["requests/s", whole, [[COUNT, "main"]]],
		["latency ms", short, [[P50, "main", "p50"], [P99, "soft", "p99"]]],
		["split ms", short, SPLIT.map(([name, place, colour]) => [place, colour, name])],
		["waiting", whole, [[WAITING, "main"]]],
	].map(([label, show, series], row) => {
		const paths = series.map(([, kind]) => h(row === 2 ? "path.as-area" : "path", {style: part(kind), "vector-effect": "non-scaling-stroke"}));
		const svg = h("svg", {viewBox: `0 0 ${WINDOW_S - 1} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": true}, ...paths);
		const top = h("span.as-top"), values = series.map(() => h("span"));
		const strip = h("div.as-strip", {role: "img", label}, h("span.as-label", label),
			h("span.as-value", ...series.flatMap(([, kind], place) => [h("i", {style: part(kind), "aria-hidden": true}), values[place]])), h("div.as-chart", svg, top));
		element.append(strip);
		return {label, show, series, stacked: row === 2, paths, top, values, strip};
	});

	/** A line, or the area between two; broken where nothing is known. */
	function path(values, below, most, closed) {
		const y = (value) => (HIGH - 1 - ((HIGH - 2) * value) / most).toFixed(1);
		if (closed) {
			const upper = values.map((value, x) => `${x} ${y(value + (below?.[x] ?? 0))}`), lower = values.map((_, x) => `${x} ${y(below?.[x] ?? 0)}`);
			return `M${upper.join("L")}L${lower.reverse().join("L")}Z`;
		}
		// A lone second is a short dash.
		return values.map((value, x) => value === null ? "" : `${(values[x - 1] ?? null) === null ? `M${x - 0.4} ${y(value)}` : ""}L${x} ${y(value)}`).join("") || "M0 0";
	}

	return {element, draw() {
		const seconds = store.lastSeconds(WINDOW_S);
		for (const {label, show, series, stacked, paths, top, values, strip} of lines) {
			const unknown = label === "latency ms" ? null : 0;
			const columns = series.map(([place]) => seconds.map((each) => each?.[COUNT] || unknown === 0 ? each?.[place] ?? 0 : null));
			const heights = stacked ? seconds.map((_, x) => sum(columns, (each) => each[x])) : columns.flat();
			const most = Math.max(...heights, 1);
			let below = null;
			columns.forEach((column, place) => {
				put(paths[place], "d", path(column, below, most, stacked));
				if (stacked) below = column.map((each, x) => each + (below?.[x] ?? 0));
			});
			say(top, Math.max(...heights) > 0 ? show(most) : "");
			const quiet = !seconds.at(-1)?.[COUNT] && (stacked || unknown === null);
			const words = series.map(([, , name], place) => `${name ?? ""} ${quiet ? "–" : show(columns[place].at(-1))}`.trim());
			values.forEach((value, place) => say(value, words[place]));
			put(strip, "label", `${label}: ${words.join(", ")}; at most ${show(most)} in the last minute`);
		}
	}};
}

// -- knobs

function makeKnobs(store, notify) {
	const title = h("div.as-heading", {id: newId()}, "Knobs");
	const copyCode = button("Copy %%serve line", () => { copy(store.head.code); notify("%%serve line copied."); },
		".as-quiet");
	const grid = h("div.as-knobs");
	const element = h("div.as-card", {role: "group", "aria-labelledby": title.id}, across(title, copyCode), grid);

	function knob(label, option, unit, low, high, off, applied, current, ask) {
		let asked = null, held = false;
		const slider = h("input", {type: "range", min: low, max: high, label,
			oninput: () => { held = true; box.value = slider.value; }, onchange: () => turn(+slider.value)});
		const box = h("input", {type: "number", min: low, label: `${label}${unit ? `, ${unit}` : ""}`,
			oninput: () => { held = true; }, onblur: () => { held = false; }, onchange: () => turn(box.value === "" ? NaN : +box.value)});
		const state = h("span.as-applied", {role: "status"});
		grid.append(h("div.as-knob",
			across(h("span", label), h("code", option)),
			across(slider, box, h("span", unit)), state));
		async function turn(value) {
			held = false;
			if (!Number.isFinite(value) || value < low) return draw();
			// As exact as what is applied is told.
			asked = Math.round(value * 1e3) / 1e3;
			draw();
			const outcome = await store.ask(...ask(asked));
			if (!outcome.ok) { asked = null; notify(outcome.text, false, outcome); }
			draw();
		}
		function draw() {
			const now = applied(), why = off();
			if (asked !== null && now.length && now.every((each) => each === asked) && current() === asked) asked = null;
			const wanted = asked ?? current();
			for (const one of [slider, box]) put(one, "disabled", Boolean(why) || store.lost !== null || store.stopped);
			if (!held && wanted != null) {
				if (wanted > +slider.max) slider.max = wanted;
				if (+slider.value !== wanted) slider.value = wanted;
				if (document.activeElement !== box && +box.value !== wanted || box.value === "") box.value = wanted;
			}
			const least = Math.min(...now), most = Math.max(...now);
			const seen = !now.length ? "nothing yet" : least === most ? `${least}` : `${least} to ${most}`;
			const pending = wanted != null && now.some((each) => each !== wanted);
			put(state, "data-pending", pending && !why);
			say(state, why || (pending ? `asked ${wanted}, applied ${seen}` : now.length ? `applied ${seen}` : ""));
		}
		return draw;
	}

	const batchingOff = () => store.head.batching === false ? "batching is off" : "";
	const inMs = (seconds) => seconds === undefined ? seconds : Math.round(seconds * 1e6) / 1e3;
	const draws = [
		knob("Batch limit", "max_batch_size", "", 1, 64, batchingOff, () => store.states.map((each) => each[3]),
			() => store.head.max_batch_size, (value) => ["set_batching", {max_batch_size: value}]),
		knob("Wait for others", "batch_wait_timeout_s", "ms", 0, 100, batchingOff, () => store.states.map((each) => inMs(each[4])),
			() => inMs(store.head.batch_wait_timeout_s), (value) => ["set_batching", {batch_wait_timeout_s: value / 1000}]),
		knob("Replicas", "num_replicas", "", 1, 8, () => store.head.engine === "local" ? "the local engine has one" : "",
			() => store.states.length ? [store.states.length] : [], () => store.head.replicas, (value) => ["scale", {num_replicas: value}]),
	];
	return {element, draw() {
		for (const draw of draws) draw();
		copyCode.hidden = !store.head.code;
	}};
}

// -- the log

const COLUMNS = [
	["arrived", 8.4, (row) => clockTime(row[AT])], ["status", 4.7, (row) => row[STATUS], "as-status"], ["request", 9, (row) => row[ID]],
	["version", 5.4, (row) => row[VERSION]], ["batch", 9, (row) => row[BATCH] ?? "–"], ["size", 3.7, (row) => row[SIZE] || "–", "as-number"],
	["queue ms", 6.9, (row) => number(row[QUEUE], 1), "as-number"], ["predict ms", 7.8, (row) => number(row[PREDICT], 1), "as-number"],
	["total ms", 6.2, (row) => number(row[TOTAL], 1), "as-number"], ["payload", 12, (row) => row[PAYLOAD]],
	["answer", 12, (row) => row[ANSWER]], ["error", 16, (row) => row[ERROR] ?? ""],
];
const clockTime = (at) => {
	const when = new Date(at * 1000);
	return `${when.toLocaleTimeString("en-GB")}.${String(when.getMilliseconds()).padStart(3, "0")}`;
};

function makeLog(store) {
	let status = "all", text = "", paused = null, cleared = 0, chosen = null, listed = [], from = null, seen = 0, first = -1;
	const find = h("input", {type: "search", placeholder: "Filter by text", label: "Filter by text", size: 16,
		oninput: () => { text = find.value.toLowerCase(); draw(true); }});
	const kinds = choice("Status", [["all", "all"], ["ok", "ok"], ["errors", "errors"]], status, (value) => { status = value; draw(true); });
	const pause = button("Pause", () => {
		paused = paused ? null : store.rows.slice();
		put(pause, "aria-pressed", paused !== null);
		draw(true);
	}, "", {"aria-pressed": false});
	const clear = button("Clear", () => { cleared = store.added; chosen = null; paused = paused && []; draw(true); });
	const count = h("span.as-soft.as-push");
	const body = h("tbody", {onclick: press, onkeydown: key});
	const table = h("table", {role: "grid", label: "Requests, newest first", "aria-colcount": COLUMNS.length},
		h("colgroup", ...COLUMNS.map(([, width]) => h("col", {style: `width:${width}em`}))),
		h("thead", h("tr", {"aria-rowindex": 1}, ...COLUMNS.map(([name, , , kind]) => h("th", {scope: "col", class: kind}, name)))), body);
	const scroller = h("div.as-scroller", {tabindex: 0, role: "group", label: "Request log", onscroll: () => fill()}, table);
	const detail = h("div.as-detail", {hidden: true, role: "group", label: "Chosen request"});
	const element = h("div", across(kinds, find, pause, clear, count), scroller, detail);

	const hay = (row) => [row[ID], row[STATUS], row[VERSION], row[BATCH], row[PAYLOAD], row[ANSWER], row[ERROR]].join(" ").toLowerCase();
	const fits = (row) => (status === "all" || (row[STATUS] >= 400) === (status === "errors")) && (!text || hay(row).includes(text));

	function choose(row) {
		chosen = row;
		show();
		fill(true);
	}

	function press(event) {
		const line = event.target.closest("tr[data-place]");
		if (line) { choose(listed[line.dataset.place]); focusOn(line.dataset.place); }
	}

	function key(event) {
		const place = Number(event.target.closest("tr[data-place]")?.dataset.place);
		if (Number.isNaN(place)) return;
		const move = {ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity}[event.key];
		if (event.key === "Enter" || event.key === " ") choose(listed[place]);
		else if (event.key === "Escape") choose(null);
		else if (move === undefined) return;
		else reach(Math.min(listed.length - 1, Math.max(0, place + move)));
		event.preventDefault();
	}

	const focusOn = (place) => body.querySelector(`tr[data-place="${place}"]`)?.focus({preventScroll: true});

	function reach(place) {
		const top = place * ROW_PX, room = scroller.clientHeight - 2 * ROW_PX;
		if (top < scroller.scrollTop) scroller.scrollTop = top;
		else if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
		fill(true);
		focusOn(place);
	}

	function draw(anew) {
		// After a reset the rows are others, however many there are.
		if (anew || from !== store.rows || (seen !== store.added && !paused)) list();
		say(count, [plural(listed.length, "request"), paused && "paused", store.totals.lacking].filter(Boolean).join(", "));
	}

	function list() {
		const known = paused ?? (cleared ? store.rows.slice(Math.max(0, store.rows.length - (store.added - cleared))) : store.rows), top = listed[0];
		[listed, from, seen] = [known.filter(fits).reverse(), store.rows, store.added];
		// Who has scrolled down goes on reading the same lines.
		if (scroller.scrollTop > ROW_PX) scroller.scrollTop += Math.max(0, listed.indexOf(top)) * ROW_PX;
		put(table, "aria-rowcount", listed.length + 1);
		fill(true);
	}

	/** Put the lines that can be seen into the page, and room for the others. */
	function fill(anew = false) {
		const room = Math.ceil((scroller.clientHeight || 260) / ROW_PX) + 4;
		const start = Math.max(0, Math.min(Math.floor(scroller.scrollTop / ROW_PX) - 2, listed.length - room));
		if (!anew && start === first) return;
		first = start;
		const end = Math.min(listed.length, start + room), focused = body.contains(document.activeElement) ? document.activeElement.dataset.id : null;
		const space = (lines) => h("tr", {"aria-hidden": true, style: `height:${lines * ROW_PX}px`});
		const lines = listed.slice(start, end).map((row, place) => line(row, start + place));
		if (!lines.length) lines.push(h("tr", h("td", {colspan: COLUMNS.length}, "No request")));
		body.replaceChildren(...(start ? [space(start)] : []), ...lines, ...(end < listed.length ? [space(listed.length - end)] : []));
		if (focused) [...body.children].find((each) => each.dataset.id === focused)?.focus({preventScroll: true});
	}

	function line(row, place) {
		const mate = chosen && chosen[BATCH] && row[BATCH] === chosen[BATCH];
		return h("tr", {
			tabindex: place === 0 || row === chosen ? 0 : -1, "data-place": place, "data-id": row[ID], "aria-rowindex": place + 2,
			"aria-selected": row[ID] === chosen?.[ID],
			class: `${row[STATUS] >= 400 ? "as-failed" : ""}${mate ? " as-mate" : ""}`, style: mate ? part(row[REASON] ?? "main") : null,
		}, ...COLUMNS.map(([, , value, kind]) => h("td", {class: kind}, h("bdi", visible(value(row), {most: 240})))));
	}

	function show() {
		detail.hidden = !chosen;
		if (!chosen) return;
		const mates = store.rows.filter((row) => chosen[BATCH] && row[BATCH] === chosen[BATCH]);
		const section = (label, value) => value ? [h("div.as-label", label), pre(label, value)] : [];
		const others = h("div.as-mates", {role: "group", label: "Requests of this batch"}, ...mates.map((mate) =>
			button(visible(mate[ID]), () => choose(mate), "", {"aria-pressed": mate === chosen})));
		const about = chosen[BATCH]
			? `${chosen[ID]} rode in batch ${chosen[BATCH]}: ${plural(chosen[SIZE], "request")}, released: ${reasonName(chosen[REASON])}, `
				+ `predicted in ${short(chosen[PREDICT])} ms by ${chosen[VERSION]} on replica ${chosen[REPLICA]}.`
			: `${chosen[ID]} reached no batch.`;
		detail.replaceChildren(
			across(h("bdi", visible(about)), button("Close", () => choose(null), ".as-quiet.as-push")),
			...(mates.length ? [others] : []), ...section("Error", chosen[ERROR]), ...section("Payload", chosen[PAYLOAD]), ...section("Answer", chosen[ANSWER]));
	}
	return {element, draw};
}

// -- try it

function makeTry(store) {
	let filled = false, blob = null;
	const box = h("textarea", {rows: 3, spellcheck: "false", label: "Payload, JSON", oninput: () => { filled = true; }});
	const requests = h("input", {type: "number", min: 1, value: 200, id: newId()});
	const concurrency = h("input", {type: "number", min: 1, value: 16, id: newId()});
	const outcome = h("div.as-outcome", {role: "status"});
	const send = button("Send one request", working(async () => {
		outcome.replaceChildren("Sending …");
		const result = await store.ask("request", {payload: box.value});
		if (!result.ok) { refuse(result); return; }
		outcome.replaceChildren(
			h("div", h("b", {class: result.status >= 400 ? "as-bad" : "as-good"}, `HTTP ${result.status}`), ` in ${short(result.ms)} ms `,
				h("span.as-soft", visible(`${result.timing} ${result.request_id}`))),
			pre("Answer", result.answer));
	}), ".as-main");
	const probe = button("Probe", working(async () => {
		outcome.replaceChildren(`Probing with ${plural(+requests.value, "request")} …`);
		const result = await store.ask("probe", {
			payload: box.value, requests: +requests.value, concurrency: concurrency.value === "" ? null : +concurrency.value,
		});
		if (!result.ok) { refuse(result); return; }
		if (blob) URL.revokeObjectURL(blob);
		blob = URL.createObjectURL(new Blob([result.buffers[0]], {type: "image/png"}));
		outcome.replaceChildren(h("div", visible(result.text)), h("img", {src: blob, alt: `Timeline: ${visible(result.label)}`}));
	}));
	function working(work) {
		return async ({currentTarget: pressed}) => {
			pressed.disabled = true;
			try { await work(); } finally { pressed.disabled = false; }
		};
	}
	function refuse(result) {
		outcome.replaceChildren(h("div.as-bad", visible(result.text)));
	}
	const element = h("div.as-try", box, across(send, h("span.as-soft", "or"), probe,
		h("label", {for: requests.id}, "with"), requests, h("label", {for: concurrency.id}, "requests, at once"), concurrency), outcome);
	return {element, draw() {
		if (!filled && box.value !== store.example) box.value = store.example;
	}, close() { if (blob) URL.revokeObjectURL(blob); }};
}

// -- a view

class View {
	constructor(store, root) {
		this.store = store;
		this.notice = h("div.as-notice", {role: "status", hidden: true});
		this.why = h("p.as-why", {hidden: true});
		this.strip = h("div.as-news", {role: "status", hidden: true});
		this.failure = h("pre.as-failure", {role: "alert", hidden: true});
		const notify = (text, busy, outcome) => this.notify(text, busy, outcome);
		this.tabs = {log: makeLog(store), try: makeTry(store)};
		this.parts = [makeHead(store, notify), makeFigures(store), makeHistogram(store), makePulse(store), makeKnobs(store, notify)];
		const [head, figures, histogram, pulse, knobs] = this.parts.map((part) => part.element);
		this.element = h("div.airserve-panel", {
			role: "group",
			// The notebook's shortcuts are not for who types here; those of the browser and of saving still are.
			onkeydown: (event) => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); },
			"onas:failure": (event) => store.fail(event.detail),
		},
			h("div.as-inside", head, this.notice, this.strip, figures, this.why, h("div.as-two", histogram, pulse), knobs,
				this.makeTabs(), this.failure));
		root.append(this.element);
		this.observer = new IntersectionObserver((entries) => {
			this.onScreen = entries.at(-1).isIntersecting;
			this.store.guarded(() => this.store.beat())();
			if (this.onScreen) this.soon();
		});
		this.observer.observe(this.element);
		this.onScreen = true;
		store.views.add(this);
		store.beat();
		this.soon();
	}

	makeTabs() {
		const panels = {}, tabs = [];
		const list = h("div.as-tabs", {role: "tablist", label: "Details", onkeydown: (event) => {
			if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
			const [key, tab] = tabs.find(([each]) => each !== this.opened);
			open(key);
			tab.focus();
		}});
		for (const [key, label] of [["log", "Requests"], ["try", "Try it"]]) {
			const tab = h("button.as-tab", {type: "button", role: "tab", id: newId(), onclick: () => open(key)}, label);
			panels[key] = h("div", {role: "tabpanel", "aria-labelledby": tab.id, id: newId()}, this.tabs[key].element);
			tab.setAttribute("aria-controls", panels[key].id);
			tabs.push([key, tab]);
			list.append(tab);
		}
		const open = (key) => {
			this.opened = key;
			for (const [each, tab] of tabs) {
				put(tab, "aria-selected", each === key);
				put(tab, "tabindex", each === key ? 0 : -1);
				panels[each].hidden = each !== key;
			}
			this.soon();
		};
		open("log");
		return h("div.as-card", list, ...Object.values(panels));
	}

	isShown() { return this.element.isConnected && this.element.getClientRects().length > 0; }

	notify(text, busy = false, outcome = null) {
		clearTimeout(this.forget);
		this.notice.hidden = !text;
		put(this.notice, "data-kind", busy ? "busy" : outcome && !outcome.ok ? "bad" : "good");
		this.notice.replaceChildren(h("span", visible(text)));
		if (outcome?.details) this.notice.append(pre("Traceback", outcome.details));
		if (!busy) this.forget = setTimeout(() => { this.notice.hidden = true; }, outcome?.ok === false ? 30000 : 6000);
	}

	showFailure() {
		this.failure.hidden = !this.store.failure;
		say(this.failure, this.store.failure);
	}

	soon() {
		if (this.frame || !this.onScreen) return;
		this.frame = requestAnimationFrame(this.store.guarded(() => { this.frame = 0; this.draw(); }));
	}

	draw() {
		const {store} = this, {stopped} = store;
		for (const part of this.parts) part.draw();
		this.tabs[this.opened].draw();
		const news = store.lost ?? (stopped ? "Stopped. This is the last picture; run its cell again to serve it anew."
			: store.error ? `Records can't be read just now: ${store.error}` : store.saved && !store.told ? "The last picture that was saved." : "");
		this.strip.hidden = !news;
		say(this.strip, visible(news));
		put(this.element, "label", `Panel of ${visible(store.head.name)}`);
		put(this.element, "data-past", Boolean(store.lost) || stopped);
		const sentences = store.why ?? [];
		this.why.hidden = !sentences.length;
		if (this.why.dataset.said !== sentences.join("\n")) {
			this.why.dataset.said = sentences.join("\n");
			this.why.replaceChildren(h("b", "Why? "), h("bdi", visible(sentences[0] ?? "")), " ",
				h("bdi.as-soft", visible(sentences[1] ?? "")));
		}
	}

	close() {
		this.observer.disconnect();
		cancelAnimationFrame(this.frame);
		clearTimeout(this.forget);
		this.tabs.try.close();
		this.store.views.delete(this);
		this.store.beat();
		this.element.remove();
	}
}

export default () => {
	let store = null;
	return {
		initialize({model}) {
			store = new Store(model);
			return () => store.close();
		},
		render({model, el}) {
			try {
				const view = new View(store ??= new Store(model), el);
				return () => view.close();
			} catch (error) {
				console.error(error);
				el.append(h("pre", {role: "alert"}, failed(error)));
			}
		},
	};
};

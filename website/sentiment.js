// The page of a model that sleeps. What it shows follows from one thing, the answer of GET /status:
//
//   STOPPED → asleep    CREATING → waking    IN_SERVICE → awake    STOPPING → stopping    FAILED → failed
//
// `accept(status)` is the only way into a state, `fail(problem)` the only way into trouble, and trouble never
// hides what was known before it. Text is only ever set through textContent.
'use strict';
(() => {
const VIEWS = {STOPPED: 'asleep', CREATING: 'waking', IN_SERVICE: 'awake', STOPPING: 'stopping', FAILED: 'failed'};
const NAME = document.title;
const WARN_SECONDS = 120;
const UNSURE = 0.6; // "not sure" below this share, if the model does not say itself
const CHUNK = 50; // reviews in one call, so that a long list shows its progress
const KEPT = 30; // answers remembered in this browser

const app = {api: '', config: {}, status: null, at: 0, view: 'loading', epoch: 0, failures: 0, timer: 0, retryAt: 0,
	warned: false, queued: false, reading: false, examples: {modelVersion: null, examples: []}};
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

// ---- small things

function el(tag, props = {}, ...children) {
	const node = document.createElement(tag);
	for (const [key, value] of Object.entries(props)) {
		if (key === 'class') node.className = value;
		else if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
		else if (key in node && typeof value !== 'string') node[key] = value;
		else node.setAttribute(key, value);
	}
	node.append(...children.filter((c) => c !== null && c !== undefined));
	return node;
}
const text = (id, value) => { const n = $(id); if (n.textContent !== value) n.textContent = value; };
const show = (id, on) => { $(id).hidden = !on; };
const said = (e) => { if (!(e instanceof Problem)) throw e; return explain(e); };
const number = (value) => typeof value === 'number' && Number.isFinite(value);
const plural = (n, one, many = one + 's') => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
const characters = (s) => [...s].length;

function clock(seconds) {
	const s = Math.max(0, Math.round(seconds)), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
	return `${h ? `${h}:${String(m).padStart(2, '0')}` : m}:${String(s % 60).padStart(2, '0')}`;
}
function duration(seconds) {
	if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), 'second');
	if (seconds < 5400) return plural(Math.round(seconds / 60), 'minute');
	return plural(Math.round(seconds / 360) / 10, 'hour');
}
function money(dollars) {
	if (dollars === 0) return 'nothing';
	if (dollars < 0.0001) return 'less than $0.0001';
	return `$${dollars.toFixed(dollars < 0.1 ? 4 : dollars < 1 ? 3 : 2).replace(/(\.\d\d\d?)0+$/, '$1')}`;
}
function percent(share) {
	if (share > 0.999 && share < 1) return '> 99.9 %';
	if (share < 0.001 && share > 0) return '< 0.1 %';
	return `${(share * 100).toFixed(1)} %`;
}
const word = (label) => label.charAt(0).toUpperCase() + label.slice(1).toLowerCase();

// Storage may be switched off or full: the page then works without a memory.
const memory = {
	read(key, otherwise) { try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; } },
	write(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* works without */ } },
};
function announce(message) { $('announce').textContent = message; }

// ---- talking to the service

class Problem extends Error {
	constructor(kind, message = '', {status = 0, code = ''} = {}) {
		super(message);
		Object.assign(this, {kind, status, code});
	}
}

async function call(path, {method = 'GET', body, timeout = 15000} = {}) {
	const abort = new AbortController(), timer = setTimeout(() => abort.abort(), timeout);
	let response, data = null;
	try {
		response = await fetch(app.api + path, {method, signal: abort.signal, cache: 'no-store', credentials: 'omit',
			headers: body === undefined ? {} : {'content-type': 'application/json'}, body: body && JSON.stringify(body)});
		try { data = await response.json(); } catch (e) { if (abort.signal.aborted) throw e; }
	} catch {
		throw new Problem(abort.signal.aborted ? 'slow' : navigator.onLine ? 'unreachable' : 'offline');
	} finally { clearTimeout(timer); }
	const {status, ok} = response;
	if (ok && data && typeof data === 'object') return data;
	const error = (data && typeof data.error === 'object' && data.error) || {};
	// A 429 with a code is the engine's own and says how long to wait.
	const kind = status === 429 && !error.code ? 'busy' : status >= 500 || ok ? 'gateway' : 'refused';
	throw new Problem(kind, String(error.message || data?.message || ''),
		{status, code: String(error.code || '')});
}

const TROUBLES = {
	offline: ['You are offline', 'Your device has no connection.'],
	unreachable: ['The service does not answer', 'It may be your network, a filter in the browser, or the service itself.'],
	slow: ['The service does not answer in time', 'It was asked and stayed silent.'],
	busy: ['The service asks for patience', 'It gets more requests than it takes.'],
	gateway: ['The service has a problem', 'It answered with an error that is not yours.'],
	refused: ['The service refused', 'It did not take what this page sent.'],
};
function explain(problem) {
	const [title, reason] = TROUBLES[problem.kind] || TROUBLES.gateway;
	return {title, reason: problem.message || `${reason}${problem.status ? ` (HTTP ${problem.status})` : ''}`};
}

function fail(problem) {
	app.failures++;
	const {title, reason} = explain(problem);
	text('trouble-title', title);
	text('trouble-text', `${reason} No money runs away meanwhile: a model that is awake falls asleep by itself.`);
	show('trouble', true);
	if (!app.status) { text('title', 'The model cannot be seen'); text('lead', 'It may be asleep or awake: this page cannot tell until its service answers.'); text('sign-state', 'Unknown'); }
	const wait = Math.min(60, 2 ** Math.min(app.failures, 6)) * (0.8 + Math.random() * 0.4);
	app.retryAt = Date.now() + wait * 1000;
	plan(wait);
	tick();
}

// ---- polling

function pace() { // seconds until the next look, by what may change how soon
	const s = app.status, hidden = document.hidden;
	if (!s) return 5;
	if (s.state === 'CREATING') return Math.min(hidden ? 20 : 8, Math.max(2, (s.etaSeconds ?? 60) / 20));
	if (s.state === 'STOPPING') return 4;
	if (s.state === 'IN_SERVICE') return (secondsLeft() ?? 60) < 5 ? 3 : hidden ? 60 : 20;
	return hidden ? 90 : 20;
}
function plan(seconds = pace()) {
	clearTimeout(app.timer);
	app.timer = setTimeout(look, seconds * 1000);
}
async function look() {
	clearTimeout(app.timer);
	if (!app.api) return setUp();
	const epoch = app.epoch;
	try {
		const status = await call('/status');
		if (epoch === app.epoch) accept(status); else plan(); // a newer answer came in between: this one is old
	} catch (e) { said(e); fail(e); }
}

// ---- the state machine

function accept(status, {mine = false} = {}) {
	if (mine) app.epoch++;
	if (!VIEWS[status.state]) return fail(new Problem('gateway', 'It answered with a state this page does not know.'));
	app.failures = 0; app.retryAt = 0;
	show('trouble', false);
	const before = app.view, view = VIEWS[status.state];
	app.status = status; app.at = Date.now(); app.view = view;
	if (view !== 'awake') app.warned = false;
	if (view !== before) root.dataset.mood = 'calm';
	render(view, before);
	plan();
}

const WORDS = {
	asleep: () => ['The model is asleep', 'It reads reviews and says whether they praise or complain. It sleeps until somebody wants to know. That somebody can be you.'],
	waking: () => ['The model is waking up', 'Leave this tab open, reload it or close it: the waking goes on. You can write a review meanwhile.'],
	awake: () => ['The model is awake', `Give it a review. It stays up for ${idle()} after the last one.`],
	stopping: () => ['The model is going to sleep', 'The machine is being switched off. In a minute or so you can wake it again.'],
	failed: () => ['The model did not wake up', 'Something went wrong on the way. Nothing of yours is lost.'],
};
const TAB = {asleep: 'Asleep', waking: 'Waking up …', awake: 'Awake', stopping: 'Going to sleep', failed: 'Did not wake up'};
const idle = () => duration((app.status?.idleMinutes ?? 30) * 60);

function render(view, before) {
	const s = app.status, [title, lead] = WORDS[view]();
	const focused = document.activeElement;
	root.dataset.view = view;
	text('title', title); text('lead', lead);
	show('failure', view === 'failed');
	show('starting', view === 'asleep' || view === 'failed');
	show('facts', view === 'asleep');
	show('waking', view === 'waking');
	show('awake', view === 'awake');
	show('compose', view !== 'failed' && view !== 'stopping');
	text('sign-state', TAB[view].replace(' …', ''));
	text('sign-version', s.modelVersion || '–');
	if (view !== before) {
		$('icon').href = $('icon').dataset[view === 'awake' ? 'awake' : 'asleep'];
		if (before !== 'loading') announce(`${title}. ${view === 'failed' && s.reason ? s.reason : lead}`);
		// Whoever stood on a control that has just gone is taken to the heading, not thrown to the top of the page.
		if (focused && focused !== document.body && !focused.getClientRects().length) $('title').focus({preventScroll: false});
		if (view === 'awake' && before === 'waking') ready();
	}
	({asleep: renderStart, failed: renderFailed, waking: renderWaking, awake: renderAwake, stopping: () => {}})[view]();
	renderCompose();
	tick();
}

function renderStart() {
	const s = app.status, usual = s.typicalSeconds || {};
	const many = usual.starts > 0;
	const half = number(usual.p50) ? usual.p50 : s.etaSeconds;
	text('fact-time', !number(half) ? 'A few minutes: a machine is found, switched on and given the model.'
		: !many ? `About ${duration(half)}, but none was measured here yet.` : `Usually ${duration(half)}${number(usual.p90) && usual.p90 > half * 1.1 ? `, nine times in ten within ${duration(usual.p90)}` : ''} (${plural(usual.starts, 'start')} so far).`);
	const price = number(s.pricePerHour) ? `${money(s.pricePerHour)} an hour while it is up` : 'the hours it is up';
	const saved = s.savedThisMonth > 0 ? ` Sleep saved ${money(s.savedThisMonth)} this month.` : '';
	text('fact-cost', `You: nothing. Its owner: ${price}, nothing while it sleeps.${saved}`);
	text('fact-idle', `By itself, ${idle()} after the last review.`);
	const failure = app.view === 'asleep' && s.reason;
	show('last-failure', Boolean(failure));
	if (failure) text('last-failure', `The last start did not work. You can try again. The reason: ${s.reason}`);
	const by = app.config.provider ? ` (sent through ${app.config.provider})` : '';
	text('consent-text', `Send me one message when it is ready${by}. My number is deleted right after.`);
	checkPhone();
}
function renderFailed() {
	const s = app.status;
	text('failure-reason', s.reason || 'The service gave no reason.');
	text('failure-money', `The machine is deleted, so nothing more is charged.${number(s.costSoFar) ? ` This try cost ${money(s.costSoFar)}.` : ''} You pay nothing in any case.`);
	renderStart();
}
function renderWaking() {
	const s = app.status;
	show('longer', Boolean(s.longerThanUsual));
	const left = wakingLeft();
	const shown = Math.round(100 * wakingShare());
	$('progress').setAttribute('aria-valuenow', shown);
	$('progress').setAttribute('aria-valuetext', number(left) && left > 0 ? `about ${duration(left)} to go` : 'any moment now');
	text('waiting-people', s.subscribers > 0 ? `${plural(s.subscribers, 'person', 'people')} asked for a message.` : '');
	const can = 'Notification' in window && Notification.permission !== 'denied' && window.isSecureContext;
	show('notify', can && Notification.permission === 'default');
	text('notify-text', can && Notification.permission === 'granted' ? 'This browser will tell you, also from another tab.' : '');
}
function renderAwake() { text('soon-minutes', idle()); }

function ready() {
	if (document.hidden && 'Notification' in window && Notification.permission === 'granted') {
		try { new Notification('The model is awake', {body: 'It is ready to read your reviews.', icon: $('icon').href}); } catch { /* only from a service worker here */ }
	}
	if (app.queued) { app.queued = false; read(); }
}

// ---- once a second

const since = () => (Date.now() - app.at) / 1000;
function secondsLeft() { const s = app.status; return number(s?.secondsLeft) ? Math.max(0, s.secondsLeft - since()) : null; }
function wakingLeft() { const s = app.status; return number(s?.etaSeconds) ? s.etaSeconds - since() : null; }
function wakingShare() {
	const s = app.status, gone = (s.elapsedSeconds ?? 0) + since(), left = wakingLeft();
	if (!number(left)) return Math.min(0.95, gone / (s.typicalSeconds?.p50 || 360));
	return Math.min(0.97, gone / Math.max(1, gone + Math.max(0, left))); // never full before it is up
}
function placeSun(t) { // t: 0 rises, 1 sets
	const x = 180 - 150 * Math.cos(Math.PI * t), y = 296 - 128 * Math.sin(Math.PI * t);
	$('sun').setAttribute('transform', `translate(${x.toFixed(1)} ${(t < 0 || t > 1 ? 380 : y).toFixed(1)})`);
}
const width = (id, share) => { $(id).style.transform = `scaleX(${Math.max(0, Math.min(1, share))})`; };

function tick() {
	const s = app.status, view = app.view;
	if (app.retryAt) text('retry-in', app.retryAt > Date.now() ? `Next try by itself in ${Math.ceil((app.retryAt - Date.now()) / 1000)} s` : 'Trying …');
	if (!s) return;
	let title = `${TAB[view]} · ${NAME}`, cost = 'Nothing';
	if (view === 'waking') {
		const gone = (s.elapsedSeconds ?? 0) + since(), left = wakingLeft();
		text('elapsed', clock(gone));
		text('eta', !number(left) ? '' : left > 1 ? `about ${duration(left)} to go` : 'any moment now');
		width('progress-fill', wakingShare());
		placeSun(0.3 * wakingShare());
	}
	if (view === 'awake') {
		const left = secondsLeft();
		text('countdown', number(left) ? clock(left) : '–');
		const soon = number(left) && left <= WARN_SECONDS;
		show('soon', soon); $('timer').classList.toggle('ending', soon);
		if (soon) title = `${clock(left)} left · ${NAME}`;
		if (soon && !app.warned) announce('The model falls asleep in less than two minutes. A review, or the button Keep it awake, keeps it up.');
		app.warned = soon;
		root.dataset.late = soon;
		const whole = (s.idleMinutes || 30) * 60;
		placeSun(number(left) ? 0.34 + 0.62 * (1 - Math.min(1, left / whole)) : 0.4);
		if (left === 0 && since() > 1 && !app.reading && app.asked !== s.shutdownAt) { app.asked = s.shutdownAt; plan(1); }
	} else root.dataset.late = false;
	if (view === 'awake' || view === 'waking' || view === 'stopping') {
		const spent = number(s.costSoFar) ? s.costSoFar + (view === 'stopping' ? 0 : (s.pricePerHour || 0) * since() / 3600) : null;
		cost = number(s.pricePerHour) ? `${money(s.pricePerHour)}/h` : '–';
		text('session-cost', number(spent) ? `This session has cost its owner ${money(spent)} so far${number(s.pricePerHour) ? `; up day and night it would be ${money(s.pricePerHour * 730)} a month` : ''}.` : '');
	}
	text('sign-cost', cost);
	if (document.title !== title) document.title = title;
}

// ---- waking it

const tidyPhone = (value) => value.replace(/[\s().\-/\u00a0]/g, '').replace(/^00/, '+');
function phoneFault(value) { // '' if it is empty or whole
	const p = tidyPhone(value);
	if (!p) return '';
	if (/[^+\d]/.test(p) || p.lastIndexOf('+') > 0) return 'Only digits, spaces and a leading + belong in a phone number.';
	if (!p.startsWith('+')) return 'Begin with + and the country code: +44 for Britain, +1 for North America.';
	if (p.startsWith('+0')) return 'A country code does not begin with 0.';
	if (p.length < 9) return 'A few digits are missing.';
	if (p.length > 16) return 'That is too long: 15 digits at most.';
	return '';
}
function checkPhone(strict = false, said = '') {
	const field = $('phone'), p = tidyPhone(field.value), fault = said || phoneFault(field.value);
	// While somebody types, a number that is only unfinished is no mistake yet.
	const wrong = fault && (strict || said || (!/missing/.test(fault) && p !== '+'));
	field.setAttribute('aria-invalid', wrong ? 'true' : 'false');
	text('phone-hint', wrong ? fault : p && !fault ? 'Looks complete.' : 'With country code, such as +1 or +44.');
	$('phone-hint').className = wrong ? 'hint wrong' : p && !fault ? 'hint right' : 'hint';
	const consent = strict && p && !fault && !$('consent').checked;
	$('consent').setAttribute('aria-invalid', consent ? 'true' : 'false');
	text('consent-hint', consent ? 'Please tick this, or leave the number out.' : '');
	$('consent-hint').className = 'hint wrong';
	return fault ? field : consent ? $('consent') : null;
}

async function start(event) {
	event?.preventDefault();
	const wrong = checkPhone(true);
	text('start-error', '');
	if (wrong) return wrong.focus();
	if (app.starting) return;
	const body = {}, name = $('name').value.trim(), phone = tidyPhone($('phone').value);
	if (name) body.name = name;
	if (phone) body.phone = phone;
	app.starting = true; busy('start', true, 'Knocking …');
	try {
		const status = await call('/start', {method: 'POST', body, timeout: 40000});
		$('phone').value = ''; $('consent').checked = false; // it is not needed here any more
		accept(status, {mine: true});
	} catch (e) {
		const {title, reason} = said(e);
		if (/phone|sms/.test(e.code)) { checkPhone(true, e.message); $('phone').focus(); }
		else text('start-error', e.kind === 'refused' ? reason : `${title}. ${reason} It may not have been started: the page looks again by itself.`);
		if (e.kind !== 'refused') plan(3);
		app.queued = false;
	} finally { app.starting = false; busy('start', false); renderCompose(); }
}
function busy(id, on, label) {
	const button = $(id);
	button.dataset.label ??= button.textContent;
	button.setAttribute('aria-disabled', on);
	button.textContent = on ? label : button.dataset.label;
}

async function extend() {
	text('extend-error', '');
	busy('extend', true, 'Asking …');
	try {
		accept(await call('/extend', {method: 'POST'}), {mine: true});
		announce(`It stays awake for another ${duration(secondsLeft() ?? 0)}.`);
	} catch (e) {
		const {reason} = said(e);
		if (e.status === 409) look(); else text('extend-error', reason);
	} finally { busy('extend', false); }
}

// ---- reviews

const limits = () => ({text: app.status?.textLimit || 10000, batch: app.status?.batchLimit || 1000});
function reviews() {
	const all = $('review').value;
	return $('lines').checked ? all.split(/\r?\n/).map((r) => r.trim()).filter(Boolean) : all.trim() ? [all.trim()] : [];
}
function composeFault(list) {
	const {text: most, batch} = limits();
	if (list.length > batch) return `${plural(list.length, 'review')} are too many at once: ${batch.toLocaleString('en')} at most.`;
	const long = list.findIndex((r) => characters(r) > most);
	if (long >= 0) return `${list.length > 1 ? `Line ${long + 1}` : 'This'} is too long: ${most.toLocaleString('en')} characters at most.`;
	return '';
}
function renderCompose() {
	const list = reviews(), box = $('answer'), {text: most, batch} = limits(), lines = $('lines').checked;
	const fault = composeFault(list), view = app.view, awake = view === 'awake';
	text('review-label', lines ? 'Your reviews, one a line' : 'Your review');
	text('counter', lines ? `${list.length.toLocaleString('en')} of ${batch.toLocaleString('en')} reviews` : `${characters($('review').value).toLocaleString('en')} of ${most.toLocaleString('en')} characters`);
	$('counter').classList.toggle('over', Boolean(fault));
	// While it is awake the answer's place is kept, so that nothing jumps when the answer comes.
	if (awake && !box.firstChild) box.append(el('p', {class: 'small'}, 'The answer will stand here.'));
	box.hidden = !box.firstChild || (!awake && !box.querySelector('.verdict'));
	if (fault || app.overLong) text('review-error', fault);
	app.overLong = Boolean(fault);
	if (!app.reading) {
		const label = awake ? 'Read it' : app.queued ? 'It will be read first' : view === 'waking' ? 'Read it once it is up' : 'Wake it to read this';
		$('read').textContent = lines && awake ? 'Read them' : label;
		$('read').setAttribute('aria-disabled', app.queued);
		$('read').className = view === 'asleep' ? 'quiet' : 'go';
		text('read-hint', awake ? 'or press Ctrl + Enter' : app.queued ? 'Your text waits here.' : '');
	}
}

async function send(event) {
	event?.preventDefault();
	const list = reviews(), fault = composeFault(list);
	if (!list.length || fault) { text('review-error', fault || 'Write or paste a review first.'); return $('review').focus(); }
	text('review-error', '');
	if (app.reading || app.queued) return;
	if (app.view === 'awake') return read();
	app.queued = true;
	renderCompose();
	if (app.view === 'asleep') await start(); else announce('Your review will be read as soon as the model is up.');
}

async function read() {
	const list = reviews();
	if (!list.length || composeFault(list)) return;
	const found = [], size = Math.min(CHUNK, limits().batch);
	let latency = 0, version = null;
	app.reading = true; busy('read', true, 'Reading …');
	$('answer').setAttribute('aria-busy', 'true');
	const bar = $('batch-progress'); bar.max = list.length; bar.value = 0; bar.hidden = list.length <= size;
	try {
		for (let i = 0; i < list.length; i += size) {
			const part = list.slice(i, i + size);
			const reply = await call('/predict', {method: 'POST', body: {inputs: part.length === 1 ? part[0] : part}, timeout: 65000});
			if (!Array.isArray(reply.predictions) || reply.predictions.length !== part.length) throw new Problem('gateway', 'It sent another number of answers than it was asked for.');
			reply.predictions.forEach((p, k) => found.push({text: part[k], ...p}));
			latency += reply.latencyMs || 0; version = reply.modelVersion;
			if (app.status?.state === 'IN_SERVICE' && number(reply.secondsLeft)) {
				const gone = since(); app.epoch++; // the deadline has moved
				Object.assign(app.status, {shutdownAt: reply.shutdownAt, secondsLeft: reply.secondsLeft});
				if (number(app.status.costSoFar)) app.status.costSoFar += (app.status.pricePerHour || 0) * gone / 3600;
				app.at = Date.now();
			}
			bar.value = found.length;
		}
	} catch (e) { unread(e, found.length, list.length); } finally { app.reading = false; busy('read', false); bar.hidden = true; $('answer').setAttribute('aria-busy', 'false'); renderCompose(); tick(); }
	if (found.length) { answer(found, {latency, version}); remember(found, version); }
}
function unread(problem, done, all) {
	const {title, reason} = said(problem), kept = `${done ? ` ${done} of ${all} were read, see below.` : ''} Your text is kept.`;
	text('review-error', problem.status === 409 ? `The model is not awake any more.${kept}` : problem.kind === 'refused' ? reason : `${title}. ${reason}${kept}`);
	if (problem.status === 409) look();
}

// ---- answers

const SIGNS = {POSITIVE: '▲', NEGATIVE: '▼', UNSURE: '◆'};
const kind = (p) => (p.sure ?? p.score >= UNSURE) ? p.label : 'UNSURE';
const sign = (label) => SIGNS[label] || '●';
const tag = (p, more = '') => el('span', {class: 'tag', 'data-label': kind(p)}, `${sign(kind(p))} ${kind(p) === 'UNSURE' ? 'Not sure' : word(p.label)}${more}`);
const verdict = (p) => kind(p) === 'UNSURE' ? `Not sure, leaning ${p.label.toLowerCase()}` : word(p.label);
function bars(scores) {
	return el('dl', {class: 'bars'}, ...Object.entries(scores).map(([label, share]) => {
		const fill = el('span', {class: 'fill', 'data-label': label});
		fill.style.transform = `scaleX(${Math.max(0.004, Math.min(1, share))})`;
		return el('div', {}, el('dt', {}, el('span', {'aria-hidden': 'true'}, `${sign(label)} `), word(label)),
			el('dd', {class: 'amount'}, percent(share)), el('dd', {class: 'track', 'aria-hidden': 'true'}, fill));
	}));
}
function single(p) {
	return [
		el('p', {class: 'verdict', 'data-label': kind(p)}, el('span', {'aria-hidden': 'true', class: 'sign-mark'}, sign(kind(p))),
			el('strong', {}, verdict(p)), el('span', {class: 'share'}, percent(p.score))),
		bars(p.scores || {[p.label]: p.score}),
		p.windows > 1 ? el('p', {class: 'small'}, `A long one: the model read ${p.truncated ? 'its beginning' : 'it'} in ${p.windows} parts.`) : null,
	];
}
function several(list) {
	const count = (what) => list.filter((p) => kind(p) === what).length, unsure = count('UNSURE');
	const labels = [...new Set(list.map((p) => p.label))].sort().reverse();
	const sum = labels.map((l) => `${count(l)} ${l.toLowerCase()}`).concat(unsure ? [`${unsure} not sure`] : []).join(', ');
	return [
		el('p', {class: 'verdict'}, el('strong', {}, plural(list.length, 'review')), el('span', {class: 'share'}, sum)),
		el('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Answers, one a review'}, el('table', {}, el('thead', {}, el('tr', {}, el('th', {scope: 'col'}, 'Review'), el('th', {scope: 'col'}, 'Answer'), el('th', {scope: 'col'}, 'Share'))),
			el('tbody', {}, ...list.map((p) => el('tr', {}, el('td', {}, p.text), el('td', {}, tag(p)), el('td', {class: 'num'}, percent(p.score))))))),
		el('p', {class: 'row'}, el('button', {type: 'button', class: 'quiet', onclick: () => download(list)}, 'Download as CSV')),
	];
}
function answer(list, {latency = null, version = null, stored = false} = {}) {
	const one = list.length === 1, box = $('answer');
	const facts = [stored ? 'Stored answer: the model gave it earlier' : latency !== null ? `${one ? '' : 'together '}${Math.round(latency)} ms` : '', version ? `model ${version}` : ''].filter(Boolean).join(' · ');
	box.replaceChildren(el('h2', {class: 'unseen'}, 'The answer'), stored ? el('p', {class: 'stored'}, 'Stored') : '',
		...(one ? [el('blockquote', {}, list[0].text.length > 260 ? `${[...list[0].text].slice(0, 250).join('')} …` : list[0].text), ...single(list[0])] : several(list)).filter(Boolean), el('p', {class: 'small meta'}, facts));
	box.hidden = false;
	box.scrollIntoView({block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
	box.classList.remove('arrive'); void box.offsetWidth; box.classList.add('arrive');
	const good = list.filter((p) => kind(p) === 'POSITIVE').length, bad = list.filter((p) => kind(p) === 'NEGATIVE').length;
	root.dataset.mood = good > bad ? 'glad' : bad > good ? 'sad' : 'calm';
	announce(one ? `${stored ? 'Stored answer: ' : ''}${verdict(list[0])}, ${percent(list[0].score)}` : `${plural(list.length, 'review')} read.`);
}
function download(list) {
	const cell = (v) => { const s = String(v); return `"${(/^[=+\-@\t\r]/.test(s) ? `'${s}` : s).replaceAll('"', '""')}"`; };
	const labels = [...new Set(list.flatMap((p) => Object.keys(p.scores || {})))];
	const rows = [['review', 'label', 'score', ...labels], ...list.map((p) => [p.text, p.label, p.score.toFixed(6), ...labels.map((l) => (p.scores?.[l] ?? 0).toFixed(6))])];
	const url = URL.createObjectURL(new Blob(['\ufeff', rows.map((r) => r.map(cell).join(',')).join('\r\n'), '\r\n'], {type: 'text/csv'}));
	el('a', {href: url, download: 'sentiment.csv'}).click();
	setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- what was asked before

function past() {
	const kept = memory.read('past', []);
	return Array.isArray(kept) ? kept.filter((p) => p && typeof p.text === 'string' && typeof p.label === 'string' && number(p.score)) : [];
}
function remember(list, version) {
	const now = new Date().toISOString();
	const fresh = list.map(({text: t, label, score, scores, sure, truncated, windows}) => ({text: t, label, score, scores, sure, truncated, windows, version, at: now})).reverse();
	memory.write('past', [...fresh, ...past()].slice(0, KEPT));
	renderPast();
}
function renderPast() {
	const list = past();
	show('past', list.length > 0);
	$('history').replaceChildren(...list.map((p) => el('li', {}, el('button', {type: 'button', class: 'entry', onclick: () => { put(p.text); answer([p], {version: p.version, stored: true}); }},
		tag(p, ` ${percent(p.score)}`), el('span', {class: 'entry-text'}, p.text)))));
}
function put(value) {
	$('review').value = value; $('lines').checked = false;
	text('review-error', ''); keepDraft(); renderCompose();
}
function keepDraft() { memory.write('draft', {text: $('review').value.slice(0, 20000), lines: $('lines').checked}); }

function renderExamples() {
	const {examples, modelVersion} = app.examples;
	$('examples').replaceChildren(...examples.map((x) => el('li', {}, el('button', {type: 'button', class: 'example', onclick: () => {
		put(x.text);
		if (app.view === 'awake') send();
		else if (x.answer) answer([{text: x.text, ...x.answer}], {version: modelVersion, stored: true});
		else { $('answer').replaceChildren(); renderCompose(); $('review').focus(); }
	}}, el('b', {}, x.name), el('span', {}, x.text)))));
}

// ---- setting up

function misplaced(reason) {
	root.dataset.view = 'setup';
	text('title', 'This page does not know its service');
	text('lead', `${reason} The notebook 06_website publishes the page together with config.json, which holds {"apiUrl": "https://…"}.`);
	text('sign-state', 'Unknown'); text('sign-cost', '–'); text('sign-version', '–');
	document.title = `Not set up · ${NAME}`;
}
async function setUp() {
	let response;
	try { response = await fetch('config.json', {cache: 'no-cache'}); } catch { return fail(new Problem(navigator.onLine ? 'unreachable' : 'offline')); }
	if (response.status >= 500 || response.status === 429) return fail(new Problem(response.status === 429 ? 'busy' : 'gateway', '', {status: response.status}));
	if (!response.ok) return misplaced('There is no config.json beside it.');
	let config = null, url = null;
	try { config = await response.json(); url = new URL(config.apiUrl); } catch { /* told below */ }
	if (!url || !/^https?:$/.test(url.protocol)) return misplaced('Its config.json cannot be used: apiUrl must be the address of the service.');
	app.config = config; app.api = url.href.replace(/\/+$/, '');
	if (/^https?:/.test(config.inboxUrl)) { $('inbox').href = config.inboxUrl; show('inbox', true); }
	fetch('examples.json', {cache: 'no-cache'}).then((r) => r.json()).then((x) => { if (Array.isArray(x.examples)) { app.examples = x; renderExamples(); } }).catch(() => show('examples-box', false));
	look();
}

function wire() {
	const draft = memory.read('draft', null);
	if (draft && typeof draft.text === 'string') { $('review').value = draft.text; $('lines').checked = draft.lines === true; }
	$('start-form').addEventListener('submit', start);
	$('phone').addEventListener('input', () => checkPhone());
	$('phone').addEventListener('change', () => checkPhone(Boolean(phoneFault($('phone').value))));
	$('consent').addEventListener('change', () => checkPhone());
	$('review-form').addEventListener('submit', send);
	$('review').addEventListener('input', () => { text('review-error', ''); keepDraft(); renderCompose(); });
	$('lines').addEventListener('change', () => { keepDraft(); renderCompose(); });
	$('review').addEventListener('keydown', (e) => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) send(e); });
	$('extend').addEventListener('click', extend);
	$('retry').addEventListener('click', () => { text('retry-in', 'Trying …'); look(); });
	$('notify').addEventListener('click', async () => { await Notification.requestPermission(); if (app.view === 'waking') renderWaking(); });
	$('forget').addEventListener('click', () => { memory.write('past', []); renderPast(); $('title').focus(); });
	addEventListener('storage', (e) => { if (e.key === 'past') renderPast(); });
	addEventListener('online', look);
	addEventListener('offline', () => fail(new Problem('offline')));
	document.addEventListener('visibilitychange', () => { if (!document.hidden && Date.now() - app.at > 3000) look(); });
	setInterval(tick, 1000);
	renderPast();
	setUp();
}
wire();
})();

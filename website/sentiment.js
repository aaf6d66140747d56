// The page of a model that sleeps. What it shows follows from the answer of GET /status: `accept(status)` is the only
// way into a state, `fail(problem)` into trouble, which hides nothing known before. Text is only ever set as text.
'use strict';
{
const VIEWS = {STOPPED: 'asleep', CREATING: 'waking', IN_SERVICE: 'awake', STOPPING: 'stopping', FAILED: 'failed'};
const NAME = document.title;
const WARN_SECONDS = 120;
const UNSURE = 0.6; // below this share, if the model does not say itself
const CHUNK = 50; // reviews in one call, so that a long list shows its progress
const KEPT = 30; // answers remembered in this browser

const app = {api: '', config: {}, status: null, at: 0, view: 'loading', epoch: 0, failures: 0, queued: false};
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

// ---- small things

function el(name, ...children) { // name: tag or tag.class; a plain object holds attributes
	const [tag, kind] = name.split('.'), node = document.createElement(tag);
	if (kind) node.className = kind;
	for (const child of children) {
		if (typeof child === 'string' || child?.nodeType) node.append(child);
		else for (const [key, value] of Object.entries(child ?? {})) {
			if (key === 'onclick') node.onclick = value; else node.setAttribute(key, value);
		}
	}
	return node;
}
const text = (id, value) => { const n = $(id); if (n.textContent !== value) n.textContent = value; };
const show = (id, on) => { $(id).hidden = !on; };
const on = (who, event, act) => (who.addEventListener ? who : $(who)).addEventListener(event, act);
const announce = (message) => text('announce', message);
const said = (e) => { if (!(e instanceof Problem)) throw e; return explain(e); };
const number = (value) => typeof value === 'number' && Number.isFinite(value);
const big = (n) => n.toLocaleString('en');
const plural = (n, one, many = one + 's') => `${big(n)} ${n === 1 ? one : many}`;
const characters = (s) => [...s].length;
const word = (label) => label.charAt(0).toUpperCase() + label.slice(1).toLowerCase();

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

const memory = { // may be switched off or full
	read(key) { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
	write(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* then without */ } },
};

// ---- talking to the service

class Problem extends Error {
	constructor(kind, message = '', more = {}) { Object.assign(super(message), {kind, status: 0, code: '', ...more}); }
}

async function call(path, {method = 'GET', body, timeout = 15000} = {}) {
	const abort = new AbortController(), timer = setTimeout(() => abort.abort(), timeout);
	let response, data = null;
	try {
		response = await fetch(app.api + path, {method, signal: abort.signal, cache: 'no-store',
			headers: body ? {'content-type': 'application/json'} : {}, body: body && JSON.stringify(body)});
		try { data = await response.json(); } catch (e) { if (abort.signal.aborted) throw e; }
	} catch {
		throw new Problem(abort.signal.aborted ? 'slow' : navigator.onLine ? 'unreachable' : 'offline');
	} finally { clearTimeout(timer); }
	const {status, ok} = response;
	if (ok && data && typeof data === 'object') return data;
	const error = data?.error ?? {};
	// A 429 with a code is the engine's own and says how long to wait.
	const kind = status === 429 && !error.code ? 'busy' : status >= 500 || ok ? 'gateway' : 'refused';
	throw new Problem(kind, String(error.message || data?.message || ''), {status, code: String(error.code || '')});
}

const TROUBLES = {
	offline: ['You are offline', 'Your device has no connection.'],
	unreachable: ['The service does not answer', 'It may be your network, a filter in the browser, or the service itself.'],
	slow: ['The service is silent', 'It did not answer in time.'],
	busy: ['The service asks for patience', 'It gets more requests than it takes.'],
	gateway: ['The service has a problem', 'It answered with an error that is not yours.'],
	refused: ['The service refused', 'It did not take what this page sent.'],
};
function explain({kind, message, status}) {
	const [title, reason] = TROUBLES[kind];
	return {title, reason: message || `${reason}${status ? ` (HTTP ${status})` : ''}`};
}

function fail(problem) {
	const {title, reason} = explain(problem), wait = Math.min(60, 2 ** ++app.failures) * (0.8 + Math.random() * 0.4);
	text('trouble-title', title);
	text('trouble-text', `${reason} No money runs away meanwhile: a model that is awake falls asleep by itself.`);
	show('trouble', true);
	if (!app.status) { text('title', 'The model cannot be seen'); text('lead', 'It may be asleep or awake: this page cannot tell until its service answers.'); text('sign-state', 'Unknown'); }
	app.retryAt = Date.now() + wait * 1000;
	plan(wait);
	tick();
}

// ---- polling

function pace() { // seconds until the next look, by what may change how soon
	const {state, etaSeconds} = app.status ?? {}, slow = document.hidden ? 3 : 1;
	if (state === 'CREATING') return slow * Math.min(8, Math.max(2, (etaSeconds ?? 60) / 20));
	return state === 'STOPPING' ? 4 : state === 'IN_SERVICE' && left('secondsLeft') < 5 ? 3 : 20 * slow;
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
		if (epoch === app.epoch) accept(status); else plan(); // a newer answer came in between
	} catch (e) { said(e); fail(e); }
}

// ---- the state machine

function accept(status, mine = false) {
	if (mine) app.epoch++;
	const before = app.view, view = VIEWS[status.state];
	if (!view) return fail(new Problem('gateway', 'It answered with a state this page does not know.'));
	Object.assign(app, {status, view, at: Date.now(), failures: 0, retryAt: 0});
	show('trouble', false);
	if (view !== 'awake') app.warned = false;
	if (view !== before) root.dataset.mood = 'calm';
	render(view, before);
	plan();
}

const WORDS = { // tab, title, lead
	asleep: () => ['Asleep', 'The model is asleep', 'It reads reviews and says whether they praise or complain. It sleeps until somebody wants to know. That somebody can be you.'],
	waking: () => ['Waking up', 'The model is waking up', 'Leave this tab open, reload it or close it: the waking goes on. You can write a review meanwhile.'],
	awake: () => ['Awake', 'The model is awake', `Give it a review. It stays up for ${idle()} after the last one.`],
	stopping: () => ['Going to sleep', 'The model is going to sleep', 'The machine is being switched off. In a minute or so you can wake it again.'],
	failed: () => ['Did not wake up', 'The model did not wake up', 'Something went wrong on the way. Nothing of yours is lost.'],
};
const idle = () => duration((app.status?.idleMinutes ?? 30) * 60);

function render(view, before) {
	const s = app.status, [tab, title, lead] = WORDS[view]();
	root.dataset.view = view;
	text('title', title); text('lead', lead);
	for (const part of document.querySelectorAll('[data-in]')) part.hidden = !part.dataset.in.includes(view);
	text('sign-state', tab);
	text('sign-version', s.modelVersion || '–');
	if (view !== before) {
		$('icon').href = $('icon').dataset[view === 'awake' ? 'awake' : 'asleep'];
		if (before !== 'loading') announce(`${title}. ${view === 'failed' && s.reason ? s.reason : lead}`);
		// Whoever stood on a control that has just gone is taken to the heading.
		if (!document.activeElement.getClientRects().length) $('title').focus();
		if (view === 'awake' && before === 'waking') ready();
	}
	if (view === 'failed') {
		text('failure-reason', s.reason || 'The service gave no reason.');
		text('failure-money', `The machine is deleted, so nothing more is charged.${number(s.costSoFar) ? ` This try cost ${money(s.costSoFar)}.` : ''} You pay nothing in any case.`);
	}
	if (view === 'asleep' || view === 'failed') renderStart();
	if (view === 'waking') renderWaking();
	text('soon-minutes', idle());
	renderNotify();
	renderCompose();
	tick();
}

function renderStart() {
	const s = app.status, usual = s.typicalSeconds || {}, half = number(usual.p50) ? usual.p50 : s.etaSeconds;
	text('fact-time', !number(half) ? 'A few minutes: a machine is found, switched on and given the model.'
		: !(usual.starts > 0) ? `About ${duration(half)}, but none was measured here yet.` : `Usually ${duration(half)}${usual.p90 > half * 1.1 ? `, nine times in ten within ${duration(usual.p90)}` : ''} (${plural(usual.starts, 'start')} so far).`);
	const price = number(s.pricePerHour) ? `${money(s.pricePerHour)} an hour` : 'the hours it is up';
	text('fact-cost', `You: nothing. Its owner: ${price} for the machine, which is gone while it sleeps.${s.savedThisMonth > 0 ? ` Sleep saved ${money(s.savedThisMonth)} this month.` : ''}`);
	text('fact-idle', `By itself, ${idle()} after the last review.`);
	show('last-failure', app.view === 'asleep' && s.reason);
	text('last-failure', `The last start did not work. You can try again. The reason: ${s.reason}`);
	const by = app.config.provider ? ` (sent through ${app.config.provider})` : '';
	text('consent-text', `Send me one message when it is ready${by}. My number is deleted right after.`);
	checkPhone();
}
function renderWaking() {
	const s = app.status, bar = $('progress');
	show('longer', s.longerThanUsual);
	bar.setAttribute('aria-valuenow', Math.round(100 * wakingShare()));
	bar.setAttribute('aria-valuetext', toGo());
	text('waiting-people', s.subscribers > 0 ? `${plural(s.subscribers, 'person', 'people')} asked for a message.` : '');
}

// ---- news in this browser

const notices = () => 'Notification' in window && isSecureContext ? Notification.permission : 'denied';
function renderNotify() {
	const place = $(app.view === 'waking' ? 'notify-waking' : 'notify-asleep');
	if (!place.contains($('notify'))) place.append($('notify'), $('notify-text')); // moving takes the focus away
	show('notify', notices() === 'default');
	text('notify-text', notices() === 'granted' ? 'This browser will tell you, as long as this tab stays open.' : '');
}
function ready() {
	if (document.hidden && notices() === 'granted') {
		try { new Notification('The model is awake', {icon: $('icon').href}); } catch { /* not on phones */ }
	}
	if (app.queued) { app.queued = false; read(); }
}

// ---- once a second

const since = () => (Date.now() - app.at) / 1000;
const left = (what) => number(app.status?.[what]) ? Math.max(0, app.status[what] - since()) : NaN; // secondsLeft or etaSeconds
const spent = () => app.status.costSoFar + (app.status.pricePerHour || 0) * since() / 3600;
const elapsed = () => (app.status.elapsedSeconds ?? 0) + since();
const toGo = () => left('etaSeconds') > 1 ? `about ${duration(left('etaSeconds'))} to go` : app.status.longerThanUsual ? 'longer than usual' : 'any moment now';
const wakingShare = () => Math.min(0.97, elapsed() / Math.max(1, elapsed() + (left('etaSeconds') || 0))); // never full before it is up
function placeSun(t) { // t: 0 rises, 1 sets
	const x = 180 - 150 * Math.cos(Math.PI * t), y = 296 - 128 * Math.sin(Math.PI * t);
	$('sun').setAttribute('transform', `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
}

function tick() {
	const s = app.status, view = app.view, price = s?.pricePerHour;
	if (app.retryAt) text('retry-in', app.retryAt > Date.now() ? `Next try by itself in ${Math.ceil((app.retryAt - Date.now()) / 1000)} s` : 'Trying …');
	if (!s) return;
	let title = `${WORDS[view]()[0]} · ${NAME}`, soon = false;
	if (view === 'waking') {
		text('elapsed', clock(elapsed()));
		text('eta', toGo());
		$('progress-fill').style.transform = `scaleX(${wakingShare()})`;
		placeSun(0.3 * wakingShare());
	}
	if (view === 'awake') {
		const rest = left('secondsLeft');
		text('countdown', clock(rest));
		soon = rest <= WARN_SECONDS;
		show('soon', soon); $('timer').classList.toggle('ending', soon);
		if (soon) title = `${clock(rest)} left · ${NAME}`;
		if (soon && !app.warned) announce($('soon').textContent);
		app.warned = soon;
		placeSun(0.96 - 0.62 * Math.min(1, rest / (s.idleMinutes || 30) / 60));
		if (number(s.costSoFar)) text('session-cost', `This session has cost its owner ${money(spent())} so far${number(price) ? `; up day and night it would be ${money(price * 730)} a month` : ''}.`);
		if (!rest && since() > 1 && !app.reading && app.asked !== s.shutdownAt) { app.asked = s.shutdownAt; plan(1); }
	}
	root.dataset.late = soon;
	text('sign-cost', !/awake|waking|stopping/.test(view) ? 'Nothing' : number(price) ? `${money(price)}/h` : '–');
	if (document.title !== title) document.title = title;
}

// ---- waking it

const tidyPhone = (value) => value.replace(/[\s().\-/]/g, '').replace(/^00/, '+');
const PHONE_FAULTS = [
	[/[^+\d]|.\+/, 'Only digits, spaces and a leading + belong in a phone number.'],
	[/^\d/, 'Begin with + and the country code: +44 for Britain, +1 for North America.'],
	[/^\+0/, 'A country code does not begin with 0.'],
	[/^.{17}/, 'That is too long: 15 digits at most.'],
	[/^.{1,8}$/, 'A few digits are missing.'],
];
const phoneFault = (phone) => PHONE_FAULTS.find(([pattern]) => pattern.test(phone))?.[1] ?? ''; // '' if it is empty or whole
function checkPhone(strict = false, said = '') {
	const field = $('phone'), p = tidyPhone(field.value), fault = said || phoneFault(p), fine = p && !fault;
	// While somebody types, a number that is only unfinished is no mistake yet.
	const wrong = fault && (strict || said || (!/missing/.test(fault) && p !== '+'));
	field.setAttribute('aria-invalid', Boolean(wrong));
	text('phone-hint', wrong ? fault : fine ? 'Looks complete.' : 'With country code, such as +1 or +44.');
	$('phone-hint').className = wrong ? 'hint wrong' : fine ? 'hint right' : 'hint';
	const consent = strict && fine && !$('consent').checked;
	$('consent').setAttribute('aria-invalid', Boolean(consent));
	text('consent-hint', consent ? 'Please tick this, or leave the number out.' : '');
	return fault ? field : consent ? $('consent') : null;
}

async function start(event) {
	event?.preventDefault();
	const wrong = checkPhone(true);
	text('start-error', '');
	if (wrong) { app.queued = false; renderCompose(); return wrong.focus(); }
	if (app.starting) return;
	const name = $('name').value.trim(), phone = tidyPhone($('phone').value);
	app.starting = true; busy('start', 'Knocking …');
	try {
		const status = await call('/start', {method: 'POST', body: {...name && {name}, ...phone && {phone}}, timeout: 40000});
		$('phone').value = ''; $('consent').checked = false;
		accept(status, true);
	} catch (e) {
		const {title, reason} = said(e), refused = e.kind === 'refused';
		if (/phone|sms/.test(e.code)) { checkPhone(true, e.message); $('phone').focus(); }
		else text('start-error', refused ? reason : `${title}. ${reason} It may not have been started: the page looks again by itself.`);
		if (!refused) plan(3);
		app.queued = false;
	} finally { app.starting = false; busy('start'); renderCompose(); }
}
function busy(id, label) { // no label: not any more
	const button = $(id);
	button.dataset.label ??= button.textContent;
	button.setAttribute('aria-disabled', Boolean(label));
	button.textContent = label ?? button.dataset.label;
}

async function extend() {
	text('extend-error', '');
	busy('extend', 'Asking …');
	try {
		accept(await call('/extend', {method: 'POST'}), true);
		announce(`It stays awake for another ${duration(left('secondsLeft'))}.`);
	} catch (e) {
		const {reason} = said(e);
		if (e.status === 409) look(); else text('extend-error', reason);
	} finally { busy('extend'); }
}

// ---- reviews

const limits = () => ({most: app.status?.textLimit || 10000, batch: app.status?.batchLimit || 1000});
function reviews() {
	const all = $('review').value;
	return ($('lines').checked ? all.split('\n') : [all]).map((r) => r.trim()).filter(Boolean);
}
function composeFault(list) {
	const {most, batch} = limits(), long = list.findIndex((r) => characters(r) > most);
	if (list.length > batch) return `${plural(list.length, 'review')} are too many at once: ${big(batch)} at most.`;
	return long < 0 ? '' : `${list.length > 1 ? `Line ${long + 1}` : 'This'} is too long: ${big(most)} characters at most.`;
}
function renderCompose() {
	const list = reviews(), box = $('answer'), {most, batch} = limits(), lines = $('lines').checked;
	const fault = composeFault(list), view = app.view, awake = view === 'awake';
	text('review-label', lines ? 'Your reviews, one a line' : 'Your review');
	text('counter', lines ? `${big(list.length)} of ${big(batch)} reviews` : `${big(characters($('review').value))} of ${big(most)} characters`);
	$('counter').classList.toggle('over', Boolean(fault));
	if (awake && !box.firstChild) { // its place is kept by an invisible one, so that nothing jumps
		answer([{text: '', label: '–', score: 0, scores: {NEGATIVE: 0, POSITIVE: 0}}], {version: '–'}, true);
		box.className = 'card blank';
	}
	box.hidden = !box.firstChild || (!awake && box.matches('.blank'));
	if (fault || app.overLong) text('review-error', fault);
	app.overLong = Boolean(fault);
	if (!app.reading) {
		const button = $('read');
		button.textContent = awake ? (lines ? 'Read them' : 'Read it') : app.queued ? 'It will be read first' : view === 'waking' ? 'Read it once it is up' : 'Wake it to read this';
		button.setAttribute('aria-disabled', app.queued);
		button.className = view === 'asleep' ? 'quiet' : 'go';
		text('read-hint', awake ? 'or press Ctrl + Enter' : app.queued ? 'Your text waits here.' : '');
	}
}

async function send(event) {
	event?.preventDefault();
	const list = reviews(), fault = composeFault(list);
	text('review-error', list.length ? fault : 'Write or paste a review first.');
	if (!list.length || fault) return $('review').focus();
	if (app.reading || app.queued) return;
	if (app.view === 'awake') return read();
	app.queued = true;
	renderCompose();
	if (app.view === 'asleep') await start(); else announce($('read').textContent);
}

async function predict(inputs, more) { // inputs: a list; the answers come in its order
	const reply = await call('/predict', {method: 'POST', body: {inputs: inputs.length === 1 ? inputs[0] : inputs, ...more}, timeout: 65000});
	if (reply.predictions?.length !== inputs.length) throw new Problem('gateway', 'It sent another number of answers than it was asked for.');
	const s = app.status;
	if (s?.state === 'IN_SERVICE' && number(reply.secondsLeft)) { // the deadline has moved
		if (number(s.costSoFar)) s.costSoFar = spent();
		Object.assign(s, {shutdownAt: reply.shutdownAt, secondsLeft: reply.secondsLeft});
		app.epoch++; app.at = Date.now();
	}
	return reply;
}
async function read() {
	const list = reviews(), found = [], size = Math.min(CHUNK, limits().batch), bar = $('batch-progress');
	if (!list.length || composeFault(list)) return;
	let latency = 0, version = null;
	app.reading = true; busy('read', 'Reading …');
	$('answer').setAttribute('aria-busy', true);
	bar.max = list.length; bar.value = 0; bar.hidden = list.length <= size;
	try {
		while (found.length < list.length) {
			const part = list.slice(found.length, found.length + size), reply = await predict(part);
			reply.predictions.forEach((p, k) => found.push({...p, text: part[k]}));
			latency += reply.latencyMs || 0; version = reply.modelVersion;
			bar.value = found.length;
		}
	} catch (e) {
		const {title, reason} = said(e), kept = `${found.length ? ` ${found.length} of ${list.length} were read, see below.` : ''} Your text is kept.`;
		text('review-error', e.status === 409 ? `The model is not awake any more.${kept}` : e.kind === 'refused' ? reason : `${title}. ${reason}${kept}`);
		if (e.status === 409) look();
	} finally { app.reading = false; busy('read'); bar.hidden = true; $('answer').setAttribute('aria-busy', false); renderCompose(); tick(); }
	if (found.length) { answer(found, {latency, version}); remember(found, version); }
}

// ---- answers

const SIGNS = {POSITIVE: '▲', NEGATIVE: '▼', UNSURE: '◆'};
const kind = (p) => (p.sure ?? p.score >= UNSURE) ? p.label : 'UNSURE';
const sign = (label) => SIGNS[label] || '●';
const count = (list, what) => list.filter((p) => kind(p) === what).length;
const tag = (p, more = '') => el('span.tag', {'data-label': kind(p)}, `${sign(kind(p))} ${kind(p) === 'UNSURE' ? 'Not sure' : word(p.label)}${more}`);
const verdict = (p) => kind(p) === 'UNSURE' ? `Not sure, leaning ${p.label.toLowerCase()}` : word(p.label);
const button = (label, onclick, more = {}) => el('button.quiet', {type: 'button', onclick, ...more}, label);

function bars(scores) {
	return el('dl.bars', ...Object.entries(scores).map(([label, share]) => {
		const fill = el('span.fill', {'data-label': label});
		fill.style.transform = `scaleX(${Math.max(0.004, share)})`;
		return el('div', el('dt', el('span', {'aria-hidden': true}, `${sign(label)} `), word(label)),
			el('dd.amount', percent(share)), el('dd.track', {'aria-hidden': true}, fill));
	}));
}
function single(p) {
	return [
		p.explanation ? words(p) : el('blockquote.clamp', p.text),
		el('p.verdict', {'data-label': kind(p)}, el('span.sign-mark', {'aria-hidden': true}, sign(kind(p))), el('strong', verdict(p)), el('span.share', percent(p.score))),
		bars(p.scores || {[p.label]: p.score}),
		p.windows > 1 ? el('p.small', `A long one: the model read ${p.truncated ? 'its beginning' : 'it'} in ${p.windows} parts.`) : null,
	];
}
function words(p) { // on which the answer hangs; offsets count characters, not UTF-16 units
	const letters = [...p.text], say = (from, to) => letters.slice(from, to).join(''), weight = (w) => Math.abs(w.influence);
	const ranked = [...p.explanation].sort((x, y) => weight(y) - weight(x)), most = ranked[0] ? weight(ranked[0]) : 0;
	const telling = ranked.filter((w) => weight(w) >= Math.max(0.01, most / 5)).slice(0, 10);
	const label = (w) => w.influence > 0 ? 'POSITIVE' : 'NEGATIVE', box = el('blockquote', {id: 'words', tabindex: -1});
	let end = 0;
	for (const w of [...telling].sort((x, y) => x.start - y.start)) {
		box.append(say(end, w.start), el(weight(w) > most / 2 ? 'mark.strong' : 'mark', {'data-label': label(w)}, say(w.start, w.end)));
		end = w.end;
	}
	box.append(say(end));
	const points = (w) => `${say(w.start, w.end)} ${w.influence > 0 ? '+' : '−'}${(weight(w) * 100).toFixed(0)}`;
	const sides = ['POSITIVE', 'NEGATIVE'].map((side) => [side, telling.filter((w) => label(w) === side)]).filter(([, found]) => found.length);
	return el('div.why', box, ...sides.map(([side, found]) => el('p', el('b', `${sign(side)} For ${side.toLowerCase()}: `), found.map(points).join(', '))), el('p.small', telling.length
		? 'In points: how far “positive” falls (+) or rises (−) when the model reads the review without that word.'
		: 'It hangs on no single word: without any one of them the answer stays what it is.'));
}
async function why(p, facts) { // one more reading for each word
	if (app.reading) return;
	busy('why', 'Looking …'); text('tool-text', '');
	try {
		const {explanation} = (await predict([p.text], {explain: true})).predictions[0];
		if (!Array.isArray(explanation)) throw new Problem('gateway', 'This model cannot say why.');
		answer([{...p, explanation}], facts, true);
		$('words').focus();
	} catch (e) {
		busy('why');
		text('tool-text', said(e).reason);
		if (e.status === 409) look();
	}
}
function several(list) {
	const labels = [...new Set(list.map((p) => p.label))].sort().reverse(), unsure = count(list, 'UNSURE');
	const sum = labels.map((l) => `${count(list, l)} ${l.toLowerCase()}`).concat(unsure ? `${unsure} not sure` : []).join(', ');
	const row = (cell, ...cells) => el('tr', ...cells.map((c) => el(cell, c)));
	return [
		el('p.verdict', el('strong', plural(list.length, 'review')), el('span.share', sum)),
		el('div.scroll', {tabindex: 0, role: 'region', 'aria-label': 'Answers, one a review'}, el('table', el('thead', row('th', 'Review', 'Answer', 'Share')),
			el('tbody', ...list.map((p) => row('td', p.text, tag(p), percent(p.score)))))),
	];
}
function answer(list, facts, again = false) { // facts: latency, version, stored
	const {latency, version, stored} = facts, [p] = list, one = list.length === 1, box = $('answer');
	const meta = [stored && 'Stored answer: the model gave it earlier', number(latency) && `${one ? '' : 'together '}${Math.round(latency)} ms`, version && `model ${version}`];
	const inputs = JSON.stringify(one ? p.text : list.map((each) => each.text));
	const tools = el('p.row', one ? (p.explanation ? null : button('Which words count?', () => why(p, facts), {id: 'why'})) : button('Download as CSV', () => download(list)),
		...Object.entries({link: linkTo(list), curl: asCurl(inputs), Python: asPython(inputs)}).map(([what, value]) => button(`Copy ${what}`, () => copy(what, value))),
		el('span.small', {id: 'tool-text', role: 'status'}));
	box.replaceChildren(stored ? el('p.stored', 'Stored') : '', ...(one ? single(p) : several(list)).filter(Boolean), el('p.small', {id: 'meta'}, meta.filter(Boolean).join(' · ')), tools);
	box.hidden = false; box.className = 'card';
	root.dataset.mood = ['sad', 'calm', 'glad'][1 + Math.sign(count(list, 'POSITIVE') - count(list, 'NEGATIVE'))];
	if (again) return;
	box.scrollIntoView({block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
	announce(one ? `${stored ? 'Stored answer: ' : ''}${verdict(p)}, ${percent(p.score)}` : `${plural(list.length, 'review')} read.`);
}

async function copy(what, value) {
	try { await navigator.clipboard.writeText(value); text('tool-text', `Copied: ${what}.`); } catch { text('tool-text', 'This browser does not let a page copy.'); }
}
// What follows # stays in the browser: no server sees it.
const linkTo = (list) => `${location.href.split('#')[0]}#review${list[1] ? 's' : ''}=${encodeURIComponent(list.map((p) => p.text).join('\n'))}`;
const asCurl = (inputs) => `curl '${app.api}/predict' -H 'content-type: application/json' -d '${`{"inputs": ${inputs}}`.replaceAll("'", "'\\''")}'`;
const asPython = (inputs) => `import json
from urllib.request import Request, urlopen
body = json.dumps({"inputs": ${inputs}}).encode()
print(json.load(urlopen(Request("${app.api}/predict", body, {"content-type": "application/json"}))))
`;
function download(list) {
	const cell = (v) => { const s = String(v); return `"${(/^[=+\-@\t\r]/.test(s) ? `'${s}` : s).replaceAll('"', '""')}"`; };
	const labels = Object.keys(list[0].scores);
	const rows = [['review', 'label', 'score', 'sure', ...labels], ...list.map((p) => [p.text, p.label, p.score.toFixed(6), p.sure ?? '', ...labels.map((l) => p.scores[l].toFixed(6))])];
	const url = URL.createObjectURL(new Blob(['\ufeff', rows.map((r) => r.map(cell).join(',')).join('\r\n'), '\r\n'], {type: 'text/csv'}));
	el('a', {href: url, download: 'sentiment.csv'}).click();
	setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- reviews from a file or a link

function table(csv) { // the first line says whether commas, semicolons or tabs part the cells
	const line = csv.split('\n', 1)[0], cut = [',', ';', '\t'].sort((x, y) => line.split(y).length - line.split(x).length)[0], rows = [[]];
	for (const [, quoted, plain, end] of csv.matchAll(new RegExp(`(?:"((?:[^"]|"")*)"|([^${cut}\\r\\n]*))(${cut}|\\r?\\n|$)`, 'g'))) {
		rows.at(-1).push((quoted?.replaceAll('""', '"') ?? plain).replace(/\s+/g, ' ').trim());
		if (end !== cut) rows.push([]);
	}
	return rows.filter((row) => row.some(Boolean));
}
async function take(file) {
	if (file.size > 5e6) return text('review-error', 'This file is too large: 5 MB at most.');
	const rows = table(await file.text()), head = rows[0] ?? [];
	const named = head.findIndex((cell) => /^(comment|content|feedback)s?$|(review|text|body)s?$/i.test(cell));
	const size = (i) => rows.reduce((sum, row) => sum + (row[i]?.length ?? 0), 0); // without a name, the wordiest column
	const column = named >= 0 ? named : [...head.keys()].sort((x, y) => size(y) - size(x))[0];
	const list = rows.slice(named >= 0 ? 1 : 0).map((row) => row[column]).filter(Boolean);
	if (!list.length) return text('review-error', 'No reviews were found in this file.');
	put(list.join('\n'), true);
	text('file-text', `${plural(list.length, 'review')} from ${file.name}, column ${column + 1}.`);
}
function takeLink() {
	const [, many, coded] = /^#review(s?)=(.+)$/.exec(location.hash) ?? [];
	if (!coded) return;
	try { put(decodeURIComponent(coded), Boolean(many)); } catch { /* cut off on its way */ }
	history.replaceState(null, '', location.pathname); // or a reload brings it back
}

// ---- what was asked before

function past() {
	const kept = memory.read('past');
	return Array.isArray(kept) ? kept.filter((p) => [p?.text, p?.label].every((each) => typeof each === 'string') && number(p.score)) : [];
}
function remember(list, version) {
	memory.write('past', [...list.map((p) => ({...p, version})).reverse(), ...past()].slice(0, KEPT));
	renderPast();
}
function renderPast() {
	const list = past();
	show('past', list.length);
	$('history').replaceChildren(...list.map((p) => el('li', el('button.entry', {type: 'button', onclick: () => { put(p.text); answer([p], {version: p.version, stored: true}); }},
		tag(p, ` ${percent(p.score)}`), el('span.clamp', p.text)))));
}
function put(value, lines = false) {
	$('review').value = value; $('lines').checked = lines;
	text('review-error', ''); text('file-text', ''); keepDraft(); renderCompose();
}
function keepDraft() { memory.write('draft', {text: $('review').value, lines: $('lines').checked}); }

function renderExamples({examples, modelVersion: version}) {
	$('examples').replaceChildren(...examples.map((x) => el('li', el('button.example', {type: 'button', onclick: () => {
		put(x.text);
		if (app.view === 'awake') send();
		else if (x.answer) answer([{...x.answer, text: x.text, explanation: x.answer.words?.map(([start, end, influence]) => ({start, end, influence}))}], {version, stored: true});
		else { $('answer').replaceChildren(); renderCompose(); $('review').focus(); }
	}}, el('b', x.name), el('span', x.text)))));
}

// ---- setting up

function misplaced(reason) {
	root.dataset.view = 'setup';
	text('title', 'This page does not know its service');
	text('lead', `${reason} The notebook 06_website publishes it together with the page.`);
	for (const id of ['state', 'cost', 'version']) text(`sign-${id}`, 'Unknown');
	document.title = `Not set up · ${NAME}`;
}
async function setUp() {
	let response, config, url;
	try { response = await fetch('config.json', {cache: 'no-cache'}); } catch { return fail(new Problem(navigator.onLine ? 'unreachable' : 'offline')); }
	const {status, ok} = response;
	if (status >= 500 || status === 429) return fail(new Problem(status === 429 ? 'busy' : 'gateway', '', {status}));
	if (!ok) return misplaced('There is no config.json beside it.');
	try { config = await response.json(); url = new URL(config.apiUrl); } catch { /* told below */ }
	if (!url || !/^https?:$/.test(url.protocol)) return misplaced('Its config.json cannot be used: apiUrl must be the address of the service.');
	app.config = config; app.api = url.href.replace(/\/+$/, '');
	if (/^https?:/.test(config.inboxUrl)) { $('inbox').href = config.inboxUrl; show('inbox', true); }
	fetch('examples.json', {cache: 'no-cache'}).then((r) => r.json()).then(renderExamples).catch(() => show('examples-box', false));
	look();
}

const draft = memory.read('draft');
if (typeof draft?.text === 'string') { $('review').value = draft.text; $('lines').checked = draft.lines === true; }
on('start-form', 'submit', start);
on('phone', 'input', () => checkPhone());
on('phone', 'change', () => checkPhone(phoneFault(tidyPhone($('phone').value)) !== ''));
on('consent', 'change', () => checkPhone());
on('review-form', 'submit', send);
on('review', 'input', () => { text('review-error', ''); keepDraft(); renderCompose(); });
on('lines', 'change', () => { keepDraft(); renderCompose(); });
on('file', 'change', () => { const [file] = $('file').files; if (file) take(file); });
on('review', 'keydown', (e) => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) send(e); });
on('extend', 'click', extend);
on('retry', 'click', () => { text('retry-in', 'Trying …'); look(); });
on('notify', 'click', async () => { await Notification.requestPermission(); renderNotify(); });
on('forget', 'click', () => { memory.write('past', []); renderPast(); $('title').focus(); });
on(window, 'storage', (e) => { if (e.key === 'past') renderPast(); });
on(window, 'online', look);
on(window, 'offline', () => fail(new Problem('offline')));
on(window, 'hashchange', takeLink);
on(window, 'dragover', (e) => { if (e.dataTransfer.types.includes('Files')) e.preventDefault(); });
on(window, 'drop', (e) => { const [file] = e.dataTransfer.files; if (file) { e.preventDefault(); take(file); } });
on(document, 'visibilitychange', () => { if (!document.hidden && Date.now() - app.at > 3000) look(); });
setInterval(tick, 1000);
renderPast();
takeLink();
setUp();
}

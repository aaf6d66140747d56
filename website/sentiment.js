// Only `accept(status)`, with an answer of GET /status, enters a state; only `fail(problem)` enters trouble.
// Text is only ever set as text.
const VIEWS = {STOPPED: 'asleep', CREATING: 'waking', IN_SERVICE: 'awake', STOPPING: 'stopping', FAILED: 'failed'};
const NAME = document.title;
const WARN_SECONDS = 120;
const UNSURE = 0.6; // without a calibration
const CHUNK = 50; // reviews in one call: a long list shows its progress
const KEPT = 30; // answers remembered in this browser
const API = `${location.origin}/api`;

const app = {status: null, at: 0, newest: 0, view: 'loading', turn: 0, failures: 0, queued: false};
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

function el(name, ...children) {
	// name: tag or tag.class; a plain object holds attributes
	const [tag, kind] = name.split('.'),
		node = document.createElement(tag);
	if (kind) node.className = kind;
	for (const child of children) {
		if (typeof child === 'string' || child?.nodeType) node.append(child);
		else
			for (const [key, value] of Object.entries(child ?? {})) {
				if (key === 'onclick') node.onclick = value;
				else node.setAttribute(key, value);
			}
	}
	return node;
}
const text = (id, value) => {
	const n = $(id);
	if (n.textContent !== value) n.textContent = value;
};
const show = (id, on) => {
	$(id).hidden = !on;
};
const announce = (message) => text('announce', message);
const said = (e) => {
	if (!(e instanceof Problem)) throw e;
	return explain(e);
};
const number = Number.isFinite;
const big = (n) => n.toLocaleString('en');
const plural = (n, one, many = `${one}s`) => `${big(n)} ${n === 1 ? one : many}`;
const characters = (s) => [...s].length;
const ended = (s) => (/[.!?…)]$/.test(s) ? s : `${s}.`); // some are cut
const word = (label) => label.charAt(0).toUpperCase() + label.slice(1).toLowerCase();

function clock(seconds) {
	const s = Math.max(0, Math.round(seconds));
	return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
}
function duration(seconds) {
	if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), 'second');
	if (seconds < 5400) return plural(Math.round(seconds / 60), 'minute');
	return plural(Math.round(seconds / 360) / 10, 'hour');
}
function money(dollars) {
	if (dollars === 0) return 'nothing';
	if (dollars < 0.0001) return 'less than $0.0001';
	return `$${dollars.toFixed(dollars < 1 ? 4 : 2).replace(/(\.\d\d\d??)0+$/, '$1')}`;
}
function percent(share) {
	// never 100 or 0: no model is that sure
	if (share > 0.999) return '> 99.9 %';
	if (share < 0.001) return '< 0.1 %';
	return `${(share * 100).toFixed(1)} %`;
}

const memory = {
	read(key) {
		try {
			return JSON.parse(localStorage.getItem(key));
		} catch {
			return null;
		}
	},
	write(key, value) {
		try {
			localStorage.setItem(key, JSON.stringify(value));
		} catch {
			/* off or full */
		}
	}
};

// talking to the service

class Problem extends Error {
	constructor(kind, message = '', more = {}) {
		Object.assign(super(message), {kind, status: 0, code: '', ...more});
	}
}

async function call(path, {method = 'GET', body, timeout = 15000} = {}) {
	const signal = AbortSignal.timeout(timeout);
	let response,
		data = null;
	try {
		response = await fetch(path, {
			method,
			signal,
			cache: 'no-store',
			headers: body ? {'content-type': 'application/json'} : {},
			body: body && JSON.stringify(body)
		});
		try {
			data = await response.json();
		} catch (e) {
			if (signal.aborted) throw e;
		}
	} catch {
		throw new Problem(signal.aborted ? 'slow' : navigator.onLine ? 'unreachable' : 'offline');
	}
	const {status, ok, headers} = response,
		error = data?.error ?? {},
		code = String(error.code || '');
	// While the API fails, CloudFront may repeat an old answer.
	const old = Number(headers.get('age')) > 10;
	if (ok && data && typeof data === 'object' && !old) return data;
	// A 429 without a code is the gateway's.
	const kind = status === 429 && !code ? 'busy' : status >= 500 || ok ? 'gateway' : 'refused';
	throw new Problem(kind, String(error.message || ''), {
		status,
		code,
		wait: Number(error.retryAfterSeconds ?? headers.get('retry-after'))
	});
}

const TROUBLES = {
	offline: ['You are offline', 'Your device has no connection.'],
	unreachable: ['The service does not answer', 'The cause may be your network, a filter or the service.'],
	slow: ['The service is slow', 'It did not answer in time.'],
	busy: ['Too many requests right now', 'Please wait a moment.'],
	gateway: ['The service has a problem', 'It had an error, which is not your fault.'],
	refused: ['The request was refused', 'The service did not accept it.']
};
function explain({kind, message, status}) {
	const [title, reason] = TROUBLES[kind];
	return {title, reason: ended(message || `${reason}${status ? ` (HTTP ${status})` : ''}`)};
}

function fail(problem) {
	const {title, reason} = explain(problem),
		wait = Math.min(60, 2 ** ++app.failures) * (0.8 + Math.random() * 0.4);
	text('trouble-title', title);
	text('trouble-text', `${reason} Nothing extra is charged: the model falls asleep by itself.`);
	show('trouble', true);
	if (!app.status) {
		text('title', 'The state is unknown');
		text('lead', 'The model may be asleep or awake.');
		text('sign-state', 'Unknown');
	}
	app.retryAt = Date.now() + wait * 1000;
	plan(wait);
	tick();
}

// polling

function pace() {
	// seconds until the next look
	const {state, etaSeconds} = app.status ?? {},
		slow = document.hidden ? 3 : 1;
	if (state === 'CREATING') return slow * Math.min(8, Math.max(2, (etaSeconds ?? 60) / 20));
	return state === 'STOPPING' ? 4 : Math.min(20 * slow, Math.max(3, left('secondsLeft') + 1 || 60));
}
function plan(seconds = pace()) {
	clearTimeout(app.timer);
	app.timer = setTimeout(look, seconds * 1000);
}
async function look() {
	clearTimeout(app.timer);
	app.timer = 0;
	if (!app.ready) return setUp();
	const turn = ++app.turn; // the newest question counts
	let act;
	try {
		const status = await call(`${API}/status`);
		act = () => accept(status);
	} catch (e) {
		said(e);
		act = () => fail(e);
	}
	if (turn === app.turn) act();
	else if (!app.timer) plan();
}

// the state machine

const tabs = new BroadcastChannel('model');
tabs.onmessage = ({data}) => {
	app.newest = Math.max(app.newest, data);
	look();
};

function accept(status, mine = false) {
	// CloudFront keeps a status for two seconds. A much older one is from a clock that was set back.
	const behind = app.newest - status.at;
	if (!mine && behind > 0 && behind < 60) return plan(2);
	app.newest = status.at ?? 0;
	if (mine) {
		app.turn++;
		tabs.postMessage(app.newest);
		memory.write('newest', app.newest); // for a reload
	}
	const before = app.view,
		view = VIEWS[status.state];
	if (!view) return fail(new Problem('gateway', 'It answered with an unknown state.'));
	Object.assign(app, {status, view, at: Date.now(), failures: 0, retryAt: 0});
	show('trouble', false);
	if (view !== before) root.dataset.mood = 'calm';
	render(view, before);
	plan();
}

const WORDS = {
	// tab, title, lead
	asleep: () => [
		'Asleep',
		`${model()} is asleep`,
		`Tells you whether a review is positive or negative. ${
			standby()
				? 'The small model answers now. The large one is switched off to save money.'
				: 'It is switched off to save money: wake it, or try an example.'
		}`
	],
	waking: () => [
		'Waking up',
		`${model()} is waking up`,
		standby()
			? 'The small model answers meanwhile. You can close or reload this tab.'
			: 'You can close or reload this tab, and write a review meanwhile.'
	],
	awake: () => [
		'Awake',
		`${model()} is awake`,
		standing()
			? `It needs no start and never sleeps. Its owner pays per request. After a pause, the first answer can take ${alone() ? 'some seconds' : 'a minute'}.`
			: left('secondsLeft') > idle() + 5
				? 'Give it a review. Its owner keeps it awake at this time of day.'
				: longest() < idle()
					? `Give it a review. It sleeps in ${duration(longest())} at the latest, the limit of a run.`
					: `Give it a review. It stays up for ${duration(idle())} after the last one.`
	],
	stopping: () => [
		'Going to sleep',
		`${model()} is going to sleep`,
		standby()
			? 'The machine is being switched off. The small model answers now.'
			: 'The machine is being switched off. You can wake it again in a minute.'
	],
	failed: () => [
		'Failed',
		`${model()} has failed`,
		`It did not start, or it broke down. ${standby() ? 'The small model still answers.' : 'Your reviews are safe.'}`
	]
};
const standby = () => app.status?.standby; // what the small model takes; null: there is none
const alone = () => app.status?.endpoint === 'lambda'; // the small model is the only one
const standing = () => alone() || app.status.endpoint === 'serverless';
const small = () => (alone() || app.view !== 'awake' ? standby() : null); // the small model answers
const model = () => (standby() && !alone() ? 'The large model' : 'The model');
const idle = () => app.status.idleMinutes * 60; // seconds

function render(view, before) {
	const s = app.status,
		[tab, title, lead] = WORDS[view]();
	root.dataset.view = view;
	text('title', title);
	text('lead', lead);
	root.dataset.open = Boolean(view === 'awake' || standby());
	for (const part of document.querySelectorAll('[data-in]'))
		part.hidden = !part.dataset.in.includes(view) || (part.id === 'awake' && standing());
	if (standby()) show('compose', true);
	placeStart();
	text('sign-model', standby() && !alone() ? 'Large model' : 'Model');
	text('sign-state', tab);
	text('sign-version', s.modelVersion || '–');
	if (view !== before) {
		$('icon').href = $('icon').dataset[view === 'awake' ? 'awake' : 'asleep'];
		if (before !== 'loading') {
			announce(`${title}. ${(view === 'failed' && s.reason) || lead}`);
			if (before === 'waking') {
				news(title);
				checkPhone();
			}
			if (/^(waking|awake)$/.test(view)) {
				text('start-error', '');
				text('review-error', '');
			} else app.queued = false;
		}
	}
	if (view === 'failed') {
		text('failure-reason', s.reason || 'The service gave no reason.');
		text(
			'failure-money',
			`The machine is deleted. If AWS refuses, the service tries again.${number(s.costSoFar) ? ` This run cost its owner ${money(s.costSoFar)}.` : ''} You pay nothing.`
		);
	}
	if (/asleep|failed|waking/.test(view)) renderStart(view === 'waking');
	renderNotify();
	renderCompose();
	tick();
	if (view === 'awake' && app.queued) {
		app.queued = false;
		read();
	}
}

const toStart = () => $('offer-title').focus();
function placeStart() {
	// Trying comes first if the small model answers.
	const [compose, start] = [$('compose'), $('starting')];
	if (Boolean(standby()) !== (compose.nextElementSibling === start)) compose[standby() ? 'after' : 'before'](start);
}
function usually() {
	const {p50, p90, starts} = app.status.typicalSeconds;
	return !starts
		? `About ${duration(p50)}; no start was measured yet.`
		: `Usually ${duration(p50)}${starts > 4 && p90 > p50 * 1.1 ? `, nine in ten within ${duration(p90)}` : ''} (the last ${starts > 1 ? plural(starts, 'start') : 'start'}).`;
}
function gain() {
	const {modelVersion, textLimit, characterLimit, dailyTexts} = standby(),
		{most, batch} = limits();
	return `It reads lists of up to ${plural(batch, 'review')}, explains texts of up to ${big(most)} characters, and is faster. The small model reads ${plural(textLimit, 'review')} or ${big(characterLimit)} characters at once, and ${plural(dailyTexts, 'review')} a day for all visitors together.${
		modelVersion && modelVersion === app.status.modelVersion ? ' Here both run the same version of the model.' : ''
	}`;
}
function renderStart(waking) {
	const s = app.status,
		bar = $('progress');
	text('fact-time', usually());
	text(
		'fact-cost',
		`You pay nothing. Its owner pays ${number(s.pricePerHour) ? `${money(s.pricePerHour)} an hour` : 'by the hour'} while it is awake; asleep, cents to a few dollars a month.${s.savedThisMonth > 0 ? ` Sleep saved ${money(s.savedThisMonth)} this month.` : ''}`
	);
	text(
		'fact-idle',
		`${duration(idle())} after the last review, and ${duration(s.maxRunMinutes * 60)} after its start at the latest.`
	);
	show('offer', standby() && !waking);
	if (standby()) text('gain', gain());
	show('last-failure', app.view === 'asleep' && s.reason);
	text('last-failure', `The last start failed; you can try again. Why: ${s.reason}`);
	const by = app.provider;
	text(
		'consent-text',
		`Send me one message${by ? ` through ${by}` : ''} when it is ready, or if it fails. My number is deleted right after${by ? `; ${by} may keep a record` : ''}.`
	);
	text('start-title', waking ? 'Get a message when it is awake' : standby() ? 'Start it' : 'Wake it');
	$('start').dataset.label = waking ? 'Leave my number' : standby() ? 'Start the large model' : 'Wake the model';
	if (!app.starting) busy('start');
	if (!waking) return;
	show('longer', s.longerThanUsual);
	bar.setAttribute('aria-valuenow', Math.round(100 * wakingShare()));
	bar.setAttribute('aria-valuetext', toGo());
	text(
		'phase',
		`${s.reason ? `An earlier machine did not start: ${ended(s.reason)} Another one` : 'A machine'} (${s.instanceType}) is switched on, then the model is loaded and tested. ${usually()}`
	);
	text('waiting-people', s.subscribers > 0 ? `${plural(s.subscribers, 'person', 'people')} asked for a message.` : '');
}

// news in this browser

const notices = () => ('Notification' in window && isSecureContext && !app.mute ? Notification.permission : 'denied');
function notified(title) {
	// phones have them too, but throw
	try {
		new Notification(title, {icon: $('icon').href});
	} catch {
		app.mute = true;
	}
}
function renderNotify() {
	show('notify', notices() === 'default');
	text('notify-text', notices() === 'granted' ? 'This browser notifies you while this tab is open.' : '');
}
function news(title) {
	if (document.hidden && notices() === 'granted') notified(title);
}

// once a second

const since = () => (Date.now() - app.at) / 1000;
const left = (what) => (number(app.status?.[what]) ? Math.max(0, app.status[what] - since()) : NaN);
const spent = () =>
	app.status.costSoFar + ((app.status.pricePerHour || 0) * Math.min(since(), app.status.secondsLeft)) / 3600;
const elapsed = () => (app.status.elapsedSeconds ?? 0) + since();
const longest = () => Math.max(left('secondsLeft') || 0, app.status.maxRunMinutes * 60 - elapsed()); // or awake hours
const capped = () => left('secondsLeft') > longest() - 5; // its end cannot move
const toGo = () =>
	left('etaSeconds') > 1
		? `about ${duration(left('etaSeconds'))} to go`
		: app.status.longerThanUsual
			? 'longer than usual'
			: 'any moment now';
const wakingShare = () => Math.min(0.97, elapsed() / Math.max(1, elapsed() + (left('etaSeconds') || 0))); // never full before it is up
function placeSun(t) {
	// t: 0 rises, 1 sets
	const x = 180 - 150 * Math.cos(Math.PI * t),
		y = 296 - 128 * Math.sin(Math.PI * t);
	$('sun').setAttribute('transform', `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
}

function tick() {
	const s = app.status,
		view = app.view,
		price = s?.pricePerHour;
	if (app.retryAt)
		text(
			'retry-in',
			app.retryAt > Date.now() ? `Next try in ${Math.ceil((app.retryAt - Date.now()) / 1000)} s` : 'Trying …'
		);
	if (!s) return;
	let title = `${WORDS[view]()[0]} · ${NAME}`,
		soon = false;
	if (view === 'waking') {
		text('elapsed', clock(elapsed()));
		text('eta', toGo());
		$('progress-fill').style.transform = `scaleX(${wakingShare()})`;
		placeSun(0.3 * wakingShare());
	}
	if (view === 'awake' && !standing()) {
		const rest = left('secondsLeft');
		text('countdown', clock(rest));
		soon = rest <= WARN_SECONDS;
		text(
			'soon',
			`It falls asleep in less than two minutes${capped() ? ', because a run has a time limit. Then you can wake it again' : `. A review or “Keep it awake” gives it another ${duration(Math.min(idle(), longest()))}`}.`
		);
		show('soon', soon);
		show('extend', !capped());
		show('done', mine());
		show('done-hint', mine());
		if (soon) title = `${clock(rest)} left · ${NAME}`;
		if (soon && !app.warned) announce($('soon').textContent);
		app.warned = soon;
		placeSun(0.96 - 0.62 * Math.min(1, rest / idle()));
		if (number(s.costSoFar))
			text(
				'session-cost',
				`This session has cost its owner ${money(spent())} so far${number(price) ? `; a whole month would cost ${money(price * 730)}` : ''}.`
			);
	}
	if (standing()) placeSun(0.4);
	// If the focused control is gone, the heading takes over.
	if (!document.activeElement.getClientRects().length) $('title').focus();
	root.dataset.late = soon;
	text(
		'sign-cost',
		!/awake|waking|stopping/.test(view)
			? 'Next to nothing'
			: standing()
				? 'Per request'
				: number(price)
					? `${money(price)}/h`
					: '–'
	);
	if (document.title !== title) document.title = title;
}

// waking it

// As the API's tidy_phone. The digits of a script begin at …0 or …6.
const digit = (c) => {
	const n = c.codePointAt();
	return (/\p{Nd}/u.test(String.fromCodePoint(n | 15)) ? n - 6 : n) & 15;
};
const tidyPhone = (value) =>
	value
		.normalize('NFKC')
		.replace(/\p{Nd}/gu, digit)
		.replace(/[\p{Cf}\p{Pd}\p{Z}\t-\r()[\]./~·−]/gu, '')
		.replace(/^tel:/i, '')
		.replace(/^00/, '+');
const PHONE_FAULTS = [
	[/[^+\d]|.\+/, 'Use only digits and a leading +.'],
	[/^\+?0|^\d/, 'Begin with + and the country code, such as +1.'],
	[/^.{17}/, 'That is too long: 15 digits at most.'],
	[/^.{1,7}$/, 'A few digits are missing.']
];
const phoneFault = (phone) => PHONE_FAULTS.find(([pattern]) => pattern.test(phone))?.[1] ?? '';
function hint(message, kind = '') {
	text('phone-hint', message);
	$('phone-hint').className = `hint ${kind}`;
	$('phone').setAttribute('aria-invalid', kind === 'wrong');
}
function checkPhone(strict) {
	// the control to correct first, or null
	const p = tidyPhone($('phone').value),
		fault = app.refusal || (strict && !p && app.view === 'waking' ? 'Enter a number first.' : phoneFault(p));
	// An unfinished number is no mistake yet.
	if (fault && (strict || app.refusal || (!/missing/.test(fault) && p !== '+'))) hint(fault, 'wrong');
	else if (p && !fault) hint('Looks complete.', 'right');
	else hint('With country code, such as +1 or +44.');
	const consent = strict && p && !fault && !$('consent').checked;
	$('consent').setAttribute('aria-invalid', Boolean(consent));
	text('consent-hint', consent ? 'Please tick this, or remove the number.' : '');
	return fault ? $('phone') : consent ? $('consent') : null;
}

async function start(event) {
	event?.preventDefault();
	app.refusal = ''; // it may be accepted now
	const wrong = checkPhone(true);
	text('start-error', '');
	if (wrong) {
		app.queued = false;
		renderCompose();
		return wrong.focus();
	}
	if (app.starting) return;
	const name = $('name').value.trim(),
		phone = tidyPhone($('phone').value),
		before = app.view;
	app.starting = true;
	busy('start', 'Starting …');
	try {
		const status = await call(`${API}/start`, {
			method: 'POST',
			body: {...(name && {name}), ...(phone && {phone})},
			timeout: 40000
		});
		$('phone').value = '';
		$('consent').checked = false;
		if (status.sleepToken) keepRun({start: status.startedAt, token: status.sleepToken});
		accept(status, true);
		if (event && app.view !== before) $('title').focus();
		if (phone && app.view === 'waking') hint('Noted: you get one message.', 'right');
		else checkPhone();
	} catch (e) {
		const {title, reason} = said(e),
			refused = e.kind === 'refused';
		if (/phone|sms/.test(e.code)) {
			app.refusal = e.message;
			checkPhone(true);
			$('phone').focus();
		} else
			text(
				'start-error',
				refused
					? reason
					: /failed|model/.test(e.code)
						? `${reason} Nothing is charged.`
						: `${title}. ${reason} It may be starting anyway, so this page checks again. An unused model falls asleep.`
			);
		if (!refused) plan(3);
		app.queued = false;
	} finally {
		app.starting = false;
		busy('start');
		renderCompose();
	}
}
function busy(id, label) {
	// no label: done
	const button = $(id);
	button.dataset.label ??= button.textContent;
	button.setAttribute('aria-disabled', Boolean(label));
	button.textContent = label ?? button.dataset.label;
}

async function extend() {
	text('extend-error', '');
	busy('extend', 'Asking …');
	try {
		accept(await call(`${API}/extend`, {method: 'POST'}), true);
		announce(`It stays awake for another ${duration(left('secondsLeft'))}.`);
	} catch (e) {
		const {reason} = said(e);
		if (e.status === 409) look();
		else text('extend-error', reason);
	} finally {
		busy('extend');
	}
}

// Only who began a run can end it: the browser keeps the token that Start answered with.
function keepRun(run) {
	app.run = run;
	memory.write('run', run);
}
function mine() {
	const {start, token} = memory.read('run') ?? app.run ?? {};
	return start === app.status.startedAt && token; // another instance type changes the runId
}
async function sleep() {
	text('extend-error', '');
	busy('done', 'Ending …');
	try {
		const status = await call(`${API}/sleep`, {method: 'POST', body: {token: mine()}, timeout: 40000});
		keepRun(null);
		accept(status, true);
		$('title').focus();
	} catch (e) {
		const {reason} = said(e);
		if (e.code === 'wrong_token') keepRun(null);
		text('extend-error', e.code === 'wrong_token' ? 'Only the browser that started this run can end it.' : reason);
		look();
	} finally {
		busy('done');
		tick();
	}
}

// reviews

const limits = () => ({
	most: app.status?.textLimit || 10000,
	batch: (!alone() && app.status?.batchLimit) || 1000 // alone, the small model reads any list in parts
});
function reviews() {
	const all = $('review').value;
	return ($('lines').checked ? all.split('\n') : [all]).map((r) => r.trim()).filter(Boolean);
}
function composeFault(list) {
	const {most, batch} = limits(),
		long = list.findIndex((r) => characters(r) > most);
	if (list.length > batch) return `${plural(list.length, 'review')} are too many at once: ${big(batch)} at most.`;
	return long < 0
		? ''
		: `${list.length > 1 ? `Line ${long + 1}` : 'This'} is too long: ${big(most)} characters at most.`;
}
function tooMuch(list) {
	// why the small model cannot read these; empty: it can, or it need not
	const {textLimit, characterLimit, leftToday} = small() ?? {},
		total = list.reduce((sum, review) => sum + characters(review), 0);
	if (leftToday < list.length)
		return leftToday > 0
			? `The small model reads only ${plural(leftToday, 'more review')} today.`
			: 'The small model has read all the reviews that it may read today.';
	if (alone()) return '';
	if (list.length > textLimit) return `The small model reads ${plural(textLimit, 'review')} at once.`;
	return total > characterLimit ? `The small model reads ${big(characterLimit)} characters at once.` : '';
}
const INSTEAD = {
	asleep: 'Start the large model, and it reads this first.',
	failed: 'Start the large model, and it reads this first.',
	waking: 'The large model can read this as soon as it is awake.',
	stopping: 'You can start the large model in a minute.',
	awake: 'Come back after midnight UTC.' // there is no large model
};
function renderCompose() {
	const list = reviews(),
		box = $('answer'),
		{most, batch} = limits(),
		lines = $('lines').checked;
	const fault = composeFault(list),
		view = app.view,
		beyond = app.status ? tooMuch(list) : '',
		able = view === 'awake' || (standby() && !beyond);
	if (able && view !== 'awake') app.queued = false; // the small model reads it now
	text('beyond', beyond && `${beyond} ${INSTEAD[view]}`);
	show('beyond', beyond && !fault);
	show('to-start', able && /asleep|failed/.test(view));
	text('review-label', lines ? 'Your reviews, one per line' : 'Your review');
	text(
		'counter',
		lines
			? `${big(list.length)} of ${big(batch)} reviews`
			: `${big(characters($('review').value))} of ${big(most)} characters`
	);
	$('counter').classList.toggle('over', Boolean(fault));
	box.hidden = view !== 'awake' && !box.firstChild;
	if (fault || app.overLong) text('review-error', fault);
	app.overLong = Boolean(fault);
	if (!app.reading) {
		const button = $('read');
		button.textContent =
			able || view === 'stopping'
				? lines
					? 'Read them'
					: 'Read it'
				: app.queued
					? 'It will be read first'
					: view === 'waking'
						? 'Read it once it is awake'
						: standby()
							? 'Start the large model to read this'
							: 'Wake it to read this';
		button.setAttribute('aria-disabled', app.queued);
		button.className = able || standby() || view !== 'asleep' ? 'go' : 'quiet';
		text('read-hint', able ? 'or press Ctrl + Enter' : app.queued ? 'Your text is waiting.' : '');
	}
}

async function send(event) {
	event?.preventDefault();
	const list = reviews(),
		fault = composeFault(list);
	text('review-error', list.length ? fault : 'Write or paste a review first.');
	if (!list.length || fault) return $('review').focus();
	if (app.reading || app.queued) return;
	const beyond = app.status ? tooMuch(list) : '';
	if (!beyond && (app.view === 'awake' || standby())) return read();
	if (/awake|stopping/.test(app.view)) {
		announce($('beyond').textContent);
		return $('review').focus();
	}
	app.queued = true;
	renderCompose();
	if (app.view !== 'waking') await start();
	else announce($('read').textContent);
}

async function predict(inputs, more) {
	const reply = await call(`${API}/predict`, {
		method: 'POST',
		body: {inputs: inputs.length === 1 ? inputs[0] : inputs, ...more},
		timeout: 65000
	});
	if (reply.predictions?.length !== inputs.length) throw new Problem('gateway', 'Some answers are missing.');
	const s = app.status,
		by = reply.answeredBy;
	app.answered = Date.now();
	if (by === 'standby' && standby()) standby().leftToday -= inputs.length;
	if (by && (by === 'standby') !== Boolean(small())) plan(0); // the state has changed
	if (s?.state === 'IN_SERVICE' && by !== 'standby' && number(reply.secondsLeft)) {
		// the deadline has moved
		if (number(s.costSoFar)) s.costSoFar = spent();
		Object.assign(s, {shutdownAt: reply.shutdownAt, secondsLeft: reply.secondsLeft, elapsedSeconds: elapsed()});
		app.turn++;
		app.at = Date.now();
	}
	return reply;
}
async function patiently(inputs, tell, more) {
	// asks again while it is busy or wakes up
	const begun = Date.now(),
		loaded = begun - app.answered < 180000;
	for (let tries = 1; ; tries++) {
		try {
			return await predict(inputs, more);
		} catch (e) {
			said(e);
			const wait = e.wait || 2 ** tries * (0.8 + Math.random() * 0.4),
				waited = (Date.now() - begun) / 1000,
				cold = e.code === 'waking',
				waking = cold && !loaded;
			if (
				wait > 60 ||
				![429, 503].includes(e.status) ||
				!/^(busy|unavailable|waking)?$/.test(e.code) ||
				(!waking && tries > 4)
			)
				throw e;
			if (cold && loaded && tries > 1)
				throw new Problem('refused', 'The model did not answer in time. Send fewer or shorter texts.');
			if (waking && waited + wait > 180)
				throw new Problem('refused', 'The model did not wake up within 3 minutes. Try again later.');
			const why = waking ? 'It wakes up after a pause, which can take a minute' : 'It is busy';
			if (tries === 1) announce(`${why}. Your text is kept.`);
			tell(`${why}: next try in ${Math.ceil(wait)} s${waking ? `, after ${clock(waited)}` : ''}.`);
			await new Promise((go) => setTimeout(go, wait * 1000));
			tell(`${why}.`);
		}
	}
}
function next(list) {
	// the first reviews, as many as one call takes
	const {textLimit, characterLimit} = small() ?? {},
		most = Math.min(textLimit ?? CHUNK, limits().batch);
	let size = 0,
		total = 0;
	while (size < Math.min(most, list.length)) {
		total += characters(list[size]);
		if (size && total > characterLimit) break;
		size++;
	}
	return list.slice(0, size);
}
async function read() {
	const list = reviews(),
		bar = $('batch-progress');
	if (!list.length || composeFault(list)) return;
	// A list continues where it stopped, unless the model has changed.
	const key = [app.status.modelVersion, ...list].join('\n'),
		now = app.broken?.key === key ? app.broken : {key, found: [], latency: 0};
	const {found} = now,
		before = found.length;
	app.broken = null;
	app.reading = true;
	busy('read', 'Reading …');
	$('answer').setAttribute('aria-busy', true);
	bar.max = list.length;
	bar.value = before;
	bar.hidden = next(list).length === list.length;
	try {
		while (found.length < list.length) {
			const part = next(list.slice(found.length));
			const reply = await patiently(part, (why) => text('read-hint', why));
			text('read-hint', '');
			found.push(...reply.predictions.map((p, k) => ({...p, text: part[k], by: reply.answeredBy})));
			now.latency += reply.latencyMs || 0;
			now.version = reply.modelVersion;
			bar.value = found.length;
		}
	} catch (e) {
		app.broken = now;
		const {title, reason} = said(e),
			kept = `${found.length ? ` ${found.length} of ${list.length} were read, see below. Press again for the rest.` : ''} Your text is kept.`;
		text(
			'review-error',
			(e.status === 409 && !standby()
				? 'The model is no longer awake.'
				: e.kind === 'refused'
					? reason
					: `${title}. ${reason}`) + kept
		);
		if (e.code === 'standby_limit' && standby()) standby().leftToday = 0;
		if (e.status === 409) look();
	} finally {
		app.reading = false;
		busy('read');
		bar.hidden = true;
		$('answer').setAttribute('aria-busy', false);
		renderCompose();
		tick();
	}
	if (found.length) {
		answer(found, now);
		remember(found.slice(before), now.version);
	}
}

// answers

const BY = {standby: 'the small model', endpoint: 'the large model'};
const SIGNS = {POSITIVE: '▲', NEGATIVE: '▼', UNSURE: '◆'};
const kind = (p) => ((p.sure ?? p.score >= UNSURE) ? p.label : 'UNSURE');
const sign = (label) => SIGNS[label] || '●';
const count = (list, what) => list.filter((p) => kind(p) === what).length;
const tag = (p, more = '') =>
	el(
		'span.tag',
		{'data-label': kind(p)},
		`${sign(kind(p))} ${kind(p) === 'UNSURE' ? 'Not sure' : word(p.label)}${more}`
	);
const verdict = (p) => (kind(p) === 'UNSURE' ? `Not sure, leaning ${p.label.toLowerCase()}` : word(p.label));
const best = (scores) => {
	const [[label, score]] = Object.entries(scores).sort(([, x], [, y]) => y - x);
	return {label, score};
};
const button = (label, onclick, more = {}) => el('button.quiet', {type: 'button', onclick, ...more}, label);

function bars(scores) {
	return el(
		'dl.bars',
		...Object.entries(scores).map(([label, share]) => {
			const fill = el('span.fill', {'data-label': label});
			fill.style.transform = `scaleX(${Math.max(0.004, share)})`;
			return el(
				'div',
				el('dt', el('span', {'aria-hidden': true}, `${sign(label)} `), word(label)),
				el('dd.amount', percent(share)),
				el('dd.track', {'aria-hidden': true}, fill)
			);
		})
	);
}
function single(p) {
	return [
		p.explanation ? words(p) : el('blockquote.clamp', p.text),
		el(
			'p.verdict',
			{'data-label': kind(p)},
			el('span.sign-mark', {'aria-hidden': true}, sign(kind(p))),
			el('strong', verdict(p)),
			el('span.share', percent(p.score))
		),
		bars(p.scores || {[p.label]: p.score}),
		p.windows > 1
			? el('p.small', `A long review: the model read ${p.truncated ? 'its beginning' : 'it'} in ${p.windows} parts.`)
			: null
	];
}
function words(p) {
	// offsets count characters, not UTF-16 units
	const letters = [...p.text],
		say = (from, to) => letters.slice(from, to).join(''),
		weight = (w) => Math.abs(w.influence);
	const ranked = [...p.explanation].sort((x, y) => weight(y) - weight(x)),
		most = Math.max(...ranked.map(weight));
	const telling = ranked.filter((w) => weight(w) >= Math.max(0.01, most / 5)).slice(0, 10);
	const label = (w) => (w.influence > 0 ? 'POSITIVE' : 'NEGATIVE'),
		box = el('blockquote', {id: 'words', tabindex: -1});
	let end = 0;
	for (const w of [...telling].sort((x, y) => x.start - y.start)) {
		box.append(
			say(end, w.start),
			el(weight(w) > most / 2 ? 'mark.strong' : 'mark', {'data-label': label(w)}, say(w.start, w.end))
		);
		end = w.end;
	}
	box.append(say(end));
	const points = (w) => `${say(w.start, w.end)} ${w.influence > 0 ? '+' : '−'}${(weight(w) * 100).toFixed(0)}`;
	const side = (s) => {
		const found = telling.filter((w) => label(w) === s);
		return found[0] && el('p', el('b', `${sign(s)} For ${s.toLowerCase()}: `), found.map(points).join(', '));
	};
	return el(
		'div.why',
		box,
		side('POSITIVE'),
		side('NEGATIVE'),
		el(
			'p.small',
			telling.length
				? 'Points: how far “positive” falls (+) or rises (−) without the word.'
				: p.partial
					? ''
					: 'No single word decides: without any of them, the answer stays.',
			p.partial ? ` Time ran out: ${Math.floor(p.explained * 100)} % of the words were tried.` : ''
		)
	);
}
async function why({text: review}) {
	const asked = $('why'),
		here = () => asked.isConnected; // false: another answer is shown
	if (app.reading || asked.ariaDisabled === 'true') return;
	const most = small()?.explainLimit;
	if (characters(review) > most) {
		text(
			'tool-text',
			`The small model explains texts of up to ${big(most)} characters.${alone() ? '' : ' The large model explains longer ones. '}`
		);
		if (/asleep|failed/.test(app.view)) $('tool-text').append(button('Get the large model', toStart));
		return;
	}
	busy('why', 'Looking …');
	text('tool-text', '');
	try {
		const tell = (why) => {
			if (here()) text('tool-text', why);
		};
		const {
			predictions: [p],
			latencyMs: latency,
			modelVersion: version,
			answeredBy: by
		} = await patiently([review], tell, {explain: true});
		if (!Array.isArray(p.explanation)) throw new Problem('gateway', 'This model cannot explain its answers.');
		if (!here()) return;
		answer([{...p, text: review, by}], {latency, version}, true);
		$('words').focus();
	} catch (e) {
		const {reason} = said(e);
		if (here()) {
			busy('why');
			text('tool-text', reason);
		}
		if (e.status === 409) look();
	}
}
function several(list) {
	const sum = Object.keys(SIGNS)
		.filter((l) => count(list, l))
		.map((l) => `${count(list, l)} ${l === 'UNSURE' ? 'not sure' : l.toLowerCase()}`)
		.join(', ');
	const row = (cell, ...cells) => el('tr', ...cells.map((c) => el(cell, c)));
	return [
		el('p.verdict', el('strong', plural(list.length, 'review')), el('span.share', sum)),
		el(
			'div.scroll',
			{tabindex: 0, role: 'region', 'aria-label': 'Answers, one per review'},
			el(
				'table',
				el('thead', row('th', 'Review', 'Answer', 'Share')),
				el('tbody', ...list.map((p) => row('td', p.text, tag(p), percent(p.score))))
			)
		)
	];
}
function answer(list, facts, again = false) {
	// facts: latency, version, stored
	const {latency, version, stored} = facts,
		[p] = list,
		one = list.length === 1,
		box = $('answer');
	const names = new Set(list.map((each) => BY[each.by]).filter(Boolean)),
		by = standby() ? [...names].join(' and ') : '',
		label = stored ? `Stored: ${by || 'the model'} gave this answer earlier` : by && `Answered by ${by}`;
	const meta = [number(latency) && `${one ? '' : 'together '}${Math.round(latency)} ms`, version && `model ${version}`];
	const inputs = JSON.stringify(one ? p.text : list.map((r) => r.text));
	const tools = el(
		'p.row',
		one
			? p.explanation
				? null
				: button('Which words count?', () => why(p), {id: 'why'})
			: button('Download as CSV', () => download(list)),
		...Object.entries({link: linkTo(list), curl: asCurl(inputs), Python: asPython(inputs)}).map(([what, value]) =>
			button(`Copy ${what}`, () => copy(what, value))
		),
		el('span.small', {id: 'tool-text', role: 'status'})
	);
	box.replaceChildren(
		label ? el(stored ? 'p.stored' : 'p.by', label) : '',
		...(one ? single(p) : several(list)).filter(Boolean),
		el('p.small', {id: 'meta'}, meta.filter(Boolean).join(' · ')),
		tools
	);
	box.hidden = false;
	root.dataset.mood = ['sad', 'calm', 'glad'][1 + Math.sign(count(list, 'POSITIVE') - count(list, 'NEGATIVE'))];
	if (again) return;
	box.scrollIntoView({block: 'nearest'});
	announce(
		(one ? `${stored ? 'Stored: ' : ''}${verdict(p)}, ${percent(p.score)}` : `${plural(list.length, 'review')} read.`) +
			(label && !stored ? `. ${label}` : '')
	);
}

async function copy(what, value) {
	try {
		await navigator.clipboard.writeText(value);
		text('tool-text', `Copied: ${what}.`);
	} catch {
		text('tool-text', 'This browser does not allow copying.');
	}
}
// What follows # stays in the browser.
const linkTo = (list) =>
	`${location.href.split('#')[0]}#review${list[1] ? 's' : ''}=${encodeURIComponent(list.map((p) => p.text).join('\n'))}`;
const asCurl = (inputs) =>
	`curl '${API}/predict' -H 'content-type: application/json' -d '${`{"inputs": ${inputs}}`.replaceAll("'", "'\\''")}'`;
const asPython = (inputs) => `import json
from urllib.request import Request, urlopen
body = json.dumps({"inputs": ${inputs}}).encode()
print(json.load(urlopen(Request("${API}/predict", body, {"content-type": "application/json"}))))
`;
function download(list) {
	const cell = (v) => {
		const s = String(v);
		return `"${(/^[=+\-@\t\r]/.test(s) ? `'${s}` : s).replaceAll('"', '""')}"`;
	};
	const labels = Object.keys(list[0].scores);
	const rows = [
		['review', 'label', 'score', 'sure', ...labels],
		...list.map((p) => [
			p.text,
			p.label,
			p.score.toFixed(6),
			p.sure ?? '',
			...labels.map((l) => p.scores[l].toFixed(6))
		])
	];
	const url = URL.createObjectURL(
		new Blob(['\ufeff', rows.map((r) => r.map(cell).join(',')).join('\r\n'), '\r\n'], {type: 'text/csv'})
	);
	el('a', {href: url, download: 'sentiment.csv'}).click();
	setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// reviews from a file or a link

function table(csv, cuts) {
	// the first row determines which of `cuts` it uses
	csv = csv.replace(/\r+\n?/g, '\n');
	const first = csv.match(/^[^"\n]*("[^"]*"[^"\n]*)*/)[0].replace(/"[^"]*"/g, ''),
		count = (cut) => first.split(cut).length,
		rows = [[]];
	const cut = [...cuts].filter((c) => first.includes(c)).sort((x, y) => count(y) - count(x))[0] ?? '\0';
	for (const [, quoted, plain, end] of csv.matchAll(
		new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^${cut}\\n]*))(${cut}|\\n|$)`, 'g')
	)) {
		rows.at(-1).push((quoted?.replaceAll('""', '"') ?? plain).replace(/\s+/g, ' ').trim());
		if (end !== cut) rows.push([]);
	}
	return rows.filter((row) => row.some(Boolean));
}
async function take(file) {
	const no = (reason) => {
		text('review-error', reason);
		text('file-text', '');
	};
	if (file.size > 5e6) return no('This file is too large: 5 MB at most.');
	let csv, rows;
	try {
		csv = await file.text();
		rows = table(csv, /\.txt$/i.test(file.name) ? '\t' : ',;\t');
	} catch {
		return no('This file cannot be read.');
	}
	const head = rows[0] ?? [];
	const named = head.findIndex((cell) => /^(comment|content|feedback)s?$|(review|text|body)s?$/i.test(cell));
	const size = (i) => rows.reduce((sum, row) => sum + (row[i]?.length ?? 0), 0); // otherwise the longest column
	const column = named >= 0 ? named : [...head.keys()].sort((x, y) => size(y) - size(x))[0];
	const list = rows
		.slice(named >= 0 ? 1 : 0)
		.map((row) => row[column])
		.filter(Boolean);
	if (!list.length) return no('No reviews were found in this file.');
	const wide = rows.filter((row) => row.slice(head.length).some(Boolean)).length;
	put(list.join('\n'), true);
	text(
		'file-text',
		`${plural(list.length, 'review')} from ${file.name}, column ${column + 1}.${wide ? ` ${plural(wide, 'row has', 'rows have')} more cells than the first: quote text with commas.` : ''}${csv.includes('\ufffd') ? ' Some letters were lost: save the file as UTF-8.' : ''}`
	);
}
function takeLink() {
	let [, many, coded] = /^#review(s?)=(.*)$/.exec(location.hash) ?? [];
	if (coded == null) return;
	history.replaceState(null, '', location.pathname); // or a reload brings it back
	try {
		coded = decodeURIComponent(coded);
	} catch {
		coded = '';
	}
	if (!coded) return text('review-error', 'This link is incomplete.');
	const mine = [$('review').value, $('lines').checked];
	put(coded, Boolean(many), !mine[0]);
	if (mine[0])
		$('file-text').replaceChildren(
			'This came with the link. ',
			button('Back to my text', () => put(...mine))
		);
}

// what was asked before

function past() {
	const kept = memory.read('past');
	return Array.isArray(kept)
		? kept.filter((p) => [p?.text, p?.label].every((each) => typeof each === 'string') && number(p.score))
		: [];
}
function remember(list, version) {
	memory.write('past', [...list.map((p) => ({...p, version})).reverse(), ...past()].slice(0, KEPT));
	renderPast();
}
function renderPast() {
	const list = past();
	show('past', list.length);
	$('history').replaceChildren(
		...list.map((p) =>
			el(
				'li',
				el(
					'button.entry',
					{
						type: 'button',
						onclick: () => {
							put(p.text);
							answer([p], {version: p.version, stored: true});
						}
					},
					tag(p, ` ${percent(p.score)}`),
					el('span.clamp', p.text)
				)
			)
		)
	);
}
function put(value, lines = false, keep = true) {
	$('review').value = value;
	$('lines').checked = lines;
	text('review-error', '');
	text('file-text', '');
	renderCompose();
	if (keep) keepDraft();
}
function keepDraft() {
	memory.write('draft', {text: $('review').value, lines: $('lines').checked});
}

function renderExamples({examples, modelVersion: version}) {
	$('examples').replaceChildren(
		...examples.map((x) =>
			el(
				'li',
				el(
					'button.example',
					{
						type: 'button',
						onclick: () => {
							put(x.text);
							if (app.view === 'awake') send();
							else if (x.answer)
								answer(
									[
										{
											...x.answer,
											...best(x.answer.scores),
											text: x.text,
											explanation: x.answer.words?.map(([start, end, influence]) => ({start, end, influence}))
										}
									],
									{version, stored: true}
								);
							else {
								$('answer').replaceChildren();
								renderCompose();
								$('review').focus();
							}
						}
					},
					el('b', x.name),
					el('span', x.text)
				)
			)
		)
	);
}

// setting up

async function setUp() {
	let config;
	try {
		config = await call('config.json');
	} catch (e) {
		said(e);
		if (e.kind !== 'refused' && e.status !== 200) return fail(e);
		root.dataset.view = 'setup';
		text('title', 'This page is not set up');
		text('lead', 'Its config.json is missing or damaged. The notebook 06_website publishes both.');
		for (const id of ['state', 'cost', 'version']) text(`sign-${id}`, 'Unknown');
		document.title = `Not set up · ${NAME}`;
		return;
	}
	if (/^https?:/.test(config.inboxUrl)) {
		$('inbox').href = config.inboxUrl;
		show('inbox', true);
	}
	call('examples.json')
		.then(renderExamples)
		.catch(() => show('examples-box', false));
	if (config.version) text('version', `Engine ${config.version}.`);
	app.provider = config.provider;
	app.ready = true;
	look();
}

app.newest = memory.read('newest') ?? 0;
const draft = memory.read('draft');
if (typeof draft?.text === 'string') put(draft.text, draft.lines === true, false);
$('start-form').onsubmit = start;
$('phone').oninput = () => {
	app.refusal = '';
	checkPhone();
};
$('phone').onchange = () => checkPhone(phoneFault(tidyPhone($('phone').value)) !== '');
$('consent').onchange = () => checkPhone();
$('review-form').onsubmit = send;
$('review').oninput = () => {
	text('review-error', '');
	keepDraft();
	renderCompose();
};
$('lines').onchange = () => {
	keepDraft();
	renderCompose();
};
$('file').onchange = () => {
	const [file] = $('file').files;
	$('file').value = '';
	if (file) take(file);
}; // or the same file changes nothing
$('review').onkeydown = (e) => {
	if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) send(e);
};
$('extend').onclick = extend;
$('done').onclick = sleep;
$('to-start').onclick = toStart;
$('retry').onclick = () => {
	text('retry-in', 'Trying …');
	look();
};
$('notify').onclick = async () => {
	await Notification.requestPermission();
	renderNotify();
};
$('forget').onclick = () => {
	memory.write('past', []);
	renderPast();
	$('answer').replaceChildren();
	put('');
	$('title').focus();
};
Object.assign(window, {
	onstorage(e) {
		if (e.key === 'past') renderPast();
	},
	ononline: look,
	onoffline() {
		fail(new Problem('offline'));
	},
	onhashchange: takeLink,
	ondragover(e) {
		if (e.dataTransfer.types.includes('Files')) e.preventDefault();
	},
	ondrop(e) {
		const [file] = e.dataTransfer.files;
		if (file) {
			e.preventDefault();
			take(file);
		}
	}
});
document.onvisibilitychange = () => {
	if (!document.hidden && Date.now() - app.at > 3000) look();
};
setInterval(tick, 1000);
if (notices() === 'default') notified(NAME); // does the browser allow it?
checkPhone();
renderPast();
takeLink();
setUp();

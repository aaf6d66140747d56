"""The page for developers: the functions of the public page, with the raw JSON of every call.

    streamlit run website/app.py

The API's address comes from SENTIMENT_API_URL, from the config.json of the page at SENTIMENT_SITE_ORIGIN, or from the
field in the sidebar. The address of the local inbox comes from SENTIMENT_INBOX_URL or from the second field.
"""

import json
import math
import os
import random
import re
import shlex
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import pandas as pd
import streamlit as st

from sentiment_engine import __version__

KEPT = 50  # calls that the log keeps
CHUNK = 50  # reviews in one call, so that a long list shows its progress
EXPLAINED = 10  # reviews that the API explains per call
TRIES = 4  # attempts per part of a long list, while the API is busy
WAKE_SECONDS = 180  # wait for a serverless model
LOADED_SECONDS = 180  # after an answer, while a serverless model is still loaded
MONTH_HOURS = 730
BY = {"standby": "the small model", "endpoint": "the large model"}
NAMED = re.compile(r"^(comment|content|feedback)s?$|(review|text|body)s?$", re.IGNORECASE)  # names of a review column
MEANING = {
    "STOPPED": "asleep: no machine is running",
    "CREATING": "waking up: a machine starts and loads the model",
    "IN_SERVICE": "awake: it answers",
    "STOPPING": "going to sleep: the machine is being switched off",
    "FAILED": "it did not wake up, or it broke down while it was awake",
}


@dataclass
class Call:
    "One request to the API, and its answer."

    method: str
    path: str
    sent: object = None
    code: int = 0  # HTTP status; 0: no answer
    reply: object = None
    problem: str = ""  # why the answer is unusable, and what to do
    milliseconds: int = 0
    at: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))

    @property
    def well(self) -> bool:
        return not self.problem


def advice(code: int, reply: object) -> str:
    "Explain an answer without success."
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    if code == 429:
        return "Too many requests right now. Try again in a minute."
    return f"The API answered with HTTP {code} and no explanation. Is this the address of the API?"


def fetch(method: str, url: str, **more) -> httpx.Response:
    "Send a request, without a proxy if it stays on this machine."
    here = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    return httpx.request(method, url, trust_env=not here, **more)


def request(api: str, method: str, path: str, sent: object = None) -> Call:
    "Call the API. Raises nothing: `problem` describes any error."
    call, start = Call(method, path, sent), time.perf_counter()
    try:
        answer = fetch(method, api.rstrip("/") + path, json=sent, timeout=70)
        call.code = answer.status_code
        try:
            call.reply = answer.json()
        except ValueError:
            call.reply = answer.text[:2000]
        if call.code >= 300 or not isinstance(call.reply, dict):
            call.problem = advice(call.code, call.reply)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        why = f"{type(e).__name__}: {e}"
        call.problem = f"The API at {api} cannot be reached ({why}). Is the address right, and is the API running?"
    call.milliseconds = round((time.perf_counter() - start) * 1000)
    return call


def ask(method: str, path: str, sent: object = None) -> Call:
    "Call the API and log the call."
    call = request(st.session_state.api, method, path, sent)
    st.session_state.calls = [call, *st.session_state.calls][:KEPT]
    return call


def look() -> dict | None:
    "Request the status, and record a change of state. Returns None without an answer."
    call = ask("GET", "/status")
    if not call.well or call.reply.get("state") not in MEANING:
        st.error(call.problem or "This address is not that of the API: its /status has no known state.")
        return None
    states = st.session_state.states
    if not states or states[0]["state"] != call.reply["state"]:
        since, run = call.reply.get("since"), call.reply.get("runId")
        states.insert(0, {"seen": call.at, "state": call.reply["state"], "since": since, "run": run})
    return call.reply


def clock(seconds: float | None) -> str:
    "Write seconds as minutes and seconds."
    return "–" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def needs_no_start(status: dict) -> bool:
    "Return whether the model is always in service."
    return status.get("endpoint") in ("serverless", "lambda")


def show_small(small: dict, alone: bool):  # alone: there is no large model
    "Show what the small model takes."
    when, more = ("", "") if alone else (" while no endpoint does", " The large model takes long lists, and is faster.")
    st.caption(
        f"The small model answers{when}. It takes {small['textLimit']} reviews or {small['characterLimit']:,} "
        f"characters at once, explains up to {small['explainLimit']:,} characters, and takes {small['leftToday']:,} "
        f"more reviews today.{more}"
    )


def show_state(status: dict):
    "Show the state, its times and its costs."
    state = status["state"]
    st.subheader(f"{state.replace('_', ' ').capitalize()}: {MEANING[state]}")
    waking = state == "CREATING"
    price, cost, typical = status.get("pricePerHour"), status.get("costSoFar"), status.get("typicalSeconds") or {}
    columns = st.columns(4)
    columns[0].metric("Expected start" if not waking else "To go", clock(status.get("etaSeconds")))
    columns[1].metric("Until it sleeps", clock(status.get("secondsLeft")))
    columns[2].metric("Cost of this run", "–" if cost is None else f"${cost:.4f}")
    columns[3].metric("Price an hour", "–" if price is None else f"${price:.3f}")
    if needs_no_start(status):
        st.caption(f"{status['endpoint'].capitalize()}: it needs no start, costs money per request and never sleeps.")
    if status.get("standby"):
        show_small(status["standby"], alone=status.get("endpoint") == "lambda")
    st.caption(
        f"run {status.get('runId') or '–'} · {status.get('instanceType') or '–'} · "
        f"model {status.get('modelVersion') or '–'} · {status.get('subscribers', 0)} waiting for an SMS · "
        f"estimate from the last {typical.get('starts') or 0} starts"
    )
    spent, saved, budget = (status.get(name) for name in ("spentThisMonth", "savedThisMonth", "monthlyBudget"))
    if spent is not None and budget is not None:
        asleep = "" if saved is None else f", saved ${saved:,.2f} by sleeping"
        st.caption(f"this month: spent ${spent:,.2f} of ${budget:,.2f}{asleep}")
    if status.get("longerThanUsual"):
        st.warning("This start takes longer than usual.")
    if status.get("reason"):
        st.warning(f"Last failure: {status['reason']}")


def tell(kind: str, message: str):
    "Keep a message (info or error) until the page is next drawn."
    st.session_state.told.append((kind, message))


def begin():
    "Wake the model, or join the waiting list. Runs before the page is drawn, like every callback."
    given = {name: st.session_state[name].strip() for name in ("name", "phone")}
    call = ask("POST", "/start", {name: value for name, value in given.items() if value})
    if call.well:
        tell("info", f"Outcome: {call.reply.get('outcome')}")
        if token := call.reply.get("sleepToken"):
            st.session_state.run = {"start": call.reply["startedAt"], "token": token}
    else:
        tell("error", call.problem)


def end():
    "End the run that this session has started."
    call = ask("POST", "/sleep", {"token": st.session_state.run["token"]})
    if call.well:
        tell("info", f"Outcome: {call.reply.get('outcome')}")
    else:
        tell("error", call.problem)


def start_form(status: dict):
    "Offer to wake the model, or to join the waiting list."
    with st.form("start"):
        st.text_input("First name", max_chars=80, key="name", help="Optional; greets you in the SMS.")
        st.text_input("Mobile number", key="phone", help="Optional; with country code, such as +1 202 555 0123.")
        st.caption(
            "Your number gets one message, when the model is ready or has failed, and is deleted right after. "
            "The SMS provider may keep a record."
        )
        wake = "Start the large model" if status.get("standby") else "Wake the model"
        label = wake if status["state"] != "CREATING" else "Join the waiting list"
        st.form_submit_button(label, type="primary", on_click=begin)


def reviews_in(text: str, one_a_line: bool) -> list[str]:
    "Split typed text into reviews, without blank ones."
    parts = text.splitlines() if one_a_line else [text]
    return [part.strip() for part in parts if part.strip()]


def rows_of(text: str, cuts: str) -> list[list[str]]:
    "Read the cells of a table as the public page does: the first row decides which of `cuts` applies, if any."
    text = re.sub(r"\r+\n?", "\n", text)
    first = re.sub(r'"[^"]*"', "", re.match(r'[^"\n]*(?:"[^"]*"[^"\n]*)*', text)[0])
    cut = max((each for each in cuts if each in first), key=first.count, default="\0")
    rows: list[list[str]] = [[]]
    for quoted, plain, end in re.findall(rf'(?:"([^"]*(?:""[^"]*)*)"|([^{cut}\n]*))({cut}|\n|\Z)', text):
        rows[-1].append(" ".join((quoted.replace('""', '"') or plain).split()))
        if end != cut:
            rows.append([])
    return [row for row in rows if any(row)]


def column_in(rows: list[list[str]], column: str) -> tuple[int, int]:  # its index, and the first row with a review
    "Find the column of the reviews: by its name, or else the wordiest. Raises ValueError."
    head = rows[0]
    if column and column not in head:
        raise ValueError(f"The file has no column {column}; it has {', '.join(head)}.")
    if column:
        return head.index(column), 1
    if named := [i for i, cell in enumerate(head) if NAMED.search(cell)]:
        return named[0], 1
    return max(range(len(head)), key=lambda i: sum(len(row[i]) for row in rows if i < len(row))), 0


def reviews_of(
    raw: bytes,  # a table, or text with a review a line
    column: str,  # empty: chosen by name or length
    cuts: str = ",;\t",  # possible separators
) -> tuple[list[str], int]:  # the reviews, and how many rows are wider than the first
    "Read reviews from a file. Raises ValueError with the file's fault."
    try:
        rows = rows_of(raw.decode("utf-8-sig"), cuts)
    except UnicodeDecodeError as e:
        raise ValueError(f"The file is not in UTF-8 ({e}). Save it as UTF-8.") from None
    index, first = column_in(rows, column) if rows else (0, 0)
    reviews = [row[index] for row in rows[first:] if index < len(row) and row[index]]
    if not reviews:
        raise ValueError("No reviews were found in this file.")
    return reviews, sum(any(row[len(rows[0]) :]) for row in rows)


def row_of(review: str, prediction: dict) -> dict:
    "Return an answer as a row."
    told = {name: prediction.get(name) for name in ("label", "score", "sure", "windows", "truncated", "tokens")}
    words = sorted(prediction.get("explanation") or [], key=lambda word: -abs(word["influence"]))[:5]
    why = {"why": ", ".join(f"{w['text']} {w['influence']:+.2f}" for w in words)} if "explanation" in prediction else {}
    return {"review": review} | told | why | prediction["scores"]


def show_words(explanation: list[dict]):
    "Show the influence of each word on the answer."
    table = pd.DataFrame(explanation)[["text", "influence", "start", "end"]]
    table.insert(1, "supports", ["POSITIVE" if each > 0 else "NEGATIVE" for each in table["influence"]])
    st.dataframe(table, hide_index=True)
    st.caption("Influence: how far the share of POSITIVE falls when the model reads the review without the word.")


def harmless(cell: object) -> object:
    "Return a cell that a spreadsheet does not read as a formula."
    return f"'{cell}" if isinstance(cell, str) and re.match(r"[=+\-@\t\r]", cell) else cell


def show_answers(answered: dict):
    "Show the answers to the last reviews."
    predictions = answered["predictions"]
    table = pd.DataFrame(map(row_of, answered["reviews"], predictions))
    if len(table) == 1:
        (one,) = predictions
        st.metric(f"{one['label']}, not sure" if one.get("sure") is False else one["label"], f"{one['score']:.1%}")
        for label, share in one["scores"].items():
            st.progress(float(share), text=f"{label} {share:.1%}")
        if one.get("explanation"):
            show_words(one["explanation"])
    else:
        st.dataframe(table, hide_index=True)
        st.download_button("Download as CSV", table.map(harmless).to_csv(index=False), "sentiment.csv", "text/csv")
    if any(one.get("partial") for one in predictions):
        tried = sum(one.get("explained", 1) for one in predictions) / len(predictions)
        st.info(f"Time ran out: {math.floor(tried * 100)} % of the words were tried.")
    by = "".join(f" · answered by {each}" for each in sorted(answered["by"]))
    st.caption(f"{answered['latencyMs']} ms · model {answered['modelVersion'] or '–'}{by}")


def error_of(call: Call) -> dict:  # code, message and more; empty without an error of this API
    "Return the error in an answer."
    error = call.reply.get("error") if isinstance(call.reply, dict) else None
    return error if isinstance(error, dict) else {}


def ask_patiently(sent: dict) -> Call:
    "Ask the model, and retry while the API is busy or a serverless model wakes up."
    tries, waited, hint, given = 0, 0.0, st.empty(), st.session_state
    loaded = time.monotonic() - given.answered_at < LOADED_SECONDS
    while True:
        call, tries = ask("POST", "/predict", sent), tries + 1
        error, waited = error_of(call), waited + call.milliseconds / 1000
        if call.code == 503 and error.get("code") == "waking":
            pause = float(error.get("retryAfterSeconds") or 5)
            if loaded and tries > 1:
                call.problem = "The model did not answer in time. Send fewer or shorter texts."
                break
            if waited + pause > WAKE_SECONDS:
                call.problem = f"The model did not wake up within {WAKE_SECONDS // 60} minutes. Try again later."
                break
            hint.info(f"{'The model is busy.' if loaded else call.problem} Waiting for {clock(waited)}.")
        elif call.code in (429, 503) and error.get("code") in (None, "busy", "unavailable") and tries < TRIES:
            pause = 2**tries * random.uniform(0.4, 0.6)
        else:
            break
        time.sleep(pause)
        waited += pause
    hint.empty()
    if call.well:
        given.answered_at = time.monotonic()
    return call


def predict(reviews: list[str], explain: bool) -> dict | None:
    "Ask the model about a few reviews at a time. Returns None without any answer."
    size, status = EXPLAINED if explain else CHUNK, st.session_state.status or {}
    if status.get("endpoint") == "lambda" and status.get("standby"):
        size = min(size, status["standby"]["textLimit"])
    bar = st.progress(0.0, text="Reading") if len(reviews) > size else None
    answered = {"reviews": [], "predictions": [], "latencyMs": 0, "modelVersion": None, "by": set()}
    for start in range(0, len(reviews), size):
        part = reviews[start : start + size]
        call = ask_patiently({"inputs": part[0] if len(part) == 1 else part} | ({"explain": True} if explain else {}))
        if not call.well:
            tell("error", f"{call.problem} {start} of {len(reviews)} were read." if start else call.problem)
            break
        answered["reviews"] += part
        answered["predictions"] += call.reply["predictions"]
        answered["latencyMs"] += call.reply["latencyMs"]
        answered["modelVersion"] = call.reply["modelVersion"]
        if by := BY.get(call.reply.get("answeredBy")):
            answered["by"].add(by)
        if bar:
            bar.progress(len(answered["predictions"]) / len(reviews), text="Reading")
    return answered if answered["reviews"] else None


def reviews_from(file, column: str) -> list[str]:  # file: from Streamlit
    "Read reviews from a file, and warn if commas may have split some. Raises ValueError."
    reviews, wide = reviews_of(file.getvalue(), column, "\t" if file.name.lower().endswith(".txt") else ",;\t")
    if wide:
        tell("warning", f"{wide} rows have more cells than the first: put quotes around text with commas.")
    return reviews


def read():
    "Ask the model about the typed reviews or about those in the file."
    given = st.session_state
    try:
        reviews = (
            reviews_from(given.table, given.column.strip()) if given.table else reviews_in(given.text, given.lines)
        )
    except ValueError as e:
        return tell("error", str(e))
    if not reviews:
        return tell("error", "Write or paste a review first, or choose a file.")
    if answered := predict(reviews, given.explain):
        given.answered = answered
        given.past = [answered, *given.past][:KEPT]


def examples() -> dict[str, str]:  # name → text
    "Read the example reviews of the public page."
    path = Path(__file__).with_name("examples.json")
    return {each["name"]: each["text"] for each in json.loads(path.read_text(encoding="utf-8"))["examples"]}


def take_example():
    "Put the chosen example into the text area."
    if chosen := st.session_state.example:
        st.session_state.text, st.session_state.lines = examples()[chosen], False


def read_form(status: dict):
    "Accept reviews and show the answers."
    limit, batch = status.get("textLimit", 10_000), status.get("batchLimit", 1_000)
    st.selectbox("Example", list(examples()), index=None, key="example", on_change=take_example)
    with st.form("read"):
        st.text_area("Reviews", key="text", height=160, help=f"{limit:,} characters per review.")
        st.checkbox("One review per line", key="lines", help=f"{batch:,} at a time.")
        st.file_uploader(
            "Or a CSV file", ["csv", "tsv", "txt"], key="table", help="In UTF-8; its first line may name the columns."
        )
        st.text_input(
            "Its column", key="column", help="Empty: the column named review or text, or the one with the most text."
        )
        st.checkbox(
            "Show which words count", key="explain", help="Takes longer: the model reads each review many times."
        )
        st.form_submit_button("Read", type="primary", on_click=read)
    if answered := st.session_state.answered:
        show_answers(answered)


def extend():
    "Move the deadline."
    call = ask("POST", "/extend")
    if call.well:
        tell("info", f"It sleeps at {call.reply.get('shutdownAt')}")
    else:
        tell("error", call.problem)


def as_curl(call: Call) -> str:
    "Return a call as a shell command."
    url, sent = st.session_state.api.rstrip("/") + call.path, json.dumps(call.sent, ensure_ascii=False)
    body = f" -H 'content-type: application/json' -d {shlex.quote(sent)}" if call.sent is not None else ""
    return f"curl -X {call.method} {shlex.quote(url)}{body}"


def as_python(call: Call) -> str:
    "Return a call as a Python program."
    url, more = st.session_state.api.rstrip("/") + call.path, "" if call.sent is None else f", json={call.sent!r}"
    return f"import httpx\n\nprint(httpx.request({call.method!r}, {url!r}{more}, timeout=70).json())"


def show_calls():
    "Show the raw JSON of each call, and how to repeat it."
    for call in st.session_state.calls:
        title = f"{call.at} · {call.method} {call.path} · {call.code or 'no answer'} · {call.milliseconds} ms"
        with st.expander(title):
            st.code(json.dumps(asdict(call), indent=1, ensure_ascii=False), language="json")
            st.code(as_curl(call), language="shell")
            st.code(as_python(call), language="python")


def show_past():
    "Show the answers of this session."
    rows = [row_of(*each) for a in st.session_state.past for each in zip(a["reviews"], a["predictions"], strict=True)]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def show_inbox():
    "Show the text messages that the local cloud stores instead of sending."
    address = st.session_state.inbox.strip().rstrip("/")
    if not address:
        return st.caption("Only the local cloud has an inbox. Enter its address in the sidebar.")
    try:
        messages = fetch("GET", f"{address}.json", timeout=10).raise_for_status().json()
        st.dataframe(pd.DataFrame(messages), hide_index=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:
        st.error(f"There is no inbox at {address} ({type(e).__name__}).")
    return st.caption("These messages were not sent to a phone.")


def show_costs(status: dict):
    "Show the price, the costs so far and an estimate."
    price, spent, budget = (status.get(name) for name in ("pricePerHour", "spentThisMonth", "monthlyBudget"))
    if price is None:
        return st.caption("The price of this instance type is not known.")
    columns = st.columns(4)
    columns[0].metric("This run", f"${status.get('costSoFar') or 0:.4f}")
    columns[1].metric("This month", f"${spent or 0:,.4f}")
    columns[2].metric("Saved by sleeping", f"${status.get('savedThisMonth') or 0:,.2f}")
    columns[3].metric("Awake all month", f"${price * MONTH_HOURS:,.2f}")
    if budget:
        st.progress(min(1.0, (spent or 0) / budget), text=f"${spent or 0:,.2f} of ${budget:,.2f}, the month's budget")
    sessions = st.slider("Sessions a month", 1, 1000, 50, key="sessions")
    minutes = st.slider("Minutes of use in each", 1, 120, 10, key="minutes")
    typical = (status.get("typicalSeconds") or {}).get("p50") or 0
    hours = sessions * (minutes + status.get("idleMinutes", 30) + typical / 60) / 60
    st.metric("Cost of such a month", f"${min(hours, MONTH_HOURS) * price:,.2f}")
    return st.caption(
        f"Instance time only, from Start to sleep: {typical / 60:.1f} minutes to wake, {minutes} of use, "
        f"{status.get('idleMinutes', 30):g} until it sleeps. Sessions that overlap cost less."
    )


def show_log():
    "Show the calls, states, answers, inbox and costs."
    calls, states, past, inbox, costs = st.tabs(["Calls", "States", "Answers", "Inbox", "Costs"])
    with calls:
        show_calls()
    with states:
        st.dataframe(pd.DataFrame(st.session_state.states), hide_index=True)
    with past:
        show_past()
    with inbox:
        show_inbox()
    with costs:
        if st.session_state.status:
            show_costs(st.session_state.status)


def published() -> dict:  # config.json; empty if there is none
    "Read the configuration of the published page."
    site = os.environ.get("SENTIMENT_SITE_ORIGIN", "").rstrip("/")
    try:
        config = fetch("GET", f"{site}/config.json", timeout=5).raise_for_status().json() if site else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def addresses() -> dict[str, str]:
    "Return the addresses of the API and the inbox from the environment."
    api, inbox = os.environ.get("SENTIMENT_API_URL"), os.environ.get("SENTIMENT_INBOX_URL")
    config = published() if not api else {}
    at_page = f"{os.environ.get('SENTIMENT_SITE_ORIGIN', '').rstrip('/')}/api" if config else ""
    return {"api": api or at_page, "inbox": inbox or str(config.get("inboxUrl", ""))}


def sidebar() -> bool:  # whether the page refreshes itself
    "Accept the addresses."
    with st.sidebar:
        st.text_input("Address of the API", key="api", placeholder="https://….cloudfront.net/api")
        st.caption("From SENTIMENT_API_URL if it is set; otherwise the address of the page, followed by /api.")
        st.text_input("Address of the local inbox", key="inbox", placeholder="http://127.0.0.1:4566/_local/inbox")
        st.button("Refresh", key="again")
        st.caption(f"Engine {__version__}")
        return st.toggle("Refresh automatically", key="live", value=False, help="Every three seconds.")


def panel(status: dict):
    "Show the state and its actions."
    show_state(status)
    awake = status["state"] == "IN_SERVICE"
    if awake and not needs_no_start(status):
        st.button("Keep it awake", key="extend", on_click=extend)
        if st.session_state.run.get("start", "") == status.get("startedAt"):
            st.button("I am done", key="end", on_click=end, help="Ends the run that you started, for everyone.")
    if awake or status.get("standby"):
        read_form(status)
    if status["state"] in ("STOPPED", "FAILED", "CREATING"):
        start_form(status)


def body():
    "Draw everything that a press or a refresh may change; Streamlit redraws only this part."
    for kind, message in st.session_state.told:
        getattr(st, kind)(message)
    st.session_state.told = []
    st.session_state.status = status = look()
    if status:
        panel(status)
    show_log()


def main():
    "Draw the page."
    st.set_page_config("Sentiment engine, for developers", "🌙", layout="wide")
    if "calls" not in st.session_state:
        empty = {"calls": [], "states": [], "told": [], "past": [], "answered": None, "status": None}
        empty["run"] = {}  # that this session has started: id, token
        empty["answered_at"] = float("-inf")
        st.session_state.update(empty | addresses())
    st.title("Sentiment engine, for developers")
    live = sidebar()
    if not st.session_state.api.strip():
        st.info("Set SENTIMENT_API_URL, or enter the address of the API in the sidebar.")
        return
    st.fragment(body, run_every=3 if live else None)()


main()

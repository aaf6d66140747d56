"""The developer's page: the abilities of the public page, with the raw JSON of every call beside it.

    streamlit run website/app.py

The API's address comes from SENTIMENT_API_URL, from the config.json of the page at SENTIMENT_SITE_ORIGIN, or from the
field in the sidebar; that of the local inbox from SENTIMENT_INBOX_URL or from the field below.
"""

import io
import json
import os
import shlex
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import pandas as pd
import streamlit as st

KEPT = 50  # calls that the log remembers
CHUNK = 50  # reviews in one call, so that a long list shows its progress
EXPLAINED = 10  # reviews that the API explains at a time
MONTH_HOURS = 730
MEANING = {
    "STOPPED": "asleep: it costs nothing",
    "CREATING": "waking up: a machine is found and the model is loaded",
    "IN_SERVICE": "awake: it answers",
    "STOPPING": "going to sleep: the machine is being switched off",
    "FAILED": "did not wake up",
}


@dataclass
class Call:
    "One request to the API and what came back."

    method: str
    path: str
    sent: object = None
    code: int = 0  # HTTP status; 0: no answer
    reply: object = None
    problem: str = ""  # why there is no usable answer, and what to do
    milliseconds: int = 0
    at: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))

    @property
    def well(self) -> bool:
        return not self.problem


def advice(code: int, reply: object) -> str:
    "Say what an answer that is no success means."
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    if code == 429:
        return "The API asks for patience: it gets more requests than it takes. Try again in a minute."
    return f"The API answered with HTTP {code} and no explanation. Is this the address of the API, without a path?"


def request(api: str, method: str, path: str, sent: object = None) -> Call:
    "Call the API. Whatever goes wrong is in `problem`; nothing is raised."
    call, start = Call(method, path, sent), time.perf_counter()
    try:
        answer = httpx.request(method, api.rstrip("/") + path, json=sent, timeout=70)
        call.code = answer.status_code
        try:
            call.reply = answer.json()
        except ValueError:
            call.reply = answer.text[:2000]
        if call.code >= 300 or not isinstance(call.reply, dict):
            call.problem = advice(call.code, call.reply)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        call.problem = (
            f"The API at {api} cannot be reached ({type(e).__name__}: {e}). Is the address right, and is it up?"
        )
    call.milliseconds = round((time.perf_counter() - start) * 1000)
    return call


def ask(method: str, path: str, sent: object = None) -> Call:
    "Call the API and write the call into the log."
    call = request(st.session_state.api, method, path, sent)
    st.session_state.calls = [call, *st.session_state.calls][:KEPT]
    return call


def look() -> dict | None:
    "Ask for the status, and note when the state has changed. None if there is no answer."
    call = ask("GET", "/status")
    if not call.well or call.reply.get("state") not in MEANING:
        st.error(call.problem or "What answers there is not this API: its /status names no state that is known.")
        return None
    states = st.session_state.states
    if not states or states[0]["state"] != call.reply["state"]:
        since, run = call.reply.get("since"), call.reply.get("runId")
        states.insert(0, {"seen": call.at, "state": call.reply["state"], "since": since, "run": run})
    return call.reply


def clock(seconds: float | None) -> str:
    "Write seconds as minutes and seconds."
    return "–" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def show_state(status: dict):
    "Show the state and what depends on it."
    state = status["state"]
    st.subheader(f"{state.replace('_', ' ').capitalize()}: {MEANING[state]}")
    waking = state == "CREATING"
    price, cost, typical = status.get("pricePerHour"), status.get("costSoFar"), status.get("typicalSeconds") or {}
    columns = st.columns(4)
    columns[0].metric("Expected start" if not waking else "To go", clock(status.get("etaSeconds")))
    columns[1].metric("Until it sleeps", clock(status.get("secondsLeft")))
    columns[2].metric("Cost of this run", "–" if cost is None else f"${cost:.4f}")
    columns[3].metric("Price an hour", "–" if price is None else f"${price:.3f}")
    st.caption(
        f"run {status.get('runId') or '–'} · {status.get('instanceType') or '–'} · "
        f"model {status.get('modelVersion') or '–'} · {status.get('subscribers', 0)} waiting for an SMS · "
        f"{typical.get('starts') or 0} starts so far"
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
    "Keep a message (info or error) for the next drawing of the page."
    st.session_state.told.append((kind, message))


def begin():
    "Wake the model, or join those who wait. Runs before the page is drawn, as every answer to a press does."
    given = {name: st.session_state[name].strip() for name in ("name", "phone")}
    call = ask("POST", "/start", {name: value for name, value in given.items() if value})
    if call.well:
        tell("info", f"Outcome: {call.reply.get('outcome')}")
    else:
        tell("error", call.problem)


def start_form(status: dict):
    "Offer to wake the model, or to join those who wait."
    with st.form("start"):
        st.text_input("First name", max_chars=80, key="name", help="Optional; greets you in the SMS.")
        st.text_input("Mobile number", key="phone", help="Optional; with country code, such as +1 202 555 0123.")
        st.caption("A number gets one message when the model is ready, and is deleted right after.")
        label = "Wake the model" if status["state"] != "CREATING" else "Join those who wait"
        st.form_submit_button(label, type="primary", on_click=begin)


def reviews_in(text: str, one_a_line: bool) -> list[str]:
    "Split what was typed into reviews; blank ones are left out."
    parts = text.splitlines() if one_a_line else [text]
    return [part.strip() for part in parts if part.strip()]


def reviews_of(
    raw: bytes,  # a CSV file
    column: str,  # empty: the wordiest
) -> list[str]:
    "Read reviews from a table. Raises ValueError that says what is wrong with it."
    cut = max(",;\t", key=raw.partition(b"\n")[0].decode(errors="replace").count)
    try:
        table = pd.read_csv(io.BytesIO(raw), dtype=str, sep=cut, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise ValueError(f"The file is no table in UTF-8 ({e}).") from None
    if column and column not in table:
        raise ValueError(f"The file has no column {column}; it has {', '.join(map(str, table.columns))}.")
    column = column or max(table, key=lambda name: table[name].str.len().sum())
    return [review.strip() for review in table[column] if review.strip()]


def row_of(review: str, prediction: dict) -> dict:
    "Write an answer as a row."
    told = {name: prediction.get(name) for name in ("label", "score", "sure", "windows", "truncated", "tokens")}
    words = sorted(prediction.get("explanation") or [], key=lambda word: -abs(word["influence"]))[:5]
    why = {"why": ", ".join(f"{w['text']} {w['influence']:+.2f}" for w in words)} if "explanation" in prediction else {}
    return {"review": review} | told | why | prediction["scores"]


def show_words(explanation: list[dict]):
    "Show each word with what it does to the answer."
    table = pd.DataFrame(explanation)[["text", "influence", "start", "end"]]
    table.insert(1, "speaks for", ["POSITIVE" if each > 0 else "NEGATIVE" for each in table["influence"]])
    st.dataframe(table, hide_index=True)
    st.caption("Influence: how far the share of POSITIVE falls when the model reads the review without the word.")


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
        st.download_button("Download as CSV", table.to_csv(index=False), "sentiment.csv", "text/csv")
    st.caption(f"{answered['latencyMs']} ms · model {answered['modelVersion'] or '–'}")


def predict(reviews: list[str], explain: bool) -> dict | None:
    "Ask the model, a few reviews at a time. None if it did not answer."
    size = EXPLAINED if explain else CHUNK
    bar = st.progress(0.0, text="Reading") if len(reviews) > size else None
    answered = {"reviews": reviews, "predictions": [], "latencyMs": 0, "modelVersion": None}
    for start in range(0, len(reviews), size):
        part = reviews[start : start + size]
        sent = {"inputs": part[0] if len(part) == 1 else part} | ({"explain": True} if explain else {})
        call = ask("POST", "/predict", sent)
        if not call.well:
            return tell("error", call.problem)
        answered["predictions"] += call.reply["predictions"]
        answered["latencyMs"] += call.reply["latencyMs"]
        answered["modelVersion"] = call.reply["modelVersion"]
        if bar:
            bar.progress(len(answered["predictions"]) / len(reviews), text="Reading")
    return answered


def read():
    "Ask the model about what was typed, or about what is in the file."
    given = st.session_state
    try:
        from_file = reviews_of(given.table.getvalue(), given.column.strip()) if given.table else []
    except ValueError as e:
        return tell("error", str(e))
    reviews = from_file or reviews_in(given.text, given.lines)
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
    "Put the chosen example into the box."
    if chosen := st.session_state.example:
        st.session_state.text, st.session_state.lines = examples()[chosen], False


def read_form(status: dict):
    "Take reviews and show what the model says."
    limit, batch = status.get("textLimit", 10_000), status.get("batchLimit", 1_000)
    st.selectbox("Example", list(examples()), index=None, key="example", on_change=take_example)
    with st.form("read"):
        st.text_area("Reviews", key="text", height=160, help=f"{limit:,} characters a review.")
        st.checkbox("Every line is a review of its own", key="lines", help=f"{batch:,} at a time.")
        st.file_uploader("Or a CSV file", ["csv", "tsv", "txt"], key="table", help="Its first line names the columns.")
        st.text_input("Its column", key="column", help="Empty: the one with the most text.")
        st.checkbox("Say which words count", key="explain", help="Takes longer: each is read many times.")
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
    "Write a call as a command for a shell."
    url, sent = st.session_state.api.rstrip("/") + call.path, json.dumps(call.sent, ensure_ascii=False)
    body = f" -H 'content-type: application/json' -d {shlex.quote(sent)}" if call.sent is not None else ""
    return f"curl -X {call.method} {shlex.quote(url)}{body}"


def as_python(call: Call) -> str:
    "Write a call as a program."
    url, more = st.session_state.api.rstrip("/") + call.path, "" if call.sent is None else f", json={call.sent!r}"
    return f"import httpx\n\nprint(httpx.request({call.method!r}, {url!r}{more}, timeout=70).json())"


def show_calls():
    "Show the raw JSON of each call, and how to make the newest ones again."
    for call in st.session_state.calls:
        title = f"{call.at} · {call.method} {call.path} · {call.code or 'no answer'} · {call.milliseconds} ms"
        with st.expander(title):
            st.code(json.dumps(asdict(call), indent=1, ensure_ascii=False), language="json")
            st.code(as_curl(call), language="shell")
            st.code(as_python(call), language="python")


def show_past():
    "Show what was asked in this session."
    rows = [row_of(*each) for a in st.session_state.past for each in zip(a["reviews"], a["predictions"], strict=True)]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def show_inbox():
    "Show the text messages that the local cloud has kept instead of sending them."
    address = st.session_state.inbox.strip().rstrip("/")
    if not address:
        return st.caption("Only the local cloud has an inbox: write its address into the sidebar.")
    try:
        messages = httpx.get(f"{address}.json", timeout=10).raise_for_status().json()
        st.dataframe(pd.DataFrame(messages), hide_index=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:
        st.error(f"There is no inbox at {address} ({type(e).__name__}).")
    return st.caption("Nothing of this was sent to a phone.")


def show_costs(status: dict):
    "Show what the machine costs, has cost and would cost."
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
    st.metric("So a month would cost", f"${min(hours, MONTH_HOURS) * price:,.2f}")
    return st.caption(
        f"Instance time only, from Start to sleep: {typical / 60:.1f} minutes to wake, {minutes} of use, "
        f"{status.get('idleMinutes', 30):g} until it sleeps. Sessions that overlap cost less."
    )


def show_log():
    "Show the raw calls, the states seen, what was asked, the inbox and the costs."
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
    "Ask the published page where the API and the inbox are."
    site = os.environ.get("SENTIMENT_SITE_ORIGIN", "").rstrip("/")
    try:
        config = httpx.get(f"{site}/config.json", timeout=5).raise_for_status().json() if site else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def addresses() -> dict[str, str]:
    "Return where the API and the inbox are, as far as the environment tells."
    api, inbox = os.environ.get("SENTIMENT_API_URL"), os.environ.get("SENTIMENT_INBOX_URL")
    config = published() if not api else {}
    return {"api": api or str(config.get("apiUrl", "")), "inbox": inbox or str(config.get("inboxUrl", ""))}


def sidebar() -> bool:  # whether the page refreshes itself
    "Take the API's address."
    with st.sidebar:
        st.text_input("Address of the API", key="api", placeholder="https://….execute-api.us-east-1.amazonaws.com")
        st.caption("From SENTIMENT_API_URL, if that is set; else the output ApiUrl of the engine stack.")
        st.text_input("Address of the local inbox", key="inbox", placeholder="http://127.0.0.1:4566/_local/inbox")
        st.button("Look again", key="again")
        return st.toggle("Refresh by itself", key="live", value=False, help="Every three seconds.")


def body():
    "Everything that depends on the status."
    for kind, message in st.session_state.told:
        getattr(st, kind)(message)
    st.session_state.told = []
    st.session_state.status = status = look()
    if status is None:
        return
    show_state(status)
    if status["state"] in ("STOPPED", "FAILED", "CREATING"):
        start_form(status)
    if status["state"] == "IN_SERVICE":
        st.button("Keep it awake", key="extend", on_click=extend)
        read_form(status)


def main():
    "Draw the page."
    st.set_page_config("Sentiment engine, for developers", "🌙", layout="wide")
    if "calls" not in st.session_state:
        empty = {"calls": [], "states": [], "told": [], "past": [], "answered": None, "status": None}
        st.session_state.update(empty | addresses())
    st.title("Sentiment engine, for developers")
    live = sidebar()
    if not st.session_state.api.strip():
        st.info("Set SENTIMENT_API_URL, or write the address of the API into the sidebar.")
        return
    st.fragment(body, run_every=3 if live else None)()
    show_log()


main()

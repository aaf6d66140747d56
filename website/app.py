"""The developer's page: the abilities of the public page, with the raw JSON of every call beside it.

    streamlit run website/app.py

The API's address comes from SENTIMENT_API_URL or from the field in the sidebar.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field

import httpx
import pandas as pd
import streamlit as st

KEPT = 50  # calls that the log remembers
CLASSES = ("NEGATIVE", "POSITIVE")
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
        label = "Wake the model" if status["state"] != "CREATING" else "Join those who wait"
        st.form_submit_button(label, type="primary", on_click=begin)


def reviews_in(text: str, one_a_line: bool) -> list[str]:
    "Split what was typed into reviews; blank ones are left out."
    parts = text.splitlines() if one_a_line else [text]
    return [part.strip() for part in parts if part.strip()]


def table_of(reviews: list[str], predictions: list[dict]) -> pd.DataFrame:
    "Write answers as a table, one review a row."
    rows = [
        {"review": review, "label": p["label"], "score": p["score"], "sure": p.get("sure")}
        | {"windows": p.get("windows", 1), "truncated": p.get("truncated", False)}
        | p["scores"]
        for review, p in zip(reviews, predictions, strict=True)
    ]
    return pd.DataFrame(rows)


def show_answers(answered: dict):
    "Show the answers to the last reviews."
    table = table_of(answered["reviews"], answered["predictions"])
    if len(table) == 1:
        row = table.iloc[0]
        unsure = answered["predictions"][0].get("sure") is False
        st.metric(f"{row.label}, not sure" if unsure else row.label, f"{row.score:.1%}")
        for label in (name for name in table.columns if name in CLASSES):
            st.progress(float(row[label]), text=f"{label} {row[label]:.1%}")
    else:
        st.dataframe(table, hide_index=True)
        st.download_button("Download as CSV", table.to_csv(index=False), "sentiment.csv", "text/csv")
    st.caption(f"{answered['latencyMs']} ms · model {answered['modelVersion'] or '–'}")


def read():
    "Ask the model about what was typed."
    reviews = reviews_in(st.session_state.text, st.session_state.lines)
    if not reviews:
        return tell("error", "Write or paste a review first.")
    call = ask("POST", "/predict", {"inputs": reviews[0] if len(reviews) == 1 else reviews})
    if not call.well:
        return tell("error", call.problem)
    st.session_state.answered = call.reply | {"reviews": reviews}


def read_form(status: dict):
    "Take reviews and show what the model says."
    limit, batch = status.get("textLimit", 10_000), status.get("batchLimit", 1_000)
    with st.form("read"):
        st.text_area("Reviews", key="text", height=160, help=f"{limit:,} characters a review.")
        st.checkbox("Every line is a review of its own", key="lines", help=f"{batch:,} at a time.")
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


def show_log():
    "Show the raw calls and the states seen."
    calls, states = st.tabs(["Calls", "States"])
    with calls:
        for call in st.session_state.calls:
            title = f"{call.at} · {call.method} {call.path} · {call.code or 'no answer'} · {call.milliseconds} ms"
            with st.expander(title):
                st.code(json.dumps(asdict(call), indent=1, ensure_ascii=False), language="json")
    with states:
        st.dataframe(pd.DataFrame(st.session_state.states), hide_index=True)


def sidebar() -> bool:  # whether the page refreshes itself
    "Take the API's address."
    with st.sidebar:
        st.text_input("Address of the API", key="api", placeholder="https://….execute-api.us-east-1.amazonaws.com")
        st.caption("From SENTIMENT_API_URL, if that is set; else the output ApiUrl of the engine stack.")
        st.button("Look again", key="again")
        return st.toggle("Refresh by itself", key="live", value=False, help="Every three seconds.")


def body():
    "Everything that depends on the status."
    for kind, message in st.session_state.told:
        getattr(st, kind)(message)
    st.session_state.told = []
    status = look()
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
    empty = {"calls": [], "states": [], "told": [], "answered": None, "api": os.environ.get("SENTIMENT_API_URL", "")}
    for name, value in empty.items():
        st.session_state.setdefault(name, value)
    st.title("Sentiment engine, for developers")
    live = sidebar()
    if not st.session_state.api.strip():
        st.info("Set SENTIMENT_API_URL, or write the address of the API into the sidebar.")
        return
    st.fragment(body, run_every=3 if live else None)()
    show_log()


main()

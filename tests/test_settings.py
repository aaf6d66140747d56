"Settings accept every usual spelling; the error for a value that can never match names the setting."

import math
from dataclasses import fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from phonenumbers import SUPPORTED_REGIONS

from sentiment_engine.settings import Settings, environment_of, settings_from

NUMBERS = [field.name for field in fields(Settings) if field.type in (int, float)]
FRACTIONS = [field.name for field in fields(Settings) if field.type is float]


def variable(name: str) -> str:
    "Name the environment variable of a setting."
    return f"SENTIMENT_{name.upper()}"


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e999", "NaN", ""])
def test_the_error_names_a_setting_that_is_not_a_number(name, text):
    with pytest.raises(ValueError, match=f"(?i){name}"):
        settings_from({variable(name): text})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_error_names_a_setting_with_a_negative_number(name):
    with pytest.raises(ValueError, match=f"(?i){name}"):
        settings_from({variable(name): "-1"})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_error_names_a_setting_with_an_excessive_number(name):
    with pytest.raises(ValueError, match=f"(?i){name}"):
        settings_from({variable(name): "1" + "0" * 400})


@given(st.text(max_size=4))
@example("UK")
@example("EU")
@example("usa")
@example("01")
def test_every_country_has_phone_numbers(code):
    try:
        countries = Settings(sms_countries=(code,)).sms_countries
    except ValueError as error:
        assert "sms_countries" in str(error) and code.upper() not in SUPPORTED_REGIONS
    else:
        assert set(countries) <= SUPPORTED_REGIONS


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("sms_countries", "us, de US", ("US", "DE")),
        ("instance_types", "ML.M5.LARGE ml.m5.large", ("ml.m5.large",)),
        ("site_origin", " https://reviews.example.com/ ", "https://reviews.example.com"),
        ("site_origin", "HTTPS://Reviews.Example.com:443//", "https://reviews.example.com"),
        ("site_origin", "http://Reviews.example.com:80", "http://reviews.example.com"),
        ("site_origin", "https://reviews.example.com:080", "https://reviews.example.com:80"),
        ("site_origin", "https://bücher.example", "https://xn--bcher-kva.example"),
        ("site_origin", "http://[::1]:8080/", "http://[::1]:8080"),
        ("site_origin", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("textbelt_url", "https://textbelt.com/", "https://textbelt.com"),
        ("sms_provider", "SNS", "sns"),
        ("endpoint", "Serverless ", "serverless"),
        ("endpoint", "LAMBDA", "lambda"),
        ("standby", "Off", False),
        ("standby", "on", True),
        ("alarm_email", " me@example.com", "me@example.com"),
    ],
)
def test_other_spellings_of_a_value_are_accepted(name, given, read):
    assert getattr(settings_from({variable(name): given}), name) == read


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sms_countries", "UK"),
        ("sms_countries", "US;DE"),
        ("sms_countries", "+1"),
        ("instance_types", "m5.large"),
        ("instance_types", "ml.m5"),
        ("instance_types", ""),
        ("textbelt_url", "textbelt.com"),
        ("textbelt_url", "ftp://textbelt.com"),
        ("textbelt_url", ""),
        ("site_origin", "reviews.example.com"),
        ("site_origin", "https://reviews.example.com/page"),
        ("site_origin", "https://a.example https://b.example"),
        ("site_origin", "https://a.example,https://b.example"),
        ("site_origin", "https://a.example,b.example"),
        ("site_origin", "https://*.example.com"),
        ("site_origin", "https://a..example"),
        ("site_origin", "https://a.example:99999"),
        ("site_origin", "https://a.example:port"),
        ("site_origin", "https://a.example?b"),
        ("site_origin", "https://a.example#b"),
        ("site_origin", "https://me@a.example"),
        ("site_origin", "https://"),
        ("site_origin", "https://[::1"),
        ("site_origin", "ftp://a.example"),
        ("site_origin", "*"),
        ("site_origin", "null"),
        ("inbox_url", "inbox"),
        ("alarm_email", "me"),
        ("alarm_email", "me@here, you@there.example"),
        ("sms_provider", "twilio"),
        ("endpoint", "batch"),
        ("table", "a table"),
        ("model_id", ""),
        ("serverless_memory_mb", "3000"),
        ("standby", "sometimes"),
        ("standby_memory_mb", "511"),
        ("standby_memory_mb", "10241"),
        ("standby_snapshots", "1"),
        ("daily_standby_texts", "0"),
        ("firewall", "maybe"),
        ("text_limit", "1.5"),
    ],
)
def test_the_error_names_a_setting_whose_value_can_never_match(name, given):
    with pytest.raises(ValueError, match=f"(?i){name}"):
        settings_from({variable(name): given})


def test_an_engine_without_an_endpoint_needs_the_standby():
    with pytest.raises(ValueError, match="standby"):
        settings_from({variable("endpoint"): "lambda", variable("standby"): "off"})
    assert settings_from({variable("endpoint"): "lambda"}).standby


@pytest.mark.parametrize("name", ["SENTIMENT_IDLE_MINUTE", "SENTIMENT_MONTHLY_BUDGETS", "SENTIMENT_XYZ"])
def test_a_misspelt_variable_is_refused(name):
    with pytest.raises(ValueError, match=name):
        settings_from({name: "5"})


@given(st.floats(min_value=0.01, max_value=1e6), st.sets(st.sampled_from(sorted(SUPPORTED_REGIONS)), min_size=1))
def test_settings_survive_a_round_trip_through_the_environment(minutes, countries):
    own = Settings(idle_minutes=minutes, sms_countries=tuple(countries))
    assert settings_from(environment_of(own)) == own and math.isfinite(own.idle_minutes)

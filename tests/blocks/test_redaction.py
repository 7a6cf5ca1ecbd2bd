"""What is masked, and what is not."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.redaction import MASK, Redactor

secrets = st.text(min_size=8, max_size=40).filter(lambda text: len(text.strip()) >= 8)


def masking(*values: str) -> Redactor:
    redactor = Redactor()
    redactor.add(values)
    return redactor


@given(secrets, st.binary(max_size=7), st.binary(max_size=7))
def test_a_value_is_masked_in_each_of_its_forms(value: str, before: bytes, after: bytes) -> None:
    redactor = masking(value)
    forms = [value, json.dumps(value), quote(value), quote(value, safe="")]
    forms += [
        encode(before + value.encode() + after).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)
    ]
    assert all(MASK in redactor.text(f"[{form}]") for form in forms)


@given(secrets, st.text())
def test_the_value_itself_never_passes(value: str, around: str) -> None:
    assert value not in masking(value).text(f"{around}{value}{around}{value}")


def test_every_line_of_a_key_is_masked() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----\n"
    assert masking(key).text("x MIIEvQIBADANBg y") == f"x {MASK} y"


def test_values_inside_values_are_masked_and_all_else_stays() -> None:
    found = masking("hunter22").value({"a": ["is hunter22", 7, None, True], "hunter22": {"b": 1.5}})
    assert found == {"a": [f"is {MASK}", 7, None, True], MASK: {"b": 1.5}}


@pytest.mark.parametrize("value", ["", " ", "\n", "ab"])
def test_what_is_no_secret_masks_nothing(value: str) -> None:
    assert masking(value).text("a b ab\n") == "a b ab\n"

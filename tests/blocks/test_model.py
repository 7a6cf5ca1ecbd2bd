"""Questions to a real client and what its server makes of them: an answer that is whole and asked for, or an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.budget import Budget
from quantum_orchestrator.blocks.errors import (
    BadAnswer,
    BudgetExceeded,
    Interrupted,
    InvalidInput,
    ModelError,
    ModelUnavailable,
    OfflineCannot,
)
from quantum_orchestrator.blocks.exchanges import spent_in
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.model import (
    OFFLINE,
    Choice,
    ModelSettings,
    Question,
    Tool,
    settings_from_environment,
)
from quantum_orchestrator.blocks.model_session import Ledger, Models, Scope
from quantum_orchestrator.tasks.operation import CancelToken
from tests.messages_server import (
    FAULTS,
    TOKENS_IN,
    TOKENS_OUT,
    Fault,
    MessagesServer,
    Say,
    messages_server,
    wait_until_asked,
)

TOOL = Tool(
    "answer",
    "Give the answer",
    {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    },
)
SUM = Question.of("What is 1 + 1?", system="You add.", tool=TOOL)
TEXT = Question.of("Say hello.", max_tokens=50)
RIGHT = Say(payload={"sum": 2})


@pytest.fixture(scope="module")
def server() -> Iterator[MessagesServer]:
    with messages_server() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.close()


def asking(
    journal: Journal,
    settings: ModelSettings,
    *,
    step: str = "step",
    budget: Budget | None = None,
    cancel: CancelToken | None = None,
    ledger: Ledger | None = None,
) -> Models:
    ledger = ledger or Ledger("run", journal.exchanges, settings=lambda _block: settings)
    scopes = [] if budget is None else [Scope("the budget of 'test'", "", budget)]
    return Models(ledger, step, cancel or CancelToken(), scopes)


def test_a_structured_answer_is_the_payload_of_the_tool(server: MessagesServer, journal: Journal) -> None:
    answer = asking(journal, server.says(RIGHT).settings()).ask(SUM)
    assert answer.payload == {"sum": 2}
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (TOKENS_IN, TOKENS_OUT)
    assert answer.money == pytest.approx((TOKENS_IN * 3 + TOKENS_OUT * 15) / 1e6)
    (asked,) = server.asked
    assert asked["model"] == "a-model"
    assert asked["tool_choice"] == {"type": "tool", "name": "answer"}
    assert "sk-test-key" in server.headers[0]["authorization"]


def test_a_text_is_the_text_of_the_answer_streamed_or_not(server: MessagesServer, journal: Journal) -> None:
    for streaming in (True, False):
        settings = server.says(Say("Hello, world.")).settings(streaming=streaming)
        assert asking(journal, settings, step=f"streaming-{streaming}").ask(TEXT).text == "Hello, world."
        assert bool(server.asked[0].get("stream")) is streaming


def test_a_model_that_knows_no_tools_may_answer_in_json(server: MessagesServer, journal: Journal) -> None:
    answer = asking(journal, server.says(Say('```json\n{"sum": 2}\n```')).settings()).ask(SUM)
    assert answer.payload == {"sum": 2}


def test_what_only_the_service_knows_is_asked_of_it_alone(server: MessagesServer, journal: Journal) -> None:
    asking(journal, server.says(RIGHT).settings()).ask(SUM)
    assert "strict" not in server.asked[0]["tools"][0]
    assert "cache_control" not in server.asked[0]["system"][0]
    asking(journal, server.says(RIGHT).settings(hosted=True), step="hosted").ask(SUM)
    assert server.asked[0]["tools"][0]["strict"] is True
    assert server.asked[0]["system"][0]["cache_control"] == {"type": "ephemeral"}


@pytest.mark.parametrize("fault", FAULTS, ids=[each.name for each in FAULTS])
def test_a_fault_of_the_server_is_an_error_and_never_a_shorter_answer(
    server: MessagesServer, journal: Journal, fault: Fault
) -> None:
    settings = server.says(*fault.says(RIGHT)).settings(streaming=fault.streaming, timeout=fault.patience, tries=2)
    models = asking(journal, settings)
    if fault.heals:
        assert models.ask(SUM).payload == {"sum": 2}
        return
    with pytest.raises(ModelError) as caught:
        models.ask(SUM)
    assert caught.value.message
    assert len(server.asked) <= settings.tries


def test_tries_at_a_busy_server_are_counted_and_cost_nothing(server: MessagesServer, journal: Journal) -> None:
    busy = Say(status=529, headers={"retry-after": "0"})
    asking(journal, server.says(busy, busy, RIGHT).settings()).ask(SUM)
    spent = spent_in(journal.exchanges.of("run"))
    assert (spent.calls, spent.attempts, spent.tokens) == (1, 3, TOKENS_IN + TOKENS_OUT)


def test_an_answer_that_was_lost_on_its_way_counts_as_it_was_reserved(server: MessagesServer, journal: Journal) -> None:
    settings = server.says(Say("Hel", cut="stop")).settings(tries=1)
    with pytest.raises(ModelUnavailable, match="cut off"):
        asking(journal, settings).ask(TEXT)
    spent = spent_in(journal.exchanges.of("run"))
    assert spent.calls == 1
    assert spent.output_tokens == 50
    assert spent.input_tokens == TEXT.most_input_tokens()


def test_a_cancelled_question_ends_at_once(server: MessagesServer, journal: Journal) -> None:
    cancel = CancelToken()
    settings = server.says(Say("late", seconds=60)).settings()
    threading.Thread(target=lambda: (wait_until_asked(server, 1), cancel.cancel())).start()
    with pytest.raises(Interrupted):
        asking(journal, settings, cancel=cancel).ask(TEXT)


def test_where_nobody_listens_is_said(journal: Journal) -> None:
    settings = ModelSettings("anthropic", "a-model", "http://127.0.0.1:1", tries=1)
    with pytest.raises(ModelUnavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
        asking(journal, settings).ask(TEXT)
    assert spent_in(journal.exchanges.of("run")).calls == 0


# On record.


def test_an_answer_on_record_is_not_asked_for_again_in_a_later_process(
    server: MessagesServer, journal: Journal
) -> None:
    settings = server.says(RIGHT).settings()
    asking(journal, settings).ask(SUM)
    again = asking(journal, settings).ask(SUM)
    assert again.payload == {"sum": 2}
    assert again.replayed
    assert len(server.asked) == 1


def test_the_same_question_twice_in_one_attempt_is_asked_twice(server: MessagesServer, journal: Journal) -> None:
    models = asking(journal, server.says(Say("one"), Say("two")).settings())
    assert [models.ask(TEXT).text, models.ask(TEXT).text] == ["one", "two"]
    later = asking(journal, server.settings())
    assert [later.ask(TEXT).text, later.ask(TEXT).text] == ["one", "two"]
    assert len(server.asked) == 2


def test_an_attempt_that_has_failed_with_its_answers_asks_anew(server: MessagesServer, journal: Journal) -> None:
    settings = server.says(Say("one"), Say("two")).settings()
    asking(journal, settings).ask(TEXT)
    journal.exchanges.use_up("run", ["step"])
    assert asking(journal, settings).ask(TEXT).text == "two"


def test_secrets_of_the_run_do_not_leave_for_a_model_and_are_not_kept(server: MessagesServer, journal: Journal) -> None:
    settings = server.says(Say("You said swordfish-12.")).settings()
    models = asking(journal, settings)
    models.ledger.redactor.add(["swordfish-12"])
    assert models.ask(Question.of("The word is swordfish-12.")).text == "You said ***."
    assert "swordfish" not in str(server.asked)
    assert "swordfish" not in str(journal.exchanges.of("run"))


# Budgets.


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(calls=0), "calls"),
        (Budget(attempts=0), "attempts"),
        (Budget(tokens=60), "tokens"),
        (Budget(money=0.0001), "money"),
        (Budget(time=0.0), "seconds"),
    ],
    ids=["calls", "attempts", "tokens", "money", "time"],
)
def test_a_question_that_could_break_a_budget_is_not_asked(
    server: MessagesServer, journal: Journal, budget: Budget, said: str
) -> None:
    with pytest.raises(BudgetExceeded, match=rf"the budget of 'test' of .*{said}"):
        asking(journal, server.says(Say("no")).settings(), budget=budget).ask(TEXT)
    assert server.asked == []
    assert journal.exchanges.of("run") == []


def test_money_is_not_spent_where_nobody_knows_the_prices(server: MessagesServer, journal: Journal) -> None:
    with pytest.raises(BudgetExceeded, match="not known"):
        asking(journal, server.says(Say("no")).settings(prices=None), budget=Budget(money=5)).ask(TEXT)
    assert server.asked == []


def test_steps_that_ask_at_once_share_a_budget_and_never_break_it(server: MessagesServer, journal: Journal) -> None:
    settings = server.says(Say("one of them", seconds=0.1)).settings()
    ledger = Ledger("run", journal.exchanges, settings=lambda _block: settings)
    most = TEXT.most_input_tokens() + 50
    budget = Budget(calls=3, tokens=most + 2 * (TOKENS_IN + TOKENS_OUT))
    outcomes: list[str] = []

    def ask(name: str) -> None:
        try:
            outcomes.append(asking(journal, settings, step=name, budget=budget, ledger=ledger).ask(TEXT).text)
        except BudgetExceeded:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(f"s{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["one of them"] * 3 + ["refused"] * 2
    assert len(server.asked) == 3
    assert spent_in(journal.exchanges.of("run")).tokens <= (budget.tokens or 0)


def test_what_an_earlier_process_has_spent_counts(server: MessagesServer, journal: Journal) -> None:
    settings = server.says(Say("one")).settings()
    asking(journal, settings, step="before", budget=Budget(calls=1)).ask(TEXT)
    with pytest.raises(BudgetExceeded):
        asking(journal, settings, step="after", budget=Budget(calls=1)).ask(TEXT)


# Rounds.


def test_what_is_wrong_goes_back_to_the_model_so_many_times(server: MessagesServer, journal: Journal) -> None:
    models = asking(journal, server.says(Say(payload={"sum": "two"}), RIGHT).settings())
    assert models.converse(SUM, lambda answer: answer.payload) == {"sum": 2}
    last = server.asked[1]["messages"]
    assert [each["role"] for each in last] == ["user", "assistant", "user"]
    assert "'two' is not of type 'integer'" in last[2]["content"]
    server.says(Say(payload={"sum": "two"}))
    with pytest.raises(BadAnswer, match="not of the shape"):
        asking(journal, server.settings(), step="never").converse(SUM, lambda answer: answer.payload)
    assert len(server.asked) == 3


# Who answers.


def test_without_a_model_rules_answer_or_it_is_said_what_is_missing(journal: Journal) -> None:
    models = asking(journal, ModelSettings())
    answer = models.ask(Question.of("1 + 1", tool=TOOL, rules=lambda: {"sum": 2}))
    assert (answer.provider, answer.payload, answer.money) == (OFFLINE, {"sum": 2}, 0.0)
    with pytest.raises(OfflineCannot, match="none is configured") as caught:
        models.ask(TEXT)
    assert "QO_MODEL" in caught.value.hint


def test_rules_are_judged_like_any_model(journal: Journal) -> None:
    with pytest.raises(BadAnswer, match="not of the shape"):
        asking(journal, ModelSettings()).ask(Question.of("1 + 1", tool=TOOL, rules=lambda: {"sum": "2"}))


def test_the_environment_names_the_model() -> None:
    assert settings_from_environment({}).provider == OFFLINE
    assert settings_from_environment({"ANTHROPIC_API_KEY": "k"}).provider == OFFLINE
    found = settings_from_environment({"QO_MODEL": "m", "ANTHROPIC_BASE_URL": "http://x", "QO_MODEL_PRICES": "3,15"})
    assert (found.provider, found.model, found.base_url) == ("anthropic", "m", "http://x")
    assert found.prices is not None
    with pytest.raises(InvalidInput, match="QO_MODEL_PRICES"):
        settings_from_environment({"QO_MODEL": "m", "QO_MODEL_PRICES": "cheap"})


def test_an_address_that_a_set_names_does_not_get_the_machines_credentials() -> None:
    own = ModelSettings("anthropic", "m", None, api_key="the-machines-own")
    chosen = Choice(base_url="http://elsewhere.example").of(own, {})
    assert chosen.secrets == []
    given = Choice(base_url="http://elsewhere.example").of(own, {"ANTHROPIC_API_KEY": "the-steps-own"})
    assert given.api_key == "the-steps-own"
    assert "the-machines-own" not in repr(own)

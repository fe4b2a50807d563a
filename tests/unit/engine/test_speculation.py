"""What the configuration of drafts does in an engine, and that finished requests are remembered only if asked for."""

from __future__ import annotations

import pytest
from tests.engine_harness import Driver, make_engine, request_of
from tests.speculation_harness import FakeDraft, always_draft

from realm.core.config import MAX_DRAFT_TOKENS, EngineConfig, ModelConfig, SpeculativeConfig
from realm.core.errors import InvalidRequest
from realm.models.draft import DraftModel


def config_of(**fields: object) -> EngineConfig:
    return EngineConfig(kv_block_tokens=16, num_threads=1, speculative=SpeculativeConfig(**fields))


def accepted_second_time(domains: tuple[bytes, bytes], tenants: tuple[str, str], **fields: object) -> int:
    """Lookup drafts that were right when a request comes again, maybe from elsewhere."""
    driver = Driver(always_draft(make_engine(config_of(**fields))))
    accepted = []
    for name, domain, tenant in zip("ab", domains, tenants, strict=True):
        driver.add(request_of(name, range(20), domain=domain, tenant_id=tenant, max_tokens=30))
        driver.drain()
        accepted.append(driver.results[name].usage.accepted_tokens)
    assert driver.results["a"].token_ids == driver.results["b"].token_ids
    return accepted[1]


def test_a_history_helps_who_asks_the_same_again():
    assert accepted_second_time((b"A", b"A"), ("t", "t"), lookup_history=True) > 20


def test_without_a_history_nothing_is_remembered():
    assert accepted_second_time((b"A", b"A"), ("t", "t")) == 0


def test_a_history_is_never_seen_from_another_cache_domain():
    """The same tokens follow, and would be right: not one of them is proposed."""
    assert accepted_second_time((b"A", b"B"), ("t", "u"), lookup_history=True) == 0
    assert accepted_second_time((b"A", b"B"), ("t", "t"), lookup_history=True) == 0, "another adapter's, for instance"


def test_a_request_that_refuses_drafts_is_not_remembered():
    driver = Driver(always_draft(make_engine(config_of(lookup_history=True))))
    for name, speculate in (("a", False), ("b", True)):
        driver.add(request_of(name, range(20), max_tokens=30, speculate=speculate))
        driver.drain()
    assert driver.results["b"].usage.accepted_tokens == 0


def test_a_draft_model_alone_where_lookup_is_off():
    engine = make_engine(config_of(lookup=False), draft=DraftModel(FakeDraft()))
    driver = Driver(always_draft(engine))
    driver.add(request_of("r", [1, 2] * 10, max_tokens=20, logit_bias={5: 100.0}))
    driver.drain()
    assert {source for source, _ in engine.stats().drafted_tokens} == {"draft"}


def test_drafts_are_never_longer_than_asked_for():
    widths: list[int] = []
    draft = FakeDraft()
    engine = always_draft(make_engine(config_of(lookup=False, draft_k=64, max_draft_tokens=3), draft=DraftModel(draft)))
    engine._executor.on_step = lambda batch: widths.append(len(batch.token_ids))
    driver = Driver(engine)
    driver.add(request_of("r", 20, max_tokens=20))
    driver.drain()
    assert max(widths[1:]) == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"draft_k": 0}, "draft_k"),
        ({"max_draft_tokens": 0}, "max_draft_tokens"),
        ({"max_draft_tokens": MAX_DRAFT_TOKENS + 1}, "max_draft_tokens"),
        ({"lookup": False, "lookup_history": True}, "lookup_history"),
    ],
)
def test_bad_configurations_are_told(fields: dict[str, object], param: str):
    with pytest.raises(InvalidRequest) as told:
        SpeculativeConfig(**fields)
    assert told.value.param == param


def test_a_name_for_no_draft_model_is_an_error():
    with pytest.raises(InvalidRequest, match="draft_model_path"):
        ModelConfig("m.gguf", draft_model_id="d")

"""The tokens of a server's prompt are compared with those of the model's own tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from fake_server import fake_server

from icdsel.errors import VlmError
from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.answer_tokens import AnswerTokens
from icdsel.vlm.local.qwen_vl import QwenVl
from icdsel.vlm.server import engine as server_engine
from icdsel.vlm.server.probes import pictures
from icdsel.vlm.server.tokens import local_tokenizer, two_shot_prompt


class Words:
    """In place of a tokenizer: 1 stands for an image, which has three tokens."""

    def tokens(self, messages: Any) -> list[int]:
        return [5, 1, 1, 1, 6, 1, 1, 1, 7, 8]

    def answer_tokens(self) -> AnswerTokens:
        raise VlmError("nothing ends an answer")

    def text(self, tokens: list[int]) -> str:
        return " ".join(f"t{token}" for token in tokens)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([5, 1, 1, 1, 6, 1, 1, 1, 7, 8], None),
        (None, None),
        ([5, 1, 1, 6, 1, 1, 7, 8], r"makes 8 tokens .* own processor 10: it resizes images differently"),
        ([5, 1, 1, 1, 6, 1, 1, 1, 9, 8], r"from token 8 on it has '.*t9 t8' instead of '.*t7 t8'.*--chat-template"),
        ([5, 1, 1, 1, 6, 1, 1, 1, 7], r"from token 9 on"),
        ([5, -1], r"tells tokens of a prompt that are none"),
        (["5"], r"tells tokens of a prompt that are none"),
        ([2**70], r"tells tokens of a prompt that are none"),
    ],
)
def test_a_server_with_other_tokens_is_refused(
    told: Any, said: str | None, opened: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_engine, "local_tokenizer", lambda settings: Words())

    def with_tokens(number: int, body: dict[str, Any]) -> Any:
        return (lambda reply: reply | {"prompt_token_ids": told}) if body.get("return_token_ids") else None

    with fake_server(owner="vllm", fault=with_tokens) as server:
        if said is None:
            opened(server)
            assert sum(bool(body.get("return_token_ids")) for body in server.asked) == 1
        else:
            with pytest.raises(VlmError, match=said):
                opened(server)


def test_a_model_whose_files_are_not_here_is_not_compared(tmp_path: Path):
    assert local_tokenizer(VlmSettings(model="served-name")) is None
    assert local_tokenizer(VlmSettings(model="nobody/nothing")) is None
    assert local_tokenizer(VlmSettings(model=str(tmp_path))) is None  # a folder without a processor


@pytest.mark.parametrize("layout", ["one-turn", "turns"])
def test_tokens_are_those_of_the_scorer_in_this_process(layout: str, tmp_path: Path):
    settings = VlmSettings(layout=layout, device="cpu")
    local = local_tokenizer(settings)
    assert local is not None
    shown = []
    for n, (picture, question, answer) in enumerate(
        zip(pictures(), ("What is it?", "How many are there?", "Which colour?"), ("lines", "2", ""), strict=False)
    ):
        picture.save(path := tmp_path / f"{n}.png")
        shown.append(Example(n, n, path, question, answer, ("x",)))
    scorer: Any = open_engine(settings, 10**6).engine
    assert isinstance(scorer, QwenVl)
    request = Request(tuple(shown[:-1]), shown[-1])
    list(scorer.batches([request]))
    blocks = scorer.prompt(request).blocks
    assert local.tokens(two_shot_prompt(settings)) == [token for block in blocks for token in block.ids]

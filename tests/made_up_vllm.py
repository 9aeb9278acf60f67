"""A made-up vLLM: log-probs by a generator that the tokens before seed, and the rest as vLLM does it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import PromptStyle, chat_messages
from icdsel.vlm.server.failures import Rejected
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.replies import Completion, completion_of
from icdsel.vlm.server.tokens import LocalTokenizer

MOST_NEW = 5


class MadeUpVllm:
    """Answers one prompt.

    Args:
        tokenizer: The model's tokenizer and chat template.
        style: How the prompt is laid out.
        request: The prompt.
        seed: Other seeds, other log-probs.

    Attributes:
        asked: The parameters of all completions so far.
        continues: Whether its template can continue a turn.
    """

    def __init__(self, tokenizer: LocalTokenizer, style: PromptStyle, request: Request, seed: int = 0) -> None:
        self.answers, self.seed = tokenizer.answer_tokens(), seed
        self.vocabulary = len(tokenizer.processor.tokenizer)
        self.prompt = tokenizer.chat.prompt(chat_messages(request.icds, request.query, style))
        self.before = self.answers.of_prompt(self.prompt)
        self.asked: list[dict[str, Any]] = []
        self.continues = True

    def log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        logits = np.random.default_rng([self.seed, len(tokens), *tokens]).normal(scale=3, size=self.vocabulary)
        return logits - np.log(np.exp(logits).sum())

    def reference(self, text: str) -> float:
        """The log-prob of a reference, token by token."""
        tokens = self.answers.of(self.prompt, text)
        return float(sum(self.log_probs((*self.before, *tokens[:n]))[t] for n, t in enumerate(tokens)))

    async def complete(self, **asked: Any) -> Completion:
        self.asked.append(asked)
        return completion_of(self.reply(asked), None, ApiKey())

    def reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt = list(self.before)
        if "messages" in asked:
            [turn] = asked["messages"]
            assert asked["continue_final_message"] is True and asked["add_generation_prompt"] is False
            if not self.continues:
                raise Rejected(400, "the final message does not appear in the chat")
            prompt = list(self.answers.of_prompt(self.prompt + turn["content"]))
        bias = {int(token): value for token, value in asked.get("logit_bias", {}).items()}
        content: list[dict[str, Any]] = []
        generated: list[int] = []
        stop = self.answers.stop
        while len(generated) < asked.get("max_tokens", MOST_NEW) and stop not in generated:
            log_probs = self.log_probs((*prompt, *generated))
            biased = log_probs.copy()
            for token, value in bias.items():
                biased[token] += value
            generated.append(int(biased.argmax()))
            top = [
                {"token": f"token_id:{token}", "logprob": float(log_probs[token])}
                for token in dict.fromkeys([generated[-1], *asked.get("logprob_token_ids", [])])
            ]
            content.append(top[0] | {"top_logprobs": top})
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "answer"},
            "finish_reason": "stop" if stop in generated else "length",
            "logprobs": {"content": content},
        }
        return {"choices": [choice], "prompt_token_ids": prompt, "usage": {"prompt_tokens": len(prompt)}}

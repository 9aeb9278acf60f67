"""What the small random models of tests share: sizes, tokenizers, and how they are saved."""

from pathlib import Path

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,  # so that answers differ from prompt to prompt
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}


def byte_tokenizer(marks: list[str], **names):
    """One token per byte, and the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    made.add_tokens(marks, special_tokens=True)
    if made.bos_token:  # texts begin with it, as for most tokenizers that have one
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{made.bos_token} $A", special_tokens=[(made.bos_token, made.bos_token_id)]
        )
    return made


def sentencepiece_tokenizer(marks: list[str], **names):
    """A tokenizer like Llama's: spaces are part of words, and each text between marks begins with one."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({chr(i) for i in range(33, 127)} | {"▁"})
    words = ["▁y", "▁ye", "▁yes", "ye", "yes", "do", "doni", "▁do", "▁doni", "▁n", "▁no", "no"]
    vocab = {token: i for i, token in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *words])}
    merges = [("▁", "y"), ("▁y", "e"), ("▁ye", "s"), ("y", "e"), ("ye", "s"), ("d", "o"), ("do", "ni"), ("▁", "do")]
    merges += [("n", "i"), ("▁do", "ni"), ("▁", "n"), ("▁n", "o"), ("n", "o")]
    vocab |= {"ni": len(vocab)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    made.add_tokens(marks, special_tokens=True)
    return made


def ends_of(tokenizer) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def save(folder: Path, model, processor, ends: list[int] | None = None) -> None:
    """Saves a model whose answers end with the tokenizer's end token, or with one of `ends`."""
    model.generation_config.eos_token_id = ends or processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

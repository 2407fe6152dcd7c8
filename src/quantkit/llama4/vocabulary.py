"""The `tokenizer.*` keys."""

from __future__ import annotations

import string

from gguf import GGUFValueType

from quantkit.checkpoint import Checkpoint, Tokenizer, is_llama4_pre_tokenizer
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.gguf import Field
from quantkit.llama4.hyperparameters import Hyperparameters

_NAME_LETTERS = set(string.ascii_letters + string.digits)


def vocabulary_fields(cp: Checkpoint, hp: Hyperparameters) -> list[Field]:
    """Tokens, merges, special ids and chat templates.

    Raises:
        UnsupportedModelError: text is split otherwise than by Llama 4's regex, which the runtime would apply.
        CheckpointError: tokenizer and `vocab_size` do not fit together.
    """
    tokenizer = cp.tokenizer()
    if not is_llama4_pre_tokenizer(tokenizer):
        shown = " then ".join(tokenizer.pre_regex) or "nothing"
        raise UnsupportedModelError(
            f"{cp.root / 'tokenizer.json'}: text is split by another regex than Llama 4's: {shown}",
            hint="A llama4 GGUF is always split by Llama 4's regex, so tokens would come out otherwise.",
        )
    if len(tokenizer.tokens) != hp.vocab_size:
        raise CheckpointError(
            f"{cp.root / 'tokenizer.json'} has {len(tokenizer.tokens)} tokens, "
            f"and config.json's vocab_size is {hp.vocab_size}"
        )
    text, array, flag = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.BOOL
    return [
        Field("tokenizer.ggml.model", "gpt2", text),
        Field("tokenizer.ggml.pre", "llama4", text),
        Field("tokenizer.ggml.tokens", tokenizer.tokens, array, text),
        Field("tokenizer.ggml.token_type", tokenizer.token_types, array, GGUFValueType.INT32),
        Field("tokenizer.ggml.merges", tokenizer.merges, array, text),
        *_special_ids(tokenizer),
        Field("tokenizer.ggml.add_bos_token", tokenizer.add_bos, flag),
        Field("tokenizer.ggml.add_eos_token", tokenizer.add_eos, flag),
        Field("tokenizer.ggml.add_sep_token", tokenizer.add_sep, flag),
        *_chat_templates(cp, tokenizer),
    ]


def _special_ids(tokenizer: Tokenizer) -> list[Field]:
    # The runtime finds end tokens by their text, and knows neither <|eot|> nor <|eom|>: it needs their ids.
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "padding": tokenizer.pad_id,
        "eot": tokenizer.eot_id,
        "eom": tokenizer.eom_id,
    }
    return [
        Field(f"tokenizer.ggml.{name}_token_id", token, GGUFValueType.UINT32)
        for name, token in ids.items()
        if token is not None
    ]


def _chat_templates(cp: Checkpoint, tokenizer: Tokenizer) -> list[Field]:
    fields: dict[str, Field] = {}
    for name, template in sorted(tokenizer.chat_templates.items()):
        # a key has room for letters and digits only
        written = "".join(letter if letter in _NAME_LETTERS else "_" for letter in name)
        key = f"tokenizer.chat_template.{written}"
        if not written or written in fields:
            raise CheckpointError(f"{cp.root}: chat template {name!r} has no name of its own in letters and digits")
        fields[written] = Field(key, template, GGUFValueType.STRING)
    found = list(fields.values())
    if fields:
        found.append(Field("tokenizer.chat_templates", sorted(fields), GGUFValueType.ARRAY, GGUFValueType.STRING))
    if tokenizer.chat_template is not None:
        found.append(Field("tokenizer.chat_template", tokenizer.chat_template, GGUFValueType.STRING))
    return found

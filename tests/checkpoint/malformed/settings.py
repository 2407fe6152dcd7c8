"""config.json and its siblings: unreadable, or with values that no Llama 4 can have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import Draft, Kind

CONFIG = "config.json"


def kinds() -> Iterator[Kind]:
    yield from _files()
    yield from _missing()
    yield from _values()
    yield from _unsupported()
    yield from _against_weights()
    yield from _card()


def _files() -> Iterator[Kind]:
    def file(name: str, match: str, data: Callable[[bytes], bytes], *, path: str = CONFIG) -> Kind:
        return Kind(
            f"config-{name}",
            "open",
            "CheckpointError",
            f"{re.escape(path)}: .*{match}",
            lambda draft: draft.write(path, data(draft.read(path))),
        )

    yield Kind("config-missing", "open", "CheckpointError", f"{CONFIG}: missing", lambda draft: draft.remove(CONFIG))
    yield file("empty", "not valid JSON", lambda data: b"")
    yield file("truncated", "not valid JSON", lambda data: data[: len(data) // 2])
    yield file("not-utf8", "not UTF-8", lambda data: data.replace(b"silu", b"sil\xff"))
    yield file("utf16", "not UTF-8", lambda data: data.decode().encode("utf-16"))
    yield file("list", "a JSON object was expected, not list", lambda data: b"[" + data + b"]")
    yield file(
        "key-twice", "'hidden_size' is given twice", _replace(b'"hidden_size"', b'"hidden_size": 1, "hidden_size"')
    )
    yield file("nan", "NaN is not a number", _replace(b"1e-05", b"NaN"))
    yield file("infinity", "Infinity is not a number", _replace(b"500000.0", b"Infinity"))
    yield file("comment", "not valid JSON", _replace(b"{", b"{ // text\n"))
    yield file("generation-truncated", "not valid JSON", lambda data: data[:20], path="generation_config.json")
    yield file("preprocessor-list", "a JSON object was expected", lambda data: b"[]", path="preprocessor_config.json")


def _replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def _text(name: str, match: str, error: str = "CheckpointError", **values: Any) -> Kind:
    """Other values in text_config."""
    return Kind(
        f"config-{name}",
        "model",
        error,
        f"{CONFIG}: .*{match}",
        lambda draft: draft.edit(CONFIG, lambda config: config["text_config"].update(values)),
    )


def _missing() -> Iterator[Kind]:
    for key in (
        "hidden_size",
        "intermediate_size",
        "intermediate_size_mlp",
        "num_hidden_layers",
        "num_attention_heads",
        "num_local_experts",
        "max_position_embeddings",
    ):
        yield Kind(
            f"config-without-{key}",
            "model",
            "CheckpointError",
            f"{CONFIG}: .*{key} is missing",
            lambda draft, key=key: draft.edit(CONFIG, lambda config: config["text_config"].pop(key)),
        )


def _values() -> Iterator[Kind]:
    for key, values in {
        "hidden_size": ("256", 0, 256.0, None, True),
        "num_hidden_layers": (0, -1, [4], 10**6),
        "num_local_experts": (-4, "4", None),
        "num_key_value_heads": (0, 3, "2"),
        "head_dim": (63, -64),
        "num_experts_per_tok": (5, 0),
        "intermediate_size": (-256, "wide"),
        "rms_norm_eps": ("1e-05", -1e-5),
        "rope_theta": (0, "500000"),
        "max_position_embeddings": (2**32, "8192"),
        "use_qk_norm": ("yes",),
        "no_rope_layers": ([1, 1], [1, 1, 1, 2], "1110"),
        "moe_layers": (["0"], [-1], 4),
        "layer_types": (["full_attention"], ["linear_attention"] * 4),
        "rope_scaling": ("llama3", {"rope_type": "llama3"}),
        "tie_word_embeddings": ("no",),
    }.items():
        for value in values:
            label = re.sub(r"[^\w.-]+", "_", str(value)).strip("_")
            # a llama3 scaling lacks its first own value
            yield _text(f"{key}-is-{label}", "factor" if isinstance(value, dict) else key, **{key: value})
    yield Kind(
        "config-text-is-a-list",
        "model",
        "CheckpointError",
        f"{CONFIG}: .*text_config",
        lambda draft: draft.edit(CONFIG, lambda config: config.update(text_config=[config["text_config"]])),
    )
    yield Kind(
        "config-architectures-is-text",
        "model",
        "CheckpointError",
        f"{CONFIG}: .*architectures",
        lambda draft: draft.edit(CONFIG, lambda config: config.update(architectures="Llama4ForCausalLM")),
    )


def _unsupported() -> Iterator[Kind]:
    def top(name: str, match: str, **values: Any) -> Kind:
        return Kind(
            f"config-{name}",
            "model",
            "UnsupportedModelError",
            f"{CONFIG}: .*{match}",
            lambda draft: draft.edit(CONFIG, lambda config: config.update(values)),
        )

    yield top("llama-3", "LlamaForCausalLM, which is not a Llama 4", architectures=["LlamaForCausalLM"])
    yield top("mllama", "MllamaForConditional", architectures=["MllamaForConditionalGeneration"])
    yield top("no-family", "neither architectures nor model_type", architectures=None, model_type=None)
    yield top("gptq", "gptq", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    yield top(
        "fp8-in-blocks",
        "scales of blocks",
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    yield _text("zero-experts", "num_local_experts is 0", "UnsupportedModelError", num_local_experts=0)
    yield _text("too-many-experts", "num_local_experts is 2000", "UnsupportedModelError", num_local_experts=2000)
    yield _text("attention-bias", "attention_bias is true", "UnsupportedModelError", attention_bias=True)


def _against_weights() -> Iterator[Kind]:
    """Sound by itself, but another model than the weights."""

    def text(name: str, match: str, **values: Any) -> Kind:
        def change(config: Any) -> None:
            config["text_config"].update(values)

        return Kind(f"config-{name}", "model", "CheckpointError", match, lambda draft: draft.edit(CONFIG, change))

    yield text("wider-than-weights", "has shape", hidden_size=512)
    yield text("more-heads-than-weights", "self_attn.*has shape", num_attention_heads=8)
    yield text("more-kv-heads-than-weights", "self_attn.[kv]_proj.*has shape", num_key_value_heads=4)
    yield text("more-experts-than-weights", "feed_forward.*has shape", num_local_experts=8, moe_layers=[0, 1, 2, 3])
    yield text("wider-experts-than-weights", "feed_forward.*has shape", intermediate_size=512)
    yield text("more-layers-than-weights", "layers.4.*is in none of", **_layers(5))
    yield text("fewer-layers-than-weights", "layers.3.*is not one of Llama 4's", **_layers(3))
    yield text("dense-layers-that-are-moe", "feed_forward", moe_layers=[1, 3], interleave_moe_layer_step=2)
    yield text("larger-vocabulary-than-weights", "has shape", vocab_size=2048)

    def vision(draft: Draft) -> None:
        draft.edit(CONFIG, lambda config: config["vision_config"].update(hidden_size=128))

    yield Kind("config-vision-wider", "model", "CheckpointError", "vision_(model|config)", vision, vision=True)


def _card() -> Iterator[Kind]:
    for label, data in (
        ("not-yaml", b"---\nlicense: [apache-2.0\n---\n"),
        ("tab", b"---\n\tlicense: x\n---\n"),
        ("a-list", b"---\n- apache-2.0\n---\n"),
        ("unknown-tag", b"---\nlicense: !custom x\n---\n"),
        ("python-tag", b"---\nlicense: !!python/name:os.system\n---\n"),
        ("impossible-date", b"---\nversion: 2024-13-45\n---\n"),
        ("not-utf8", b"---\nlicense: \xff\n---\n"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    ):
        yield Kind(
            f"card-{label}",
            "model",
            "CheckpointError",
            "README.md: ",
            lambda draft, data=data: draft.write("README.md", data),
        )
    for key, value in (("temperature", "warm"), ("top_k", [1]), ("top_p", {})):
        yield Kind(
            f"generation-{key}",
            "model",
            "CheckpointError",
            "generation_config.json",
            lambda draft, key=key, value=value: draft.edit(
                "generation_config.json", lambda document: document.update({key: value})
            ),
        )


def _layers(count: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": count,
        "moe_layers": list(range(count)),
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(count)],
    }

"""transformers in float32, eager attention: what the checkpoint itself says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, Llama4ForConditionalGeneration

torch.set_num_threads(1)  # more spin at every operation of so small a model


class Reference:
    """A checkpoint folder loaded by transformers."""

    def __init__(self, checkpoint: Path) -> None:
        architecture = AutoConfig.from_pretrained(checkpoint).architectures[0]
        kind = Llama4ForConditionalGeneration if "Conditional" in architecture else AutoModelForCausalLM
        self._model = kind.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
        # some versions 5 of the whole model fall over their own output when no image comes with the text
        self._text = getattr(self._model, "language_model", self._model)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (n, vocab) after each of `tokens` (n,)."""
        with torch.inference_mode():
            return self._text(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    def generate(self, tokens: Sequence[int], n_tokens: int) -> list[int]:
        """The `n_tokens` most likely tokens after `tokens`; end tokens do not stop it."""
        past, step, out = None, torch.tensor([list(tokens)]), []
        with torch.inference_mode():
            for _ in range(n_tokens):
                answer = self._text(input_ids=step, past_key_values=past, use_cache=True)
                past = answer.past_key_values
                step = answer.logits[:, -1:].argmax(-1)
                out.append(int(step))
        return out

    def inputs(self, tokens: Sequence[int], modules: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """What reaches the modules (names end so) while `tokens` are evaluated: (rows, columns) each."""
        seen: dict[str, NDArray[np.float64]] = {}
        hooks = []
        for name, module in self._model.named_modules():
            for wanted in modules:
                if name.endswith(wanted):

                    def note(_: object, args: tuple[torch.Tensor, ...], wanted: str = wanted) -> None:
                        seen[wanted] = args[0].reshape(-1, args[0].shape[-1]).double().numpy()

                    hooks.append(module.register_forward_pre_hook(note))
        try:
            self.logits(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def hidden_states(self, tokens: Sequence[int]) -> list[NDArray[np.float32]]:
        """What each layer leaves, (n, hidden) a layer."""
        seen: list[NDArray[np.float32]] = []

        def note(module: object, args: object, output: torch.Tensor) -> None:
            seen.append(output[0].numpy().copy())

        # the vision tower's layers have names that begin otherwise
        layers = [
            module
            for name, module in self._model.named_modules()
            if re.fullmatch(r"(.*language_model\.)?model\.layers\.\d+", name)
        ]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        try:
            self.logits(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def image_features(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings (tokens, hidden) of an image (rows, columns, 3) of the tower's own size."""
        pixels = torch.from_numpy((image.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        with torch.inference_mode():
            seen = self._model.get_image_features(pixel_values=pixels).last_hidden_state
            return self._model.multi_modal_projector(seen.reshape(-1, seen.shape[-1])).numpy()

"""A model for Triton's Python backend: prompts are computed one after the other, in a time that
follows their length, and then four words come, 20 ms apart. Run by Triton.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

WORDS, WORD_S = 4, 0.02
BYTE_S = 20e-6


class TritonPythonModel:
    """Under the name that Triton looks for."""

    def initialize(self, _args: dict[str, str]) -> None:
        """Once, before any request."""
        self._computes = threading.Lock()

    def execute(self, requests: list[Any]) -> None:
        """Begin some requests; their answers come later."""
        for request in requests:
            (text,) = triton.get_input_tensor_by_name(request, "text_input").as_numpy()
            answer = (len(text), request.get_response_sender())
            threading.Thread(target=self._answer, args=answer, daemon=True).start()

    def _answer(self, size: int, sender: Any) -> None:
        with self._computes:
            time.sleep(size * BYTE_S)
        for number in range(WORDS):
            word = np.array([f"word{number} ".encode()], dtype=np.object_)
            sender.send(triton.InferenceResponse([triton.Tensor("text_output", word)]))
            time.sleep(WORD_S)
        sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

"""Makes a Llama of random weights in one file for llama.cpp: FILE. Run with its own environment."""

from __future__ import annotations

import sys

import numpy as np
from gguf import GGUFWriter

WORDS, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 4096, 256, 688, 3, 4, 2, 8192
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of tokens


def words() -> tuple[list[str], list[int], list[float]]:
    """Texts, types and scores of all tokens: each byte, printable characters, and made-up words."""
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    of_bytes = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    characters = [(chr(code), NORMAL) for code in (*range(33, 127), 0x2581)]
    found = [*special, *of_bytes, *characters]
    found += [(f"\u2581w{n}", NORMAL) for n in range(WORDS - len(found))]
    texts, types = zip(*found, strict=True)
    return list(texts), list(types), [-float(n) for n in range(WORDS)]


def main(path: str) -> None:
    """All of it."""
    random = np.random.default_rng(7)
    file = GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(INNER)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_vocab_size(WORDS)
    file.add_file_type(1)
    texts, types, scores = words()
    file.add_tokenizer_model("llama")
    file.add_tokenizer_pre("default")
    file.add_token_list(texts)
    file.add_token_types(types)
    file.add_token_scores(scores)
    file.add_unk_token_id(0)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_chat_template(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    )

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns)) * 0.02
        file.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name: str) -> None:
        file.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd", WORDS, WIDTH)
    matrix("output", WORDS, WIDTH)
    norm("output_norm")
    narrow = WIDTH * KV_HEADS // HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(f"{block}attn_norm")
        norm(f"{block}ffn_norm")
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", narrow, WIDTH),
            ("attn_v", narrow, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            matrix(f"{block}{name}", rows, columns)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

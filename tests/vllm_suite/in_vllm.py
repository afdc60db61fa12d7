"""FOLDER CONVERSATIONS: vLLM's greedy answers as JSON on stdout, last line. A separate process, in which our classes are
not registered: vLLM takes those of the exported folder."""

import json
import os
import sys
from pathlib import Path

# One process, so that nothing is left behind; one thread and 1 GB for keys and values.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1"
)


def main(folder, conversations):
    """Prints [{"prompt", "ids", "logprobs": {id: of the first token}}, ...]."""
    import vllm

    from minigpt4.serving.vllm_engine import OVERRIDES

    engine = vllm.LLM(
        folder,
        trust_remote_code=True,
        hf_overrides=OVERRIDES,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 2},
    )
    image_token = json.loads(Path(folder, "config.json").read_text())["image_token_id"]
    sampling = vllm.SamplingParams(max_tokens=12, temperature=0, logprobs=5, logit_bias={image_token: -100})
    answers = []
    for messages in json.loads(conversations):
        [answer] = engine.chat(messages, sampling, use_tqdm=False)
        [written] = answer.outputs
        first = {token: found.logprob for token, found in written.logprobs[0].items()}
        answers.append({"prompt": list(answer.prompt_token_ids), "ids": list(written.token_ids), "logprobs": first})
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])

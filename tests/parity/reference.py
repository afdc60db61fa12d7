"""What the original computes, written again from its numbers (ORIGINAL.md): plain loops over its checkpoints.

    picture -> pixels -> eva_vit -> qformer, or patches merged in fours -> Linear         [visual tokens, LLM width]
    prompt  -> cut at each IMAGE -> SentencePiece on every piece -> ids, with the visual tokens in between
    LLaMA (transformers' own, which is no part of this package) -> greedy, beams or a loss

Nothing here is from the package under test: no processor, tokenizer, collator, key map or model of it.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

IMAGE = "<ImageHere>"
IGNORE = -100
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# Prompts


def vicuna_chat(*turns):
    """The paper's conversation: (question, answer) pairs, the last answer None."""
    text = SYSTEM + "###"
    for question, answer in turns:
        text += f"Human: {question}###Assistant: " + (f"{answer}###" if answer is not None else "")
    return text


def llama_2_chat(*turns):
    """The Llama-2 variant's conversation: the same text, other roles, nothing between the turns."""
    return SYSTEM + "".join(f"<s>[INST] {question} [/INST] {answer or ''}" for question, answer in turns)


# Pictures


def pixels(picture, size=56):
    """An RGB picture -> [3, size, size]: bicubic to a square, CLIP's mean and standard deviation."""
    values = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return ((torch.from_numpy(values) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def eva_vit(state, images, depth, heads):
    """[N, 3, H, W] -> [N, 1 + patches, width]; later blocks, last norm and head of the file are not used."""
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    patches = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1) + state["pos_embed"]
    for layer in range(depth):
        block = _under(state, f"blocks.{layer}.")
        y = _norm(block, "norm1", x, 1e-6)
        bias = torch.cat([block["attn.q_bias"], torch.zeros_like(block["attn.q_bias"]), block["attn.v_bias"]])
        q, k, v = F.linear(y, block["attn.qkv.weight"], bias).chunk(3, dim=-1)
        x = x + _linear(block, "attn.proj", _attention(q, k, v, heads))
        y = _norm(block, "norm2", x, 1e-6)
        x = x + _linear(block, "mlp.fc2", F.gelu(_linear(block, "mlp.fc1", y)))
    return x


def qformer(state, patches, depth, heads):
    """[N, patches, vision width] -> [N, queries, width]: BERT on the queries, every second layer looks at the patches."""
    queries = state["query_tokens"].expand(len(patches), -1, -1)
    x = _norm(state, "Qformer.bert.embeddings.LayerNorm", queries, 1e-12)
    for number in range(depth):
        layer = _under(state, f"Qformer.bert.encoder.layer.{number}.")
        x = _bert_attention(layer, "attention", x, x, heads)
        if number % 2 == 0:
            x = _bert_attention(layer, "crossattention", x, patches, heads)
        y = _linear(layer, "output_query.dense", F.gelu(_linear(layer, "intermediate_query.dense", x)))
        x = _norm(layer, "output_query.LayerNorm", x + y, 1e-12)
    return x


def _bert_attention(layer, kind, x, seen, heads):
    q, k, v = (_linear(layer, f"{kind}.self.{name}", y) for name, y in (("query", x), ("key", seen), ("value", seen)))
    y = _linear(layer, f"{kind}.output.dense", _attention(q, k, v, heads))
    return _norm(layer, f"{kind}.output.LayerNorm", x + y, 1e-12)


def _attention(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _under(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


class Reference:
    """The original's tiny model on the checkpoints of a fixtures folder.

    Args:
        folder: fixtures/parity.
        with_qformer: False for the Llama-2 variant.
    """

    def __init__(self, folder, with_qformer=True):
        folder = Path(folder)
        self.with_qformer = with_qformer
        self.vit_state, self.qformer_state = (
            _read(folder / "checkpoints" / name) for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth")
        )
        variant = "pretrained_minigpt4_tiny.pth" if with_qformer else "pretrained_minigpt4_llama2_tiny.pth"
        projection = _read(folder / "checkpoints" / variant)
        self.weight, self.bias = projection["llama_proj.weight"], projection["llama_proj.bias"]
        self.llama = LlamaForCausalLM.from_pretrained(folder / "llama_tiny", dtype=torch.float32).eval()
        self.llama.requires_grad_(False)
        self.pieces = SentencePieceProcessor(str(folder / "llama_tiny" / "tokenizer.model"))

    # Inputs

    def vision_features(self, pictures):
        """PIL pictures -> what the projection is given, [N, visual tokens, width]."""
        vit = eva_vit(self.vit_state, torch.stack([pixels(picture) for picture in pictures]), depth=3, heads=4)
        patches = _norm(self.qformer_state, "ln_vision", vit, 1e-5)
        if self.with_qformer:
            return qformer(self.qformer_state, patches, depth=4, heads=3)
        return patches[:, 1:].reshape(len(patches), -1, 4 * patches.shape[-1])  # no class token, four neighbors each

    def visual_tokens(self, pictures):
        """PIL pictures -> [N, visual tokens, LLM width]."""
        return F.linear(self.vision_features(pictures), self.weight, self.bias)

    def encode(self, text):
        """Ids of one piece of text, without BOS; special tokens are kept whole and split the text around them."""
        parts = re.split("(<unk>|<s>|</s>)", text)
        return [token for part in parts for token in ([SPECIAL[part]] if part in SPECIAL else self.pieces.encode(part))]

    def prompt_ids(self, prompt):
        """A prompt with IMAGE in it -> one list of ids for each piece between the pictures, BOS before the first."""
        first, *rest = (self.encode(text) for text in prompt.split(IMAGE))
        return [[1, *first], *rest]

    def ids_with_places(self, prompt):
        """The same in one list, with a 0 for each visual token, as this package writes it."""
        first, *rest = self.prompt_ids(prompt)
        places = [0] * (5 if self.with_qformer else 4)
        return [*first, *(token for ids in rest for token in [*places, *ids])]

    def embed(self, ids):
        """ids -> [tokens, LLM width]."""
        return self.llama.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def splice(self, prompt, visual_tokens):
        """A prompt and its pictures' visual tokens -> embeddings [1, L, LLM width]."""
        first, *rest = self.prompt_ids(prompt)
        parts = [self.embed(first)]
        for tokens, ids in zip(visual_tokens, rest, strict=True):
            parts += [tokens, self.embed(ids)]
        return torch.cat(parts)[None]

    # Answers

    @torch.no_grad()
    def greedy(self, embeddings, steps, stops=(), penalty=1.0):
        """The likeliest token, `steps` times, or until what was said ends with one of the id sequences `stops`."""
        said = []
        while len(said) < steps and not any(said[-len(stop) :] == list(stop) for stop in stops):
            logits = self._next(embeddings, said)
            said.append(penalised(logits, said, penalty).argmax().item())
        return said

    @torch.no_grad()
    def beams(self, embeddings, steps, width, end=None, penalty=1.0):
        """Beam search: of all that `width` beams can become, the best by log-probability a token (the end is one)."""
        running, done = [(0.0, [])], []
        for step in range(1, steps + 1):
            candidates = []
            for score, said in running:
                chances = penalised(self._next(embeddings, said).log_softmax(-1), said, penalty)
                best = chances.topk(2 * width)
                candidates += [(score + s.item(), [*said, t.item()]) for s, t in zip(*best, strict=True)]
            candidates.sort(key=lambda candidate: -candidate[0])
            ended = [(score / step, said) for score, said in candidates[:width] if said[-1] == end]
            done = sorted(done + ended, key=lambda hypothesis: -hypothesis[0])[:width]
            running = [candidate for candidate in candidates if candidate[1][-1] != end][:width]
            if len(done) == width and done[-1][0] >= running[0][0] / step:
                return done[0][1]
        unfinished = [(score / steps, said) for score, said in running] if len(done) < width else []
        return max(done + unfinished)[1]

    def _next(self, embeddings, said):
        """Logits of the token that follows; everything is recomputed, nothing is cached."""
        said = self.embed(said)[None]
        return self.llama(inputs_embeds=torch.cat([embeddings, said], dim=1)).logits[0, -1]

    # Training

    def training_row(self, prompt, answer, longest):
        """(ids with places, labels): the answer, its end appended, cut to `longest` tokens; the prompt teaches nothing."""
        answer, prompt = self.encode(answer)[:longest], self.ids_with_places(prompt)
        return prompt + answer, [IGNORE] * len(prompt) + answer

    def loss(self, rows, weight=None, bias=None):
        """Mean cross-entropy over the answer tokens of [(vision features, prompt, answer, longest), ...], row by row."""
        total, count = 0.0, 0
        for features, prompt, answer, longest in rows:
            visual = F.linear(features, self.weight if weight is None else weight, self.bias if bias is None else bias)
            start = self.splice(prompt, visual)
            ids = self.encode(answer)[:longest]
            logits = self.llama(inputs_embeds=torch.cat([start, self.embed(ids)[None]], dim=1)).logits[0]
            total = total + F.cross_entropy(logits[start.shape[1] - 1 : -1], torch.tensor(ids), reduction="sum")
            count += len(ids)
        return total / count


def penalised(scores, said, penalty):
    """Scores after the repetition penalty (CTRL's): tokens said before become less likely, once each."""
    scores = scores.clone()
    for token in set(said):
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    return scores


def _read(path):
    state = torch.load(path, weights_only=True)
    return {name: tensor.float() for name, tensor in state.get("model", state).items()}

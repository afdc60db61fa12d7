"""The loss of a frozen LLM, a few rows at a time: equal to the whole batch's, but with one group's memory and less padding.

    inputs_embeds [B, L, D]  rows of like length -> groups -> for each: forward, loss, backward -> gradient [B, L, D]

A frozen LLM needs its activations only for the gradient at its inputs. That gradient is known as soon as a row's loss is, so
each group runs backward before the next one runs forward, and the gradient waits at the inputs until `loss.backward()`
passes it on to the projection, and to anything else that is trained before the LLM. (Liger's fused cross-entropy does the
same for a head.) With causal attention and padding on the right, a row can end at the token that predicts its last answer
token: nothing after it changes the loss. So no group needs a mask, and each is as long as its longest row.
"""

import contextlib

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import masking_utils


class LossByGroups(torch.autograd.Function):
    """inputs_embeds [B, L, D], targets [B, L] -> the sum of `loss_of(inputs_embeds, targets)` over groups of rows.

    `loss_of` takes [b, l, D], [b, l] and the number of targets in the latter (None: unknown), and must return sums over
    the batch's tokens in the same unit (the mean over the tokens of all rows, for example); none of its weights may
    require a gradient. With the collator's `plan`, nothing here waits for the device.
    """

    @staticmethod
    def forward(ctx, inputs_embeds, targets, loss_of, tokens_at_once, plan=None):
        gradient, losses = torch.zeros_like(inputs_embeds), []
        for indices, length in group_rows(plan["lengths"] if plan else row_lengths(targets), tokens_at_once):
            rows = torch.tensor(indices).to(inputs_embeds.device, non_blocking=True)  # a list would be copied synchronously
            answers = sum(plan["answers"][row] for row in indices) if plan else None
            group = inputs_embeds[rows, :length].detach().requires_grad_()
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                loss = loss_of(group, targets[rows, :length], answers)
            if ctx.needs_input_grad[0]:
                with torch.autocast(loss.device.type, enabled=False):  # autocast is for forward passes
                    loss.backward()
                gradient[rows, :length] = group.grad
            losses.append(loss.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx, loss_gradient):
        [gradient] = ctx.saved_tensors
        return gradient * loss_gradient.to(gradient.dtype), None, None, None, None


@torch.compiler.disable(recursive=False)
def loss_by_groups(inputs_embeds, targets, loss_of, tokens_at_once, plan=None):
    """See `LossByGroups`, and `group_rows` for `tokens_at_once`. What `loss_of` calls may be compiled."""
    return LossByGroups.apply(inputs_embeds, targets, loss_of, tokens_at_once, plan)


def answer_places(targets, answers=None):
    """Flat indices of the `answers` positions at which targets [b, l] name a token.

    Without that number, this waits for the device.
    """
    named = (targets != -100).flatten()
    if answers is None:
        return named.nonzero().flatten()
    return (~named).to(torch.uint8).argsort(stable=True)[:answers]


@contextlib.contextmanager
def rows_are_not_packed():
    """Skips transformers' check in each forward for packed rows, which waits for the device; here no row is packed."""
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def may_group(language_model, lm_head, attention_mask, position_ids, plan=None):
    """Whether the loss by groups equals the batch's: the LLM is frozen and unsharded, with padding on the right.

    Args:
        attention_mask: [B, L] or None. Any other shape is left to the language model.
        position_ids: [B, L] that restart at 0 with each packed sequence, or None. Together with a mask, both are left to
            the language model.
        plan: the collator's, which pads on the right.
    """
    weights = [*language_model.parameters(), *lm_head.parameters()]
    if any(weight.requires_grad or hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in weights):
        return False  # trained, or in shards (FSDP2, ZeRO-3) that each group would have to gather again
    embeddings = language_model.get_input_embeddings().weight
    device = embeddings.device.type
    if torch.float16 in (embeddings.dtype, torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)):
        return False  # a gradient scaler would come after the gradients
    if position_ids is not None:  # flash and flex attention take packed sequences as they are
        plain = language_model.config._attn_implementation in ("eager", "sdpa")
        return plain and attention_mask is None and _restart_at_zero(position_ids)
    if attention_mask is None or plan is not None:
        return True
    return attention_mask.ndim == 2 and bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())


def _restart_at_zero(position_ids):
    if position_ids.ndim != 2:
        return False
    first, before, after = position_ids[:, 0], position_ids[:, :-1], position_ids[:, 1:]
    return bool((first == 0).all() & ((after == 0) | (after == before + 1)).all())


def unpack(position_ids, inputs_embeds, targets):
    """Packed sequences as separate rows, padded on the right: [B, L, D], [B, L] -> [sequences, longest, D], ..."""
    starts = (position_ids.expand_as(targets).flatten() == 0).nonzero().flatten()
    lengths = torch.diff(starts, append=starts.new_tensor([targets.numel()])).tolist()
    sequences, answers = inputs_embeds.flatten(0, 1).split(lengths), targets.flatten().split(lengths)
    return pad_sequence(sequences, batch_first=True), pad_sequence(answers, batch_first=True, padding_value=-100)


def row_lengths(targets):
    """How many positions each row needs, at least 1: up to the last one whose next token is named ([B, L], -100 if not)."""
    positions = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return ((targets != -100) * positions).amax(1).clamp(min=1).tolist()


def group_rows(lengths, tokens_at_once):
    """Rows of like length as [(their indices, the longest's length), ...], longest first.

    Among all ways to cut the sorted rows into groups of at most `tokens_at_once` tokens (or a single row), including
    padding, it takes the one with the fewest tokens, adding a sixteenth of `tokens_at_once` per group for its launches and
    for matrix products that do not fill the device.
    """
    group_cost = tokens_at_once // 16
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cheapest = [(0, 0)]  # of the first 0, 1, ... rows: tokens, and where the last group begins
    for end in range(1, len(order) + 1):
        tokens = [(start, lengths[order[start]] * (end - start)) for start in range(end)]
        cheapest.append(
            min(
                (cheapest[start][0] + count + group_cost, start)
                for start, count in tokens
                if count <= tokens_at_once or start == end - 1
            )
        )
    groups, end = [], len(order)
    while end:
        start = cheapest[end][1]
        groups.append((order[start:end], lengths[order[start]]))
        end = start
    return groups[::-1]

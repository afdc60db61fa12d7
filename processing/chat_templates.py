"""The conversation formats that LLMs were tuned on, as Jinja chat templates with an image token.

    VICUNA_V0   "###Human: ...###Assistant: ...", the paper's; with `training=True` its stage-2 form
    VICUNA_V1   "USER: ... ASSISTANT: ...</s>", that of Vicuna v1.1, v1.3 and v1.5
    LLAMA_2     "[INST] ... [/INST] ..."
    CHATML      "<|im_start|>user ... <|im_end|>", for SmolLM2 and other LLMs that were tuned on it

They are used for LLMs whose tokenizer has no template, or by name; otherwise an LLM's own template is kept (`own_template`).
They write IMAGE where an image goes; `with_image_token` replaces it with the model's own image token. What the model says
is in a `generation` block, by which the collator and other trainers find the answers. Sources: the original's
`conversation.py` and `minigpt_base.py`, SmolLM2's tokenizer configuration, FastChat's `vicuna_v1.1`.
"""

_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)

_ASSISTANT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# A message's images and texts, separated by a space: "<Img>IMAGE</Img> What is this?"
_PARTS = """
{%- macro parts(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}OPENIMAGECLOSE{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
            {%- if not loop.last -%}JOIN{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}"""
_IN_TAGS = _PARTS.replace("OPEN", "<Img>").replace("CLOSE", "</Img>").replace("JOIN", "{{ ' ' }}")
_BARE = _PARTS.replace("OPEN", "").replace("CLOSE", "").replace("JOIN", "")

# There is a space before "###Assistant" in the original's training but not in its chat: the ids differ.
VICUNA_V0 = (
    _IN_TAGS
    + """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ parts(messages[0].content) + '###' }}
{%- elif not training -%}{{ 'SYSTEM###' }}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{{ ('###' if training and loop.first else '') + 'Human: ' + parts(message.content) }}
        {{- ' ###' if training else '###' -}}
    {%- elif message.role == 'assistant' -%}{{ 'Assistant: ' }}
        {%- generation -%}{{ parts(message.content) + '###' }}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant: ' }}{%- endif -%}""".replace("SYSTEM", _SYSTEM)
)

# Images have the original's <Img> tags here, too. There is no space after the last "ASSISTANT:": what the model says is
# tokenized separately, and the tokenizer puts one before the first word. Earlier answers are part of a longer text.
VICUNA_V1 = (
    _IN_TAGS
    + """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ parts(messages[0].content) + ' ' }}{%- else -%}SYSTEM{{ ' ' }}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{{ 'USER: ' + parts(message.content) + ' ' }}
    {%- elif message.role == 'assistant' -%}{{ 'ASSISTANT:' if loop.last else 'ASSISTANT: ' }}
        {%- generation -%}{{ parts(message.content) + eos_token }}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}""".replace("SYSTEM", _ASSISTANT)
)

# In chat the original puts nothing after an earlier answer; in training, `</s>` follows the answer.
LLAMA_2 = (
    _IN_TAGS
    + """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ parts(messages[0].content) + bos_token }}
{%- elif not training -%}{{ 'SYSTEM' + bos_token }}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- if loop.index0 > 0 and messages[loop.index0 - 1].role == 'assistant' -%}{{ bos_token }}{%- endif -%}
        {{- '[INST] ' + parts(message.content) + ' [/INST] ' -}}
    {%- elif message.role == 'assistant' -%}
        {%- generation -%}{{ parts(message.content) + (eos_token if training or loop.last else '') }}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}""".replace("SYSTEM", _SYSTEM)
)

CHATML = (
    _BARE
    + """
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}{{ parts(message.content) + '<|im_end|>' }}{%- endgeneration -%}
    {%- else -%}{{ parts(message.content) + '<|im_end|>' }}{%- endif -%}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""
)


# Their names in recipes.
TEMPLATES = {"vicuna": VICUNA_V0, "vicuna-v1": VICUNA_V1, "llama-2": LLAMA_2, "chatml": CHATML}

# Prepended to an LLM's own template, which then reads plain strings with an image token for each image and need not support
# images. Everything else in a message (tool calls, reasoning) stays as it is. It ends with a line break, which Jinja drops,
# so the template starts as it would on its own.
_AS_STRINGS = (
    _BARE
    + """
{%- set found = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message.content is defined and message.content is not none -%}
        {%- set message = dict(message, content=parts(message.content)) -%}
    {%- endif -%}
    {%- set found.messages = found.messages + [message] -%}
{%- endfor -%}
{%- set messages = found.messages %}
"""
)


def template_text(template):
    """The Jinja text of a template: one named in `TEMPLATES`, or the default one of a tokenizer's several; "" for None."""
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    return TEMPLATES.get(template, template) or ""


def own_template(template, image_token):
    """An LLM's own template (one, or a tokenizer's several), unchanged but with images in its messages."""
    return with_image_token(_AS_STRINGS, image_token) + template_text(template)


def turn_markers(template):
    """Texts that separate turns in a template of this module but are not special tokens."""
    markers = {VICUNA_V0: ["###"], VICUNA_V1: ["USER:", "ASSISTANT:"], LLAMA_2: ["[INST]", "[/INST]"]}
    return markers.get(template, [])


def with_image_token(template, image_token):
    """A template of this module with a model's own image token."""
    return template.replace("IMAGE", image_token)

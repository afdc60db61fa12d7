"""The conversations that each LLM was tuned on, as Jinja chat templates with an image token in them.

    VICUNA_V0   "###Human: ...###Assistant: ...", the paper's; with `training=True` its stage-2 form
    LLAMA_2     "[INST] ... [/INST] ..."
    CHATML      "<|im_start|>user ... <|im_end|>", for SmolLM2 and many newer LLMs

Templates write IMAGE where a picture goes; `with_image_token` puts the model's own image token there. What the model says
stands in a `generation` block: the collator and other trainers find the answers by it. Sources: the original's
`conversation.py` and `minigpt_base.py`, SmolLM2's tokenizer configuration.
"""

_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)

# A message's pictures and texts, one space between them: "<Img>IMAGE</Img> What is this?"
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

# In chat no space stands before "###Assistant", in the original's training one does: the ids differ.
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

# In chat the original puts nothing behind an earlier answer; `</s>` follows the one that is learned.
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


# What a recipe calls them.
TEMPLATES = {"vicuna": VICUNA_V0, "llama-2": LLAMA_2, "chatml": CHATML}

# Any other LLM's own template behind this reads plain strings: it knows no pictures.
_AS_STRINGS = (
    _BARE
    + """
{%- set found = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set found.messages = found.messages + [{'role': message.role, 'content': parts(message.content)}] -%}
{%- endfor -%}
{%- set messages = found.messages -%}"""
)


def template_for(own):
    """The template here for an LLM whose tokenizer brings the template `own`, or None: then it is the paper's."""
    if own is None:
        return VICUNA_V0
    if "<|im_start|>" in own:
        return CHATML
    return LLAMA_2 if "[INST]" in own else _AS_STRINGS + own


def turn_markers(template):
    """Texts that separate turns in a template without being special tokens."""
    return {VICUNA_V0: ["###"], LLAMA_2: ["[INST]", "[/INST]"]}.get(template, [])


def with_image_token(template, image_token):
    """The template with a model's own image token where a picture goes."""
    return template.replace("IMAGE", image_token)

"""A Space that answers questions about pictures. Its variable `MODEL_ID` names the repository of the model.

Written to run alone, as app.py of a Space with the Gradio SDK: transformers fetches the model and its code.
"""

import os

import gradio
from transformers import AutoModelForImageTextToText, AutoProcessor

REPO = os.environ["MODEL_ID"]
processor = AutoProcessor.from_pretrained(REPO, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(REPO, trust_remote_code=True).eval()


def answer(picture, question):
    """What the model says to a question about a PIL picture."""
    if picture is None or not question.strip():
        raise gradio.Error("Choose a picture and write a question.")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


demo = gradio.Interface(
    answer,
    [gradio.Image(type="pil", label="Picture"), gradio.Textbox("Describe this image in detail.", label="Question")],
    gradio.Textbox(label="Answer"),
    title=REPO,
    description="Answers may be invented. Not for identifying people.",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()

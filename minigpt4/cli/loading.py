"""The arguments of every command that loads and runs a model: device and precision."""


def add_arguments(parser, quantized=True):
    """Adds --device, --dtype and, if `quantized`, --load-in; `inference.devices`, which needs torch, checks them."""
    group = parser.add_argument_group("where and how the model computes")
    group.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|mps", help="default: auto, the GPU if there is one"
    )
    group.add_argument(
        "--dtype",
        default="auto",
        metavar="auto|float32|bfloat16|float16",
        help="default: auto, the stored one unless it is slow on the device (`minigpt4 doctor` measures it)",
    )
    if quantized:
        group.add_argument("--load-in", metavar="8bit|4bit", help="quantize the frozen linear layers with bitsandbytes")


def load_model(arguments):
    """(model, processor) of --model, ready to answer; raises ValueError or OSError with one line."""
    from ..inference.named_models import load

    return load(arguments.model, **given(arguments))


def given(arguments):
    """The keyword arguments of `minigpt4.load` from the command line."""
    return {name: getattr(arguments, name) for name in ("device", "dtype", "load_in") if hasattr(arguments, name)}

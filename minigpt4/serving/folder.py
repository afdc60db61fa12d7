"""A model in a form that engines can load."""

import hashlib
import json
from pathlib import Path


def servable(name, full=False):
    """A model's folder, or its id on the Hub, as an engine can load it.

    The embedded default is exported into the cache, and so is a light model for an engine that supports only full ones.
    This happens once: as long as neither the model nor this package's version changes, the same folder is returned.

    Args:
        name: "embedded", a folder, or an id on the Hub.
        full: whether it must contain every weight.

    Raises:
        ValueError, OSError: as `minigpt4.load` does.
    """
    from .. import __version__
    from ..hub.export import export
    from ..inference import named_models as models
    from ..modeling_minigpt4.embedded import SHIPPED_PROJECTION
    from ..modeling_minigpt4.parts import cache_dir

    state = [__version__, name]
    if name == "embedded":
        state.append(hashlib.sha256(SHIPPED_PROJECTION.read_bytes()).hexdigest())
    else:
        config = models.load_config(name)
        if not (full and config.base_parts):
            return name
        weights = [(str(path.resolve()), path.stat().st_mtime_ns) for path in sorted(Path(name).rglob("*.safetensors"))]
        state += [config.to_json_string(), config._commit_hash, weights]
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
    folder = cache_dir() / "served" / digest
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        export(*models.load(name), folder)
    return str(folder)

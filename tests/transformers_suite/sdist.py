"""transformers' own tests of its models, as a package: from the sdist of the installed version, which is fetched once.

The sdist has the common tests but not the folders that they import three names from; stand-ins of those are made here.
"""

import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import transformers

CACHE = Path(__file__).parents[2] / ".cache" / "transformers"
PACKAGE = "transformers_tests"
FILES = ("test_configuration_common.py", "test_modeling_common.py")


def make_importable():
    """From here on `transformers_tests.test_modeling_common` and `.test_configuration_common` can be imported."""
    folder = CACHE / transformers.__version__
    if not folder.is_dir():
        _fetch(folder)
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # transformers' own conftest declares its marks
    for name, contents in _stand_ins().items():
        module = ModuleType(f"{PACKAGE}.{name}")
        vars(module).update(contents)
        sys.modules[module.__name__] = module


def _stand_ins():
    """What the two files import from tests/exporters, tests/generation and tests/utils of the repository.

    Exporters and generation are mixins with tests of their own; ours of generation are in test_generation.py. The common
    arguments are values other than the default, which a config has to adopt.
    """
    arguments = {"return_dict": False, "output_hidden_states": True, "dtype": "float16", "chunk_size_feed_forward": 5}
    return {
        "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "utils.test_configuration_utils": {"config_common_kwargs": arguments},
    }


def _fetch(folder):
    """Downloads the sdist and writes the two files (nothing else is unpacked) into `folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        release = f"transformers-{transformers.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=transformers"]
        subprocess.run([*pip, "--dest", scratch, release.replace("-", "==")], check=True)
        package = Path(scratch, "unpacked", PACKAGE)
        package.mkdir(parents=True)
        (package / "__init__.py").touch()  # test_configuration_common.py reads it
        with tarfile.open(Path(scratch, f"{release}.tar.gz")) as archive:
            for name in FILES:
                (package / name).write_bytes(archive.extractfile(f"{release}/tests/{name}").read())
        package.parent.rename(folder)

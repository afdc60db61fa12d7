"""A hook of mkdocs: what pages link as `../PATH`, a file of the repository, is there on the site, too.

Each such file is copied to the site as repository/PATH. A link to a file that does not exist stays as it is, and fails.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(\.\./([^)#]+)")


def on_files(files, config):
    """Adds the linked files to the site."""
    for page in list(files.documentation_pages()):
        for name in LINK.findall(Path(page.abs_src_path).read_text("utf-8")):
            if (ROOT / name).is_file() and files.get_file_from_path(f"repository/{name}") is None:
                files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points the links there."""
    return LINK.sub(lambda link: f"](repository/{link[1]}" if (ROOT / link[1]).is_file() else link[0], markdown)

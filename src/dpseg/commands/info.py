"""`dpseg info`: what is installed, which models there are, and where things are kept."""

from __future__ import annotations

import platform
import re
from importlib import metadata

from dpseg import __version__
from dpseg.cache import ENVIRONMENT, cache_folder


def info() -> list[tuple[str, str]]:
    """Returns what `dpseg info` prints: labels and values."""
    import torch

    from dpseg.data.vocabularies import VOCABULARIES
    from dpseg.pretrained import MODELS

    if torch.cuda.is_available():
        device = ", ".join(f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count()))
    else:
        device = "cpu (no CUDA GPU found)"
    return [
        ("dpseg", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", str(torch.__version__)),
        ("device", device),
        ("threads", str(torch.get_num_threads())),
        ("cache", _cache()),
        *((f"model {name}", about) for name, about in MODELS.items()),
        *((f"extra {name}", state) for name, state in _extras().items()),
        *((f"vocabulary {name}", about) for name, about in VOCABULARIES.items()),
    ]


def _cache() -> str:
    folder = cache_folder()
    if folder is None:
        return f"off ({ENVIRONMENT})"
    files = [path.stat().st_size for path in folder.rglob("*.safetensors")] if folder.is_dir() else []
    return f"{folder}, {sum(files) / 1e6:.1f} MB in {len(files)} files"


def _extras() -> dict[str, str]:
    """Says of each optional extra whether its packages are installed, as the package's own metadata lists them."""
    try:
        required = metadata.requires("dpseg") or []
        extras = metadata.metadata("dpseg").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    states: dict[str, str] = {}
    for extra in extras:
        packages = [_package(line) for line in required if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", line)]
        missing = [package for package in packages if package != "dpseg" and not _installed(package)]
        states[extra] = "installed" if not missing else f"missing {', '.join(missing)}: pip install 'dpseg[{extra}]'"
    return states


def _package(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match.group() if match else requirement


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True

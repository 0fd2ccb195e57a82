"""The texts of questions: Jinja templates, Shoal's own or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import ConfigError

OWN = Path(__file__).parent / "templates"


def load_template(name: str, file: str | None, key: str, **sample: Any) -> Template:
    """Shoal's template `name`, or the one in `file`, tried with the names and kinds of values in `sample`.

    Raises:
        ConfigError: `file`, which the option `key` gave, cannot be read, or uses a name that there is not.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path = OWN / f"{name}.j2" if file is None else Path(file)
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
        template.render(**sample)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}={file}: it cannot be read ({error})") from error
    except TemplateError as error:
        raise ConfigError(f"{key}={file}: {error}; there are {', '.join(sorted(sample))}") from error
    return template

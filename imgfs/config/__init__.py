"""The configuration: the table of options (`options`), the values in force and their origins (`settings`)."""

from imgfs.config.options import Config
from imgfs.config.settings import FILE_NAME, Settings, default_state, load_config, load_settings

__all__ = ["FILE_NAME", "Config", "Settings", "default_state", "load_config", "load_settings"]

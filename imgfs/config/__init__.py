"""The configuration: every option once (`options`), where values are from (`settings`), where things lie (`places`)."""

from imgfs.config.options import Config
from imgfs.config.places import FILE_NAME, default_state
from imgfs.config.settings import Settings, load_config, load_settings

__all__ = ["FILE_NAME", "Config", "Settings", "default_state", "load_config", "load_settings"]

"""The configuration of a model: its fields (`configuration`), their validation (`checks`), and its files (`files`)."""

from .configuration import FIELDS, ErnieMConfig

__all__ = ["FIELDS", "ErnieMConfig"]

"""The version of the installed package."""

from detectors.own_version import own_version

__version__ = own_version()

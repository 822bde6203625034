"""CutPaste."""

from detectors.heads.cutpaste.head import Cutpaste

__all__ = ["Cutpaste"]

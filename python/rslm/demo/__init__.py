"""The whole chain on one machine: `rslm demo`, and with --full on to chat and to rewards."""

from rslm.demo.chain import DemoOptions, demo

__all__ = ["DemoOptions", "demo"]

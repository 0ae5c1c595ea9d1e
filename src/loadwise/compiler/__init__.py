"""The life of a compiled model: build, verify, measure, promote, revert. Importing it needs no torch."""

from loadwise.compiler.build import BuildState
from loadwise.compiler.compiler import ModelCompiler
from loadwise.compiler.served import ServedModel

__all__ = ["BuildState", "ModelCompiler", "ServedModel"]
